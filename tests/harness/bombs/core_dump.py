# a core dump of 32 MiB
# scratch --scratch-size 8m -w /tmp
import os
kept = b'x' * (32 << 20)
os.abort()
