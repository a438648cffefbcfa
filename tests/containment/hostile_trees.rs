//! Directories that are hard to remove: deep, with names of all kinds, closed to their owner, full of empty files.

use sbxrt_tests::Fixtures;

use crate::{attack, python};

#[test]
fn what_a_program_leaves_in_its_scratch_goes_with_it() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    let program = r"
import os
os.makedirs('/tmp/junk')
for number in range(1000):
    name = bytes([number % 255 + 1]) * (255 - number // 255) if number % 255 + 1 != 47 else b'.' * 255
    try: os.close(os.open(b'/tmp/junk/' + name, os.O_CREAT))
    except OSError as error: print(name[:1], os.strerror(error.errno))
os.mkdir('/tmp/closed')
os.symlink('/', '/tmp/closed/root')
os.symlink('..', '/tmp/closed/up')
os.mkfifo('/tmp/closed/fifo')
os.chmod('/tmp/closed', 0)
os.chdir('/tmp')
depth = 0
try:
    for _ in range(10000):
        os.mkdir('d', 0o700)
        os.chdir('d')
        depth += 1
except OSError:
    pass
os.chmod('.', 0)
print('deep' if depth > 1000 else depth)
";
    attack(|sbxrt| {
        let output = python(sbxrt, &image, &["-w", "/made"], program);
        assert_eq!(output.success(), "deep\n");
    });
}

#[test]
fn a_working_directory_that_is_removed_and_a_mount_point_that_is_busy_hold_nobody_up() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    attack(|sbxrt| {
        let directory = sbxrt.scratch("volume");
        let volume = format!("{}:/v", directory.display());
        let script = "mkdir /v/d /tmp/gone && cd /tmp/gone && rmdir /tmp/gone; (cd /v/d && exec sleep 600 <. ) & \
                      rmdir /v/d 2>/dev/null; cd /v; exit 3";
        let output = sbxrt
            .run(["-v", &volume, &image, "sh", "-c", script])
            .output();
        assert_eq!(output.code(), 3, "{output}");
    });
}
