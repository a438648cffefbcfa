# page tables of an empty mapping
# memory -m 32m
# kernel memory
import mmap, os, time
# A table of 4 KiB for every 2 MiB of which one byte is read; 80 MiB of them.
size = 20000 << 21
kept = memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, mmap.PROT_READ))
file = os.open('/tmp/bytes', os.O_CREAT | os.O_WRONLY)
for first in range(0, size, 1000 << 21):
    os.writev(file, [kept[at:at + 1] for at in range(first, first + (1000 << 21), 2 << 20)])
time.sleep(2)
