# a file in the root file system
# scratch --scratch-size 8m -w /made
import os
try:
    with open('bomb', 'wb', 0) as file:
        for _ in range(64 << 4): file.write(b'x' * (1 << 16))
except OSError as error:
    raise SystemExit(os.strerror(error.errno))
