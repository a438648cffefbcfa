//! The file system that a program sees as `/`, assembled in the builder's own mount namespace before libcontainer is
//! called: an overlay of the image's layers under a bounded scratch space, then the mounts of the request, then `/dev`.
//!
//! Everything lies in one tmpfs that covers a directory of the host in this namespace only and vanishes with it:
//!
//! ```text
//! BASE/upper BASE/work     what the program writes; the size of the tmpfs is the scratch limit (see `overlay`)
//! BASE/top                 the topmost layer of the image: directories that every container needs
//! BASE/root                the assembled file system
//! BASE/bundle BASE/state   what libcontainer reads and writes
//! ```
//!
//! Sources are opened before BASE is covered, so it does not matter where on the host they are. Targets are resolved
//! by descriptor with `openat2(RESOLVE_IN_ROOT)`: a symbolic link of the image stays inside the image.

use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, fstat, mkdirat};

use crate::error::Failure;
use crate::overlay::{self, KEEP, Upper, open_layer};
use crate::request::{Mount, MountSource, Network, Request, Root, inodes_for};
use crate::sys;

pub(crate) const STEP: &str = "assemble the root file system";

/// Files and directories of the host's `/etc` that programs need and that hold no secret.
const HOST_ETC: &[&str] = &[
    "alternatives",
    "ca-certificates",
    "fonts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "magic",
    "mime.types",
    "nsswitch.conf",
    "os-release",
    "perl",
    "pki/tls/certs",
    "protocols",
    "python3",
    "python3.11",
    "python3.12",
    "python3.13",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "timezone",
];

/// Places that libcontainer mounts over, so that a mount of the request there would not be seen.
const RESERVED: &[&str] = &["/proc", "/sys", "/dev"];

/// An assembled root file system.
#[derive(Debug)]
pub(crate) struct Assembled {
    /// Where it is mounted.
    pub(crate) root: PathBuf,
    /// An empty directory for `config.json`.
    pub(crate) bundle: PathBuf,
    /// An empty directory for libcontainer's state.
    pub(crate) state: PathBuf,
    /// The same mounts once more, where something is to be collected when the container is gone.
    pub(crate) kept: Option<OwnedFd>,
}

/// A mount whose source is open.
struct Prepared<'a> {
    mount: &'a Mount,
    tree: Option<OwnedFd>,
}

/// Assembles the root file system of `request`. The caller must be in a mount namespace of its own, single-threaded,
/// with `CAP_SYS_ADMIN` over it. With `keeps`, outputs may be asked for later.
pub(crate) fn assemble(request: &Request, keeps: bool) -> Result<Assembled, Failure> {
    let prepared = request
        .mounts
        .iter()
        .map(prepare)
        .collect::<Result<Vec<_>, _>>()?;
    if request.upper.is_some() && (request.read_only || request.root == Root::Host) {
        return Err(Failure::reason(
            KEEP,
            "root file system",
            "it is read-only, or host:, which is not made of layers",
        ));
    }
    let upper = request
        .upper
        .as_deref()
        .map(|upper| Upper::open(upper, &request.id))
        .transpose()?;
    let lower = match &request.root {
        Root::Layers(layers) => layers
            .iter()
            .map(|layer| open_layer(layer))
            .collect::<Result<Vec<_>, _>>()?,
        Root::Host => Vec::new(),
    };
    let host = match &request.root {
        Root::Host => host_trees()?,
        Root::Layers(_) => Vec::new(),
    };

    let base = cover(
        request.limits.scratch_bytes,
        request.limits.scratch_inode_bound(),
    )?;
    let mut assembled = Assembled {
        root: base.join("root"),
        bundle: base.join("bundle"),
        state: base.join("state"),
        kept: None,
    };
    for directory in [&assembled.root, &assembled.bundle, &assembled.state] {
        make_directory(directory, 0o755)?;
    }
    match &request.root {
        Root::Layers(_) => match upper {
            None => overlay::mount_scratch(&base, &assembled.root, lower, request.network)?,
            Some(upper) => {
                let points = mount_points(&prepared)?;
                upper.mount(&base, &assembled.root, lower, &points, request.network)?;
            }
        },
        Root::Host => {
            bind_itself(&assembled.root)?;
            fill_host(&assembled.root, &host)?;
        }
    }
    let root = open(
        &assembled.root,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| Failure::new(STEP, assembled.root.display().to_string(), error))?;

    mount_network_files(&base, root.as_fd(), request)?;
    if request.read_only {
        // As a tmpfs mount it would not count towards the scratch limit.
        let scratch = base.join("tmp");
        make_directory(&scratch, 0o1777)?;
        attach_at(
            root.as_fd(),
            &open_tree_at(&scratch, false)?,
            Path::new("/tmp"),
            true,
        )?;
    }
    for Prepared { mount, tree } in &prepared {
        match (tree, &mount.source) {
            (Some(tree), _) => {
                let is_directory = is_directory(tree.as_fd())?;
                attach_at(root.as_fd(), tree, &mount.destination, is_directory)?;
            }
            (None, MountSource::Tmpfs(bytes)) => {
                mount_tmpfs(root.as_fd(), &mount.destination, *bytes, mount.read_only)?;
            }
            (None, MountSource::Bind(_) | MountSource::Beneath { .. }) => {}
        }
    }
    ensure(root.as_fd(), &request.process.cwd, true).map_err(|error| {
        Failure::new(
            "make the working directory",
            request.process.cwd.display().to_string(),
            error,
        )
    })?;
    if keeps || !request.outputs.paths.is_empty() {
        let failed = |error| Failure::new(STEP, "keep the outputs", error);
        assembled.kept = Some(sys::clone_tree(root.as_fd(), c"", true).map_err(failed)?);
    }
    // Last of all: links of the image may have led a volume there, and libcontainer makes files where /dev is.
    mount_devices(root.as_fd(), request.limits.shm_bytes)?;
    Ok(assembled)
}

