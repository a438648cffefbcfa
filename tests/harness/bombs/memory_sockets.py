# sockets, all of them full
# memory -m 32m
# kernel memory
import os, socket, time
kept = []
try:
    while len(kept) < 1000:
        pair = socket.socketpair()
        pair[1].setblocking(False)
        kept.append(pair)
        try:
            while True: pair[1].send(b'x' * (64 << 10))
        except BlockingIOError:
            pass
except OSError as error:
    print(os.strerror(error.errno))
time.sleep(2)
