# eight busy loops
# cpus --cpus 0.5 --timeout 3s
import os
for _ in range(7):
    if os.fork() == 0: break
while True: pass
