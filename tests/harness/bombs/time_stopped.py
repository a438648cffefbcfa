# a process that has stopped itself
# wall_time_ms --timeout 1s
import os, signal
os.kill(os.getpid(), signal.SIGSTOP)
