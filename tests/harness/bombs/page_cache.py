# most of the limit, then far more than that read from files
# memory -m 64m
import os
kept = b'x' * (32 << 20)
read = 0
for directory, _, names in os.walk('/usr'):
    for name in names:
        path = os.path.join(directory, name)
        if os.path.isfile(path) and not os.path.islink(path):
            with open(path, 'rb') as file:
                while chunk := file.read(1 << 20): read += len(chunk)
    if read > 48 << 20: break
print('read' if read > 40 << 20 else read)
