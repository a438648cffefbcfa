//! CVE-2022-23648: `Volumes` of an image whose paths lead out of it, which others copied the host's files through.

use sbxrt_tests::Fixtures;
use serde_json::json;

use crate::attack;

#[test]
fn declared_volumes_bring_nothing_in() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    attack(|sbxrt| {
        let canary = sbxrt.home().join("CANARY");
        let image = fixtures.variant(sbxrt, "volumes", |configuration, _| {
            configuration["config"]["Volumes"] = json!({
                (format!("/../../../../../../..{}", sbxrt.home().display())): {},
                (sbxrt.home().display().to_string()): {},
                "/../../../../../../etc": {},
                "/proc": {},
                "/dev": {},
                "": {}
            });
        });
        let script = format!(
            "cat {} 2>/dev/null; ls -d /etc/hostname /etc/shadow 2>/dev/null; ls /proc/self/fd >/dev/null",
            canary.display()
        );
        let output = sbxrt.run([&image, "sh", "-c", &script]).output();
        let plain = fixtures.layout("busybox", "latest");
        let expected = sbxrt.run([&plain, "sh", "-c", &script]).output();
        assert_eq!(output.success(), expected.success());
    });
}
