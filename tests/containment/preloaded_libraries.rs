//! CVE-2025-23266, CVE-2024-0132, CVE-2019-14271: the image's `ENV` or libraries get into a helper that runs on the host's
//! side of the border. sbxrt is static, starts no helper from the image, and the first process has no environment.

use std::fs;

use sbxrt_tests::Fixtures;
use serde_json::json;

use crate::attack;

#[test]
fn the_images_environment_reaches_its_program_alone() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    attack(|sbxrt| {
        let image = fixtures.variant(sbxrt, "preloading", |configuration, _| {
            configuration["config"]["Env"] = json!([
                "PATH=/usr/bin:/bin",
                "LD_PRELOAD=/proc/self/cwd/evil.so",
                "LD_LIBRARY_PATH=/evil",
                "LD_AUDIT=/evil/audit.so",
                "GCONV_PATH=/evil",
                "RUST_LOG=trace",
                "SBXRT_STORE=/evil",
                "HOME=/../../../evil",
                "TMPDIR=/evil"
            ]);
        });
        let script = "tr '\\0' '\\n' </proc/1/environ | grep -c . ; echo $LD_PRELOAD";
        let output = sbxrt.run([&image, "sh", "-c", script]).output();
        // The first process's environment is empty, or it cannot even be asked.
        assert_eq!(output.success(), "0\n/proc/self/cwd/evil.so\n", "{output}");
        let store = sbxrt.home().join("data/sbxrt");
        assert!(fs::exists(store).unwrap(), "the store is the caller's");
    });
}
