# pipes, as large as they get, all of them full
# memory -m 32m
# kernel memory
import fcntl, os, time
kept = []
try:
    while len(kept) < 1000:
        pair = os.pipe()
        os.set_blocking(pair[1], False)
        try:
            fcntl.fcntl(pair[1], 1031, 1 << 20)
        except OSError:
            pass
        os.write(pair[1], b'x' * (1 << 20))
        kept.append(pair)
except OSError as error:
    print(os.strerror(error.errno))
time.sleep(2)
