//! Memory in forms that a limit on one process's heap does not see: shared, in a memfd, in `/tmp` and `/dev/shm`.

use sbxrt_tests::Fixtures;

use crate::{attack, python};

#[test]
fn memory_of_every_kind_counts() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    let eaters = [
        "import mmap\nkept = mmap.mmap(-1, 400 << 20)\nfor i in range(0, 400 << 20, 4096): kept[i] = 1",
        "import os\nfd = os.memfd_create('x')\nfor i in range(400): os.write(fd, b'x' * (1 << 20))",
        "import os\nfor n in range(4):\n  if os.fork() == 0:\n    kept = b'x' * (100 << 20); import time; time.sleep(3); print('not held', flush=True)\n    os._exit(0)\nfor n in range(4): os.wait()",
        "f = open('/dev/shm/x', 'wb')\nfor i in range(400): f.write(b'x' * (1 << 20))",
        "f = open('/tmp/x', 'wb')\nfor i in range(400): f.write(b'x' * (1 << 20))",
    ];
    attack(|sbxrt| {
        for eater in eaters {
            let program = format!("{eater}\nimport time; time.sleep(0.5); print('not held')");
            let output = python(
                sbxrt,
                &image,
                &[
                    "--json",
                    "-m",
                    "128m",
                    "--scratch-size",
                    "64m",
                    "--timeout",
                    "10s",
                ],
                &program,
            );
            let report = output.report();
            assert!(
                !String::from_utf8_lossy(&report.bytes("stdout")).contains("not held"),
                "{eater}: {report}"
            );
        }
    });
}
