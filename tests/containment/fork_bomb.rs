//! Fork bombs: of processes, of threads, of processes that nobody waits for.

use std::time::Duration;

use sbxrt_tests::{Fixtures, Host};

use crate::{attack, python};

#[test]
fn bombs_of_every_kind_end_and_leave_the_host_usable() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    // 2000 processes or threads each, far beyond the limit and bearable where it is not held.
    let bombs = [
        "import os, time\nfor n in range(11): os.fork()\ntime.sleep(60)",
        "import os, time\nfor n in range(2000):\n  if os.fork() == 0: os.setsid(); time.sleep(60); os._exit(0)",
        "import os, time\nfor n in range(2000):\n  if os.fork() == 0: os._exit(0)\ntime.sleep(60)",
        "import threading, time\nfor n in range(2000): threading.Thread(target=time.sleep, args=(60,)).start()",
    ];
    attack(|sbxrt| {
        let host = Host::snapshot(sbxrt);
        for bomb in bombs {
            let output = python(
                sbxrt,
                &image,
                &["--json", "--pids-limit", "40", "--timeout", "3s"],
                bomb,
            );
            let report = output.report();
            assert!(
                ["pids", "timeout", "exited"].contains(&report.kind()),
                "{bomb}: {report}"
            );
            assert_ne!(report.exit_code(), Some(0), "{bomb}: {report}");
            // Long before the bomb is over by itself.
            assert!(output.elapsed < Duration::from_secs(45), "{bomb}: {output}");
            host.assert_nothing_is_left();
        }
    });
}
