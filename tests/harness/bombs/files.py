# open files
# nofile
import os
kept = []
try:
    while len(kept) < 100000: kept.append(os.open('/dev/null', os.O_RDONLY))
except OSError as error:
    raise SystemExit(os.strerror(error.errno))
