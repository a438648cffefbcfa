# a flood on standard output
# output --output-limit 1m
import os
for _ in range(256): os.write(1, b'x' * (1 << 18))
