# a file of 8 EiB without contents, then one with
# scratch --scratch-size 8m
import os
with open('/tmp/sparse', 'wb') as file:
    try:
        os.truncate('/tmp/sparse', (1 << 63) - 4096)
    except OSError as error:
        print(os.strerror(error.errno))
with open('/tmp/bomb', 'wb') as file:
    try:
        os.posix_fallocate(file.fileno(), 0, 1 << 30)
    except OSError as error:
        raise SystemExit(os.strerror(error.errno))
