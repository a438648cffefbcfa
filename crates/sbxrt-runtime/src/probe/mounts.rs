//! Reading `/proc/self/mountinfo`: what is mounted where (see `proc_pid_mountinfo(5)`).

use std::path::{Path, PathBuf};

/// A line of mountinfo, as far as it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MountPoint {
    pub(super) path: PathBuf,
    /// The file system's type, a FUSE subtype included: `ext4`, `nfs4`, `fuse.sshfs`.
    pub(super) kind: String,
}

/// The mounts that this process sees, in the order in which they were made.
pub(super) fn read() -> Vec<MountPoint> {
    parse(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// Reads the contents of mountinfo. Lines that do not have its form are left out.
pub(super) fn parse(text: &str) -> Vec<MountPoint> {
    let line = |line: &str| {
        let (first, second) = line.split_once(" - ")?;
        let path = unescape(first.split(' ').nth(4)?).into();
        let kind = unescape(second.split(' ').next()?);
        Some(MountPoint { path, kind })
    };
    text.lines().filter_map(line).collect()
}

/// The mount that `path`, without symbolic links, lies on.
pub(super) fn of<'a>(mounts: &'a [MountPoint], path: &Path) -> Option<&'a MountPoint> {
    // Of several on one place the last covers the others.
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.path))
        .max_by_key(|mount| mount.path.components().count())
}

/// Undoes the octal escapes that the kernel writes for space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let digits = after.get(..3).unwrap_or_default();
        if let Ok(byte @ 0..0x80) = u8::from_str_radix(digits, 8) {
            plain.push(char::from(byte));
            rest = &after[3..];
        } else {
            plain.push('\\');
            rest = after;
        }
    }
    plain.push_str(rest);
    plain
}

/// What to call a file system that lies on other machines, or `None` for a local one.
pub(super) fn network_name(kind: &str) -> Option<&'static str> {
    let names = [
        ("nfs", "NFS"),
        ("nfs4", "NFS"),
        ("lustre", "Lustre"),
        ("cifs", "SMB"),
        ("smb3", "SMB"),
        ("smbfs", "SMB"),
        ("beegfs", "BeeGFS"),
        ("beegfs_nodev", "BeeGFS"),
        ("gpfs", "IBM Storage Scale (GPFS)"),
        ("ceph", "CephFS"),
        ("fuse.ceph", "CephFS"),
        ("fuse.ceph-fuse", "CephFS"),
        ("fuse.glusterfs", "GlusterFS"),
        ("fuse.sshfs", "SSHFS"),
        ("fuse.s3fs", "S3"),
        ("fuse.gcsfuse", "Google Cloud Storage"),
        ("fuse.juicefs", "JuiceFS"),
        ("fuse.cvmfs2", "CernVM-FS"),
        ("wekafs", "WEKA"),
        ("panfs", "PanFS"),
        ("pvfs2", "OrangeFS"),
        ("afs", "AFS"),
        ("9p", "9P, a directory of the virtual machine's host"),
        (
            "virtiofs",
            "virtiofs, a directory of the virtual machine's host",
        ),
    ];
    names
        .into_iter()
        .find_map(|(known, name)| (known == kind).then_some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw,discard
25 22 0:5 / /dev rw - devtmpfs devtmpfs rw
30 22 0:40 / /home/a\\040b rw,nosuid - nfs4 server:/home rw,vers=4.2
31 22 0:41 / /tmp rw - tmpfs tmpfs rw
32 31 0:42 / /tmp ro,nodev master:1 propagate_from:2 - ramfs ramfs ro
nonsense
";

    #[test]
    fn the_deepest_and_last_mount_is_the_one_that_counts() {
        let mounts = parse(MOUNTINFO);
        assert_eq!(mounts.len(), 5);
        let table = [
            ("/home/a b/x", "nfs4", "/home/a b"),
            ("/home/a", "ext4", "/"),
            ("/tmpfile", "ext4", "/"),
            ("/dev/fuse", "devtmpfs", "/dev"),
            ("/tmp/x", "ramfs", "/tmp"),
        ];
        for (path, kind, mounted) in table {
            let found = of(&mounts, Path::new(path)).unwrap();
            assert_eq!(
                (found.kind.as_str(), found.path.to_str().unwrap()),
                (kind, mounted),
                "{path}"
            );
        }
    }

    #[test]
    fn escapes_of_the_kernel_are_undone() {
        assert_eq!(unescape("a\\040b\\134c\\012"), "a b\\c\n");
        assert_eq!(unescape("\\04"), "\\04");
        assert_eq!(unescape("\\ü12\\999"), "\\ü12\\999");
    }

    #[test]
    fn file_systems_of_other_machines_have_names() {
        assert_eq!(network_name("nfs4"), Some("NFS"));
        assert_eq!(network_name("lustre"), Some("Lustre"));
        assert_eq!(network_name("ext4"), None);
        assert_eq!(network_name("fuse.fuse-overlayfs"), None);
    }
}
