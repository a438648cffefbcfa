# anonymous memory, at once
# memory -m 64m
import time
kept = b'x' * (160 << 20)
time.sleep(60)
