# empty files
# scratch --scratch-size 8m
import os
try:
    for number in range(50000): os.close(os.open(f'/tmp/{number}', os.O_CREAT | os.O_WRONLY))
except OSError as error:
    raise SystemExit(os.strerror(error.errno))
