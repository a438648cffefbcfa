# a slow leak
# memory -m 64m
import time
kept = []
for _ in range(160):
    kept.append(b'x' * (1 << 20))
    time.sleep(0.01)
time.sleep(60)
