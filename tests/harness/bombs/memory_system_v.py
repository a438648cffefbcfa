# System V shared memory
# memory -m 64m
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
for _ in range(20):
    segment = libc.shmget(0, 8 << 20, 0o1600)
    if segment == -1: break
    ctypes.memset(libc.shmat(segment, None, 0), 1, 8 << 20)
time.sleep(2)
