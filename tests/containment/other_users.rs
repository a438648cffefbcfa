//! Singularity CVE-2019-19724, CVE-2020-25039 and CVE-2020-25040, containerd CVE-2021-41103 and CVE-2024-25621: other users of
//! the machine read what an image holds, or run a setuid file of it, in the directory that it was unpacked to.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use sbxrt_tests::{Fixtures, Identity, Need, require};

use crate::attack;

#[test]
fn a_store_is_closed_to_other_users_and_holds_nothing_setuid() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    if !require(Need::Root) {
        return;
    }
    let image = fixtures.layout("fidelity", "gnu");
    attack(|sbxrt| {
        // A careless account: everybody may look in, and whatever is made is open to all.
        let data = sbxrt.home().join("data");
        for path in [sbxrt.home(), data.clone()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let pull = sbxrt.command(["pull", &image]);
        let pull = pull.behind(["sh", "-c", r#"umask 000; exec "$@""#, "sh"]);
        pull.output().success();

        let store = data.join("sbxrt");
        let mut setuid_file = None;
        let mut files = 0;
        walk(&store, &mut |path, mode| {
            files += 1;
            let is_directory = path.is_dir() && !path.is_symlink();
            assert!(
                is_directory || mode & 0o6000 == 0,
                "{}: {mode:o}",
                path.display()
            );
            if path.ends_with("fs/bin/setuid") {
                setuid_file = Some(path.to_owned());
            }
        });
        assert!(files > 20, "{files}");
        let setuid_file = setuid_file.unwrap();
        let owners = setuid_file.ancestors().nth(3).unwrap().join("owners.jsonl");
        let owners = fs::read_to_string(owners).unwrap();
        assert!(owners.contains(r#""path":"bin/setuid""#), "{owners}");

        let other = if sbxrt.identity().name() == "sbxrt-test" {
            "sbxrt-sub"
        } else {
            "sbxrt-test"
        };
        let Some(other) = Identity::named(other) else {
            return;
        };
        let may = |words: &[&str]| {
            let mut command = other.command(words);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command.status().unwrap().success()
        };
        let path = |path: &Path| path.display().to_string();
        assert!(
            may(&["ls", &path(&data)]),
            "the test means the store and not the account"
        );
        assert!(!may(&["ls", &path(&store)]));
        assert!(!may(&["cat", &path(&setuid_file)]));
        assert!(!may(&[&path(&setuid_file)]));
        assert!(!may(&["touch", &path(&store.join("tmp/x"))]));
    });
}

fn walk(directory: &Path, visit: &mut impl FnMut(&Path, u32)) {
    for entry in fs::read_dir(directory).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let status = fs::symlink_metadata(&path).unwrap();
        visit(&path, status.mode());
        if status.is_dir() {
            walk(&path, visit);
        }
    }
}

#[test]
fn a_store_that_everybody_may_write_to_is_refused() {
    attack(|sbxrt| {
        let store = sbxrt.scratch("public");
        fs::write(store.join("version"), "1\n").unwrap();
        fs::set_permissions(&store, fs::Permissions::from_mode(0o777)).unwrap();
        let output = sbxrt
            .run(["--store", store.to_str().unwrap(), "host:", "true"])
            .output();
        output.assert_refused(&["is not trusted", "everybody may write", "chmod o-w"]);
    });
}
