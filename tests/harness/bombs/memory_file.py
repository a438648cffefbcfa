# a file in memory (memfd)
# memory -m 64m
import os, time
try:
    file = os.memfd_create('bomb')
except OSError as error:
    raise SystemExit(os.strerror(error.errno))
for _ in range(160): os.write(file, b'x' * (1 << 20))
time.sleep(60)
