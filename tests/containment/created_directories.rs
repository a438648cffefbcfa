//! CVE-2021-30465, CVE-2024-45310: while a container starts, another one that shares a volume with it exchanges directories
//! for links, so that what the runtime makes there is made on the host.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use sbxrt_tests::Fixtures;

use crate::attack;

/// How often a sandbox starts against the exchange; `SBXRT_TEST_RACES` says otherwise.
const STARTS: u32 = 15;

#[test]
fn no_directory_is_made_on_the_host_through_a_link_that_comes_and_goes() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    let starts = std::env::var("SBXRT_TEST_RACES").ok();
    let starts = starts.map_or(STARTS, |text| {
        text.parse().expect("SBXRT_TEST_RACES is a number")
    });
    attack(|sbxrt| {
        let shared = sbxrt.scratch("shared");
        let victim = sbxrt.scratch("victim");
        let owner = (
            Some(sbxrt.identity().uid().as_raw()),
            Some(sbxrt.identity().gid().as_raw()),
        );
        let (real, link) = (shared.join("d"), shared.join("l"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::chown(&real, owner.0, owner.1).unwrap();
        symlink(&victim, &link).unwrap();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                // The exchange of the attacker's, who may write to the volume.
                while !over.load(Ordering::Relaxed) {
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(
                        rustix::fs::CWD,
                        &real,
                        rustix::fs::CWD,
                        &link,
                        flags,
                    )
                    .unwrap();
                }
            });
            let volume = format!("{}:/v", shared.display());
            let empty = sbxrt.scratch("empty");
            let nested = format!("{}:/v/d/made/here", empty.display());
            for _ in 0..starts {
                // It starts, or is refused; both are well.
                sbxrt
                    .run(["-v", &volume, "-v", &nested, &image, "true"])
                    .output();
                sbxrt
                    .run(["-v", &volume, "-w", "/v/d/work/here", &image, "true"])
                    .output();
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(
            victim.read_dir().unwrap().count(),
            0,
            "made on the host: {victim:?}"
        );
    });
}