/// Where the request's mounts go, and whether they are directories.
fn mount_points<'a>(prepared: &[Prepared<'a>]) -> Result<Vec<(&'a Path, bool)>, Failure> {
    let point = |Prepared { mount, tree }: &Prepared<'a>| {
        let directory = tree
            .as_ref()
            .map_or(Ok(true), |tree| is_directory(tree.as_fd()))?;
        Ok((mount.destination.as_path(), directory))
    };
    prepared.iter().map(point).collect()
}

fn prepare(mount: &Mount) -> Result<Prepared<'_>, Failure> {
    let destination = mount.destination.display().to_string();
    let refuse = |reason: &str| Failure::reason("mount a volume", destination.clone(), reason);
    if !mount.destination.is_absolute() {
        return Err(refuse("the path inside must be absolute"));
    }
    if mount
        .destination
        .components()
        .any(|part| part == Component::ParentDir)
    {
        return Err(refuse("the path inside must not contain '..'"));
    }
    if mount.destination == Path::new("/") {
        return Err(refuse(
            "the root file system itself cannot be replaced; use dir:PATH as the image",
        ));
    }
    if RESERVED
        .iter()
        .any(|reserved| mount.destination.starts_with(reserved))
    {
        return Err(refuse("/proc, /sys and /dev belong to the sandbox"));
    }
    let tree = match &mount.source {
        MountSource::Tmpfs(_) => None,
        MountSource::Bind(source) => {
            let here = open(".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(|error| Failure::new(OPEN, ".", error))?;
            Some(open_volume(
                here.as_fd(),
                source,
                ResolveFlag::empty(),
                mount,
            )?)
        }
        MountSource::Beneath { directory, path } => {
            let failed = |error| Failure::new(OPEN, directory.display().to_string(), error);
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let above = open(directory, flags, Mode::empty()).map_err(failed)?;
            let beneath = ResolveFlag::RESOLVE_BENEATH;
            Some(open_volume(above.as_fd(), path, beneath, mount)?)
        }
    };
    Ok(Prepared { mount, tree })
}

const OPEN: &str = "open a volume";

