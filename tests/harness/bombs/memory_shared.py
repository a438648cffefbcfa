# a shared anonymous mapping
# memory -m 64m
import mmap, time
kept = mmap.mmap(-1, 160 << 20)
for _ in range(160): kept.write(b'x' * (1 << 20))
time.sleep(60)
