# processes that fork faster than they can be killed
# wall_time_ms --timeout 1s --pids-limit 0
import os, time
for _ in range(8):
    if os.fork() == 0:
        os.setsid()
        # Each replaces itself for as long as there is time.
        while time.monotonic() < 1e9:
            if os.fork(): os._exit(0)
time.sleep(60)
