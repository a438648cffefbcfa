# processes by vfork, each in a session of its own
# pids --pids-limit 20
import os, time
refused = 0
for _ in range(2000):
    try:
        os.posix_spawn('/bin/sleep', ['sleep', '60'], {}, setsid=True)
    except OSError:
        refused += 1
        if refused == 20: break
time.sleep(2)
raise SystemExit(1)
