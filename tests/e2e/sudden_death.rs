//! `kill -9` of sbxrt itself, whenever it comes: the kernel must end and remove all of it.

use std::time::{Duration, Instant, SystemTime};

use sbxrt_tests::{Fixtures, Host, for_each_identity, pause};

const KILLS: u32 = 50;

#[test]
fn fifty_sudden_deaths_leave_nothing() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let host = Host::snapshot(sbxrt);
        let script = "(sleep 100 &); (trap '' TERM; sleep 100) & sleep 100";
        let run = sbxrt.run([
            "-m",
            "64m",
            "--pids-limit",
            "20",
            &image,
            "sh",
            "-c",
            script,
        ]);
        // From before sbxrt has read its arguments to well into the program's life.
        let longest = whole_start(sbxrt, &image) * 2;
        let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
        for kill in 0..KILLS {
            let jitter = f64::from((seed ^ kill.wrapping_mul(2_654_435_761)) % 1000) / 1000.0;
            let wait = longest.mul_f64((f64::from(kill) + jitter) / f64::from(KILLS));
            let mut child = run.spawn();
            pause(wait);
            child.kill().unwrap();
            child.wait().unwrap();
            eprintln!("kill {kill} after {wait:?}");
            host.assert_nothing_is_left();
        }
    });
}

#[test]
fn death_in_the_middle_of_a_pull_does_not_harm_the_next() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.layout("python", "latest");
    for_each_identity(|sbxrt| {
        for wait in [20, 100, 300] {
            let mut child = sbxrt.command(["pull", &image]).spawn();
            pause(Duration::from_millis(wait));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let output = sbxrt
            .run([&image, "python3", "-c", "print(1)"])
            .deadline(Duration::from_secs(60))
            .output();
        assert_eq!(output.success(), "1\n", "{output}");
        assert_eq!(sbxrt.unfinished(), Vec::<std::path::PathBuf>::new());
    });
}

fn whole_start(sbxrt: &sbxrt_tests::Sbxrt, image: &str) -> Duration {
    let start = Instant::now();
    sbxrt.run([image, "true"]).output().success();
    start.elapsed().max(Duration::from_millis(20))
}
