# a daemon that has left its session and holds the output open
# wall_time_ms --timeout 1s
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork(): os._exit(0)
while True: time.sleep(60)
