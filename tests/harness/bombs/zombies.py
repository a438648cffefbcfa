# processes that have ended and nobody waits for
# pids --pids-limit 20
import os, time
refused = 0
for _ in range(2000):
    try:
        if os.fork() == 0: os._exit(0)
    except OSError:
        refused += 1
        if refused == 20: break
time.sleep(2)
raise SystemExit(1)
