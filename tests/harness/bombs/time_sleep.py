# sleep, with every signal ignored
# wall_time_ms --timeout 1s
import signal, time
for number in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(number, signal.SIG_IGN)
time.sleep(60)
