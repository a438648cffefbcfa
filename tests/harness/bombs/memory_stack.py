# a stack with a generous limit of its own
# memory -m 64m --ulimit stack=1073741824
import ctypes, time
with open('/proc/self/maps') as maps:
    stack = [line for line in maps if line.endswith('[stack]\n')][0]
bottom = int(stack.split('-')[0], 16)
ctypes.memset(bottom - (160 << 20), 1, 160 << 20)
time.sleep(60)
