# threads
# pids --pids-limit 20
import _thread, os, time
refused = 0
for _ in range(2000):
    try:
        _thread.start_new_thread(time.sleep, (60,))
    except RuntimeError:
        refused += 1
        if refused == 20: break
time.sleep(2)
os._exit(1)
