# a flood on standard error, byte by byte
# output --output-limit 64k
import os
for _ in range(72 << 10): os.write(2, b'x')
