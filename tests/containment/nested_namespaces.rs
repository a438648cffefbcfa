//! CVE-2022-0185, CVE-2022-0492, CVE-2023-0386: kernel bugs that are reached with the capabilities of a new user
//! namespace.

use sbxrt_tests::Fixtures;

use crate::attack;

#[test]
fn no_user_namespace_can_be_made_inside() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    attack(|sbxrt| {
        let script = "unshare -U true && echo made; unshare -r true && echo made; unshare -m true && echo made; true";
        for image in [fixtures.busybox_rootfs(), fixtures.python_rootfs()] {
            let output = sbxrt.run([&image, "sh", "-c", script]).output();
            assert_eq!(output.success(), "", "{output}");
        }
    });
}
