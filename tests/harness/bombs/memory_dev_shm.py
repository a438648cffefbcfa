# a file in /dev/shm
# shm -m 256m
import os, time
try:
    with open('/dev/shm/bomb', 'wb', 0) as file:
        for _ in range(160): file.write(b'x' * (1 << 20))
        for _ in range(160): file.write(b'x')
except OSError as error:
    raise SystemExit(os.strerror(error.errno))
