# processes whose parents have ended
# pids --pids-limit 20
import os, time
refused = 0
for _ in range(1000):
    try:
        child = os.fork()
        if child == 0:
            try:
                if os.fork() == 0:
                    os.setsid()
                    time.sleep(60)
                os._exit(0)
            finally:
                os._exit(1)
        refused += os.waitpid(child, 0)[1] != 0
    except OSError:
        refused += 1
    if refused >= 20: break
# Each that was refused has made room for one: these stay.
try:
    for _ in range(20):
        if os.fork() == 0: time.sleep(60)
except OSError:
    pass
time.sleep(2)
raise SystemExit(1)