/// Opens the source of a volume and clones its mount. The path is resolved once: what is looked at here is what is mounted,
/// whoever exchanges what has its name meanwhile (CVE-2021-25741).
fn open_volume(
    directory: BorrowedFd<'_>,
    path: &Path,
    resolve: ResolveFlag,
    mount: &Mount,
) -> Result<OwnedFd, Failure> {
    let name = || path.display().to_string();
    let failed = |error: io::Error| Failure::new(OPEN, name(), error);
    let refuse = |reason: &str| Failure::reason(OPEN, name(), reason);
    let resolve = resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let source = resolve_path(directory, path, OFlag::O_PATH, resolve).map_err(|error| {
        match error.raw_os_error() {
            Some(libc::EXDEV) => refuse("it leads out of the directory that it is to be below"),
            Some(libc::ELOOP) => refuse(
                "too many links, or one of /proc's, such as /dev/fd/N, which lead elsewhere for every process",
            ),
            _ => failed(error),
        }
    })?;
    let file_system = rustix::fs::fstatfs(&source).map_err(|error| failed(error.into()))?;
    if file_system.f_type == rustix::fs::PROC_SUPER_MAGIC {
        return Err(refuse("/proc shows something else to every process"));
    }
    let found = fstat(&source).map_err(|error| failed(error.into()))?;
    if matches!(found.st_mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK) {
        return Err(refuse(
            "it is a device, and devices are not opened through volumes",
        ));
    }
    // A directory that cannot be entered would only show up as an odd error of the program.
    let same = format!("/proc/self/fd/{}", source.as_raw_fd());
    nix::unistd::access(same.as_str(), nix::unistd::AccessFlags::R_OK)
        .map_err(|error| failed(error.into()))?;
    let tree = sys::clone_tree(source.as_fd(), c"", true).map_err(failed)?;
    let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if mount.read_only {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    sys::restrict_tree(tree.as_fd(), attributes, true).map_err(failed)?;
    Ok(tree)
}

/// Clones the mount of `path`, a host path, as a detached tree.
fn open_tree_at(path: &Path, recursive: bool) -> Result<OwnedFd, Failure> {
    let failed =
        |error: io::Error| Failure::new("open a volume", path.display().to_string(), error);
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
    let here = open(".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|error| failed(error.into()))?;
    sys::clone_tree(here.as_fd(), &name, recursive).map_err(failed)
}

/// Mounts the scratch tmpfs over a directory that every host has, in this mount namespace.
pub(crate) fn cover(bytes: Option<u64>, inodes: Option<u64>) -> Result<PathBuf, Failure> {
    let base = ["/tmp", "/var", "/run", "/mnt"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.is_dir())
        .ok_or_else(|| Failure::reason(STEP, "/tmp", "none of /tmp, /var, /run and /mnt exists"))?;
    let mut options = "mode=0755".to_owned();
    if let Some(bytes) = bytes {
        options = format!("{options},size={bytes}");
    }
    // To tmpfs, 0 is no bound; not to say anything is one, by the memory of the host.
    options = format!("{options},nr_inodes={}", inodes.unwrap_or(0));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("scratch"),
        &base,
        Some("tmpfs"),
        flags,
        Some(options.as_str()),
    )
    .map_err(|error| {
        Failure::new(
            STEP,
            format!("mount(\"tmpfs\", \"{}\", {options:?})", base.display()),
            error,
        )
    })?;
    Ok(base)
}

pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<(), Failure> {
    let failed = |error| Failure::new(STEP, path.display().to_string(), error);
    DirBuilder::new().mode(mode).create(path).map_err(failed)?;
    // The process's umask has no say here.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
}

/// Makes `path` a mount of its own, as libcontainer expects of a root file system.
fn bind_itself(path: &Path) -> Result<(), Failure> {
    mount(
        Some(path),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(|error| {
        Failure::new(
            STEP,
            format!("mount(\"{}\", MS_BIND)", path.display()),
            error,
        )
    })
}

/// What `host:` shows, open and read-only: the path inside, and the detached tree or the link's target.
enum HostEntry {
    Tree(PathBuf, OwnedFd),
    Link(PathBuf, PathBuf),
}

fn host_trees() -> Result<Vec<HostEntry>, Failure> {
    let mut entries = Vec::new();
    let top = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"].map(PathBuf::from);
    let etc = HOST_ETC.iter().map(|name| Path::new("etc").join(name));
    for name in top.into_iter().chain(etc) {
        let path = Path::new("/").join(&name);
        let Ok(metadata) = path.symlink_metadata() else {
            continue;
        };
        if metadata.is_symlink() {
            let target = fs::read_link(&path)
                .map_err(|error| Failure::new(STEP, path.display().to_string(), error))?;
            entries.push(HostEntry::Link(name, target));
        } else {
            let tree = open_tree_at(&path, true)?;
            let attributes =
                libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
            sys::restrict_tree(tree.as_fd(), attributes, true)
                .map_err(|error| Failure::new(STEP, path.display().to_string(), error))?;
            entries.push(HostEntry::Tree(name, tree));
        }
    }
    Ok(entries)
}

fn fill_host(root: &Path, entries: &[HostEntry]) -> Result<(), Failure> {
    for (directory, mode) in [
        ("etc", 0o755),
        ("home", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("run", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("var", 0o755),
        ("var/tmp", 0o1777),
    ] {
        make_directory(&root.join(directory), mode)?;
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
    let group = "root:x:0:\nnogroup:x:65534:\n";
    for (file, contents) in [("etc/passwd", passwd), ("etc/group", group)] {
        fs::write(root.join(file), contents).map_err(|error| Failure::new(STEP, file, error))?;
    }
    let descriptor = open(
        root,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| Failure::new(STEP, root.display().to_string(), error))?;
    for entry in entries {
        match entry {
            HostEntry::Link(name, target) => {
                let link = root.join(name);
                if let Some(parent) = link.parent() {
                    fs::create_dir_all(parent)
                        .map_err(|error| Failure::new(STEP, parent.display().to_string(), error))?;
                }
                symlink(target, &link)
                    .map_err(|error| Failure::new(STEP, link.display().to_string(), error))?;
            }
            HostEntry::Tree(name, tree) => {
                let is_directory = is_directory(tree.as_fd())?;
                attach_at(
                    descriptor.as_fd(),
                    tree,
                    &Path::new("/").join(name),
                    is_directory,
                )?;
            }
        }
    }
    Ok(())
}

/// `/etc/hosts`, `/etc/hostname` and, with the host's network, `/etc/resolv.conf`: what Docker provides in every
/// container. Without them `localhost` has no address in many images.
fn mount_network_files(
    base: &Path,
    root: BorrowedFd<'_>,
    request: &Request,
) -> Result<(), Failure> {
    for name in network_files(request.network) {
        let hostname = &request.hostname;
        let contents = match (*name, request.network) {
            ("hostname", _) => format!("{hostname}\n"),
            ("hosts", Network::None) => format!(
                "127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
            ),
            // A host without the file has nothing to share.
            _ => fs::read_to_string(Path::new("/etc").join(name)).unwrap_or_default(),
        };
        let file = base.join(name);
        let destination = Path::new("/etc").join(name);
        let failed = |error| Failure::new(STEP, destination.display().to_string(), error);
        fs::write(&file, contents).map_err(failed)?;
        let tree = open_tree_at(&file, false)?;
        attach_at(root, &tree, &destination, false)?;
    }
    Ok(())
}

pub(crate) fn network_files(network: Network) -> &'static [&'static str] {
    match network {
        Network::None => &["hostname", "hosts"],
        Network::Host => &["hostname", "hosts", "resolv.conf"],
    }
}

/// Mounts `/dev`: symbolic links and device nodes must not land in the image, so it is always a file system of its own.
/// libcontainer binds the devices into it, and the container's first process mounts the message queues.
fn mount_devices(root: BorrowedFd<'_>, shm_bytes: Option<u64>) -> Result<(), Failure> {
    const DEVICES: &str = "mount /dev";
    let failed = |error: io::Error| Failure::new(DEVICES, "/dev", error);
    let mount_on = |target: &OwnedFd, kind: &str, flags: MsFlags, options: &str| {
        let path = format!("/proc/self/fd/{}", target.as_raw_fd());
        mount(Some(kind), path.as_str(), Some(kind), flags, Some(options))
            .map_err(|error| Failure::new(DEVICES, format!("mount({kind:?}, {options:?})"), error))
    };
    let below = ensure(root, Path::new("/dev"), true).map_err(failed)?;
    refuse_root(root, below.as_fd()).map_err(failed)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = "mode=755,size=1024k,nr_inodes=1024";
    mount_on(&below, "tmpfs", flags | MsFlags::MS_STRICTATIME, options)?;
    // What is mounted there, and no longer what was there before.
    let devices = open_in(root, Path::new("/dev"), OFlag::O_PATH).map_err(failed)?;
    let directory = |name: &str| {
        mkdirat(&devices, name, Mode::from_bits_retain(0o755))?;
        openat(
            &devices,
            name,
            OFlag::O_PATH | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
    };
    let terminals = directory("pts").map_err(|error| failed(error.into()))?;
    let options = "newinstance,ptmxmode=0666,mode=0620,max=64";
    mount_on(&terminals, "devpts", flags, options)?;
    let mut options = "mode=1777".to_owned();
    if let Some(bytes) = shm_bytes {
        options = format!("{options},size={bytes},nr_inodes={}", inodes_for(bytes));
    }
    let memory = directory("shm").map_err(|error| failed(error.into()))?;
    mount_on(&memory, "tmpfs", flags | MsFlags::MS_NODEV, &options)?;
    directory("mqueue").map_err(|error| failed(error.into()))?;
    Ok(())
}

fn mount_tmpfs(
    root: BorrowedFd<'_>,
    destination: &Path,
    bytes: u64,
    read_only: bool,
) -> Result<(), Failure> {
    let failed =
        |error: io::Error| Failure::new("mount a tmpfs", destination.display().to_string(), error);
    let target = ensure(root, destination, true).map_err(failed)?;
    refuse_root(root, target.as_fd()).map_err(failed)?;
    let options = format!("mode=1777,size={bytes},nr_inodes={}", inodes_for(bytes));
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    let path = format!("/proc/self/fd/{}", target.as_raw_fd());
    mount(
        Some("tmpfs"),
        path.as_str(),
        Some("tmpfs"),
        flags,
        Some(options.as_str()),
    )
    .map_err(|error| failed(error.into()))
}

fn attach_at(
    root: BorrowedFd<'_>,
    tree: &OwnedFd,
    destination: &Path,
    directory: bool,
) -> Result<(), Failure> {
    let failed =
        |error: io::Error| Failure::new("mount a volume", destination.display().to_string(), error);
    let target = ensure(root, destination, directory).map_err(failed)?;
    refuse_root(root, target.as_fd()).map_err(failed)?;
    sys::attach_tree(tree.as_fd(), target.as_fd()).map_err(failed)
}

/// Refuses to mount over the root file system itself, where a link of the image leads to it.
fn refuse_root(root: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let (root, target) = (fstat(root)?, fstat(target)?);
    if (root.st_dev, root.st_ino) == (target.st_dev, target.st_ino) {
        return Err(io::Error::other(
            "the image makes this path a link to the root directory",
        ));
    }
    Ok(())
}

fn is_directory(fd: BorrowedFd<'_>) -> Result<bool, Failure> {
    let found = fstat(fd).map_err(|error| Failure::new(STEP, "stat of a volume", error))?;
    Ok(found.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// Opens `path` inside `root`, making what is missing: directories on the way, and at its end a directory or an
/// empty file.
pub(crate) fn ensure(root: BorrowedFd<'_>, path: &Path, directory: bool) -> io::Result<OwnedFd> {
    match open_in(root, path, OFlag::O_PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    let mut reached = PathBuf::from("/");
    let mut components = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .peekable();
    while let Some(part) = components.next() {
        let parent = open_in(root, &reached, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let name = part.as_os_str();
        let made = if components.peek().is_some() || directory {
            mkdirat(&parent, name, Mode::from_bits_retain(0o755))
        } else {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            openat(&parent, name, flags, Mode::from_bits_retain(0o644)).map(drop)
        };
        match made {
            Err(nix::errno::Errno::EEXIST) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
        reached.push(name);
    }
    open_in(root, path, OFlag::O_PATH)
}

/// Opens `path` with every symbolic link on it resolved inside `root`. `flags` contain `O_PATH`.
pub(crate) fn open_in(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    match resolve_path(root, path, flags, resolve) {
        // Every kernel that has mount_setattr has openat2; but the filter of a container around this one may not know it.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            walk_in(root, path, flags)
        }
        result => result,
    }
}

/// As [`open_in`], step by step.
fn walk_in(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let root = pathrs::RootRef::from_fd(root);
    let handle = if flags.contains(OFlag::O_NOFOLLOW) {
        root.resolve_nofollow(path)
    } else {
        root.resolve(path)
    };
    match handle {
        Ok(handle) => Ok(handle.into()),
        Err(error) => Err(match error.kind() {
            pathrs::error::ErrorKind::OsError(Some(errno)) => io::Error::from_raw_os_error(errno),
            _ => io::Error::other(error),
        }),
    }
}

/// How often a path is resolved again where something was renamed on the way. Somebody who does nothing else can make a
/// run fail with `EAGAIN`, but not wait for ever.
const TRIES: usize = 1000;

fn resolve_path(
    directory: BorrowedFd<'_>,
    path: &Path,
    flags: OFlag,
    resolve: ResolveFlag,
) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(resolve);
    let mut result = openat2(directory, path, how);
    for _ in 0..TRIES {
        match result {
            Err(nix::errno::Errno::EAGAIN) => result = openat2(directory, path, how),
            other => return Ok(other?),
        }
    }
    Ok(result?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_an_image_stay_inside_it() {
        let directory = std::env::temp_dir().join(format!("sbxrt-rootfs-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        symlink("/../../../../tmp", directory.join("escape")).unwrap();
        let root = open(
            &directory,
            OFlag::O_PATH | OFlag::O_DIRECTORY,
            Mode::empty(),
        )
        .unwrap();
        ensure(root.as_fd(), Path::new("/escape/made"), true).unwrap_err();
        fs::create_dir(directory.join("tmp")).unwrap();
        ensure(root.as_fd(), Path::new("/escape/made/file"), false).unwrap();
        assert!(directory.join("tmp/made/file").is_file());
        // Step by step it is the same file.
        let path = Path::new("/escape/../escape/made/file");
        let inode = |file: OwnedFd| fstat(file).unwrap().st_ino;
        assert_eq!(
            inode(walk_in(root.as_fd(), path, OFlag::O_PATH).unwrap()),
            inode(open_in(root.as_fd(), path, OFlag::O_PATH).unwrap())
        );
        let link = walk_in(
            root.as_fd(),
            Path::new("/escape"),
            OFlag::O_PATH | OFlag::O_NOFOLLOW,
        );
        assert_eq!(
            fstat(link.unwrap()).unwrap().st_mode & libc::S_IFMT,
            libc::S_IFLNK
        );
        let missing = walk_in(root.as_fd(), Path::new("/escape/x"), OFlag::O_PATH);
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn impossible_destinations_are_refused_before_anything_is_opened() {
        for destination in ["relative", "/", "/a/../b", "/proc/x", "/dev/shm"] {
            let mount = Mount {
                destination: destination.into(),
                source: MountSource::Bind("/nonexistent".into()),
                read_only: true,
            };
            let failure = prepare(&mount).err().unwrap();
            assert_eq!(failure.step, "mount a volume", "{destination}");
        }
    }

    #[test]
    fn a_source_is_what_its_path_means_to_everybody_or_refused() {
        let directory = std::env::temp_dir().join(format!("sbxrt-source-{}", std::process::id()));
        fs::create_dir_all(directory.join("shared/inside")).unwrap();
        symlink("/etc", directory.join("shared/absolute")).unwrap();
        symlink("../..", directory.join("shared/inside/up")).unwrap();
        symlink("inside", directory.join("shared/beside")).unwrap();
        let refusal = |source: MountSource| {
            let mount = Mount {
                destination: "/x".into(),
                source,
                read_only: true,
            };
            prepare(&mount).err().unwrap()
        };
        for path in [
            "/proc/self/root",
            "/dev/fd/0",
            "/proc/self/cwd",
            "/proc",
            "/dev/null",
            "/nonexistent",
        ] {
            let failure = refusal(MountSource::Bind(path.into()));
            assert_eq!(failure.step, OPEN, "{failure}");
            assert!(
                failure.errno.is_none() || path == "/nonexistent",
                "{failure}"
            );
        }
        for path in ["absolute", "inside/up/x", "..", "/etc", "nothing"] {
            let failure = refusal(MountSource::Beneath {
                directory: directory.join("shared"),
                path: path.into(),
            });
            let leads_out = failure.reason.contains("leads out");
            assert_eq!(leads_out, path != "nothing", "{path}: {failure}");
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
