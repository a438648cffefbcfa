# four processes, each below the limit
# memory -m 64m
import os, time
for _ in range(4):
    if os.fork() == 0:
        kept = b'x' * (40 << 20)
        time.sleep(60)
time.sleep(60)
