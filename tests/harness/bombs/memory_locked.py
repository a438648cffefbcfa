# memory that asks to be locked
# memory -m 64m
import ctypes, time
ctypes.CDLL(None).mlockall(3)
kept = b'x' * (160 << 20)
time.sleep(60)
