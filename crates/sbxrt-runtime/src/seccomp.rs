//! System call filters: from a policy in Docker's format to a program that the kernel runs, without libseccomp.
//!
//! [`Profile`] is the policy, [`compile()`] translates it, [`install`] puts the calling process under it. sbxrt's own
//! policy is `seccomp/default.json`; [`default_program`] is that policy compiled by the build, so that a run pays only
//! for handing it to the kernel. Installing is the last step before `execve`; if it fails, the run fails.
//!
//! # The default policy
//!
//! It is Moby's list for a container without capabilities, narrowed for code that nobody trusts:
//!
//! - What Moby's list does not name gets ENOSYS, not EPERM: a libc that tries a new system call then falls back to the
//!   old one. Killing the process instead would break programs that only probe.
//! - What is known to be dangerous and needless inside gets EPERM, also where Moby allows it: `ptrace`, `io_uring`,
//!   keys, file handles, namespaces and mounts among them.
//! - Sockets of families other than UNIX, INET and INET6 get EAFNOSUPPORT, as on a kernel built without them, because
//!   that is the refusal that programs expect: with EPERM, the tools of shadow (`useradd`, `su`) stop at "Cannot open
//!   audit interface", with EAFNOSUPPORT they go on without audit. Route netlink is refused too. glibc's `getaddrinfo`
//!   does without it (it then takes both IP versions to be present), and asyncio and multiprocessing never ask. What is
//!   lost is the list of interfaces (`getifaddrs`, `if_nameindex`, `ip`): in a sandbox without network that is one
//!   loopback, and rtnetlink is a large and often broken door to pay for it.
//! - Of their protocols TCP (also multipath), UDP and ICMP are left; asking for another would load its module.
//! - The terminal cannot be typed into (`TIOCSTI`, `TIOCLINUX`) or given another line discipline. The command of `ioctl`
//!   is compared by its low 32 bits, since the kernel drops the others.
//! - Process 1 is sbxrt's own; its limits, processors and priority are not the program's to change, nor are those of all
//!   processes of a user (`PRIO_USER`), which it is one of.
//! - No asynchronous I/O of the old kind (`io_setup`; ENOSYS, as on a kernel built without it): `fs.aio-max-nr` is one number
//!   for all users of a machine. Databases that use it fall back to threads; the C library's `aio_read` is threads already.
//! - `RLIMIT_CORE` stays 1, the one value with which the kernel writes no core, not even to a handler on the host. A
//!   program that sets it is told that it has.
//! - No leases (`F_SETLEASE`), which would hold up whoever opens a shared file on the host, and no pipes beyond 64 KiB.
//!   `flock` stays, because too much depends on it: who shares a volume with a sandbox shares its locks.
//! - System calls of a foreign ABI (i386, x32, 32-bit Arm) end the process: the numbers mean other calls there.
//!
//! # What it costs
//!
//! Measured on the 2-processor machine of the other measurements (Linux 6.18, 201 processes each, medians): handing this
//! program (263 instructions then, 271 now) to the kernel takes 99 µs, a list of one comparison after the other, as libseccomp writes by default, 375-394
//! µs: the kernel runs a new filter once for each system call number to find those that are always allowed. Those it
//! never asks the filter about again, so `getppid` costs the same under both (45 ns more than under none, for entering
//! the slow path at all). A second filter of 12 instructions takes 41 µs; a listener's descriptor takes none.
//!
//! # Root emulation
//!
//! Package managers insist on changing owners and identities, which a user namespace with one id cannot do. For builds,
//! [`root_emulation_program`] is the default policy with those calls answered "success" and nothing done, as in
//! Charliecloud's `--force=seccomp`: it needs no set-up in the image and works for every libc and for static programs.
//! A program that looks whether it worked is not fooled (apt's own sandbox: `APT::Sandbox::User` must be root).
//! Extended attributes are not among the calls: a filter cannot read names, so `security.capability` stays EPERM.
//!
//! The whole list, as compiled for each architecture, is in `seccomp/snapshots`, so that a change of policy is seen in
//! review.
//!
//! # Examples
//!
//! ```
//! use sbxrt_runtime::seccomp::{Architecture, Profile, compile};
//!
//! let profile = Profile::parse(
//!     br#"{
//!         "defaultAction": "SCMP_ACT_ALLOW",
//!         "syscalls": [{ "names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }]
//!     }"#,
//! )?;
//! let program = compile(&profile, Architecture::NATIVE, &[])?;
//! assert!(program.instruction_count() < 20);
//! # Ok::<(), sbxrt_runtime::seccomp::Error>(())
//! ```

mod compile;
mod interpreter;
mod policy;
mod profile;
mod program;
mod sys;
#[cfg(test)]
mod tests;
mod warden;

pub use compile::{Architecture, Host, compile_for};
pub use policy::{Policy, PolicyKind};
pub use profile::{Action, Condition, Error, Filter, KernelVersion, Operator, Profile, Rule};
pub use program::{Instruction, MAX_INSTRUCTIONS, Program};
pub use sys::install;
pub(crate) use warden::{Blocked, OpenFiles, Warden, install as install_under};

/// The default policy as text, for whoever wants to start from it.
pub const DEFAULT_PROFILE: &str = include_str!("seccomp/default.json");

/// The rules of root emulation as text; see [`root_emulation_program`].
pub const ROOT_EMULATION_PROFILE: &str = include_str!("seccomp/root-emulation.json");

/// The default policy for a process without capabilities, compiled for this architecture by the build.
pub fn default_program() -> &'static Program {
    static PROGRAM: Program =
        Program::from_static(include_bytes!(concat!(env!("OUT_DIR"), "/default.bpf")));
    &PROGRAM
}

/// What must be refused for a limit to hold that no cgroup holds, on top of any policy; `None` where nothing must be.
///
/// - `memory_files`: no files in memory. Their pages belong to no process until it maps them, so a watchdog that adds up
///   processes would not see them. They get ENOSYS, as on a kernel before 3.17; programs then use `/tmp` or `/dev/shm`,
///   which are bounded.
/// - `processors`: no change of the set of processors, which is what the limit on them consists of: EPERM.
pub fn limits_program(memory_files: bool, processors: bool) -> Option<&'static Program> {
    static MEMORY_FILES: Program = Program::from_static(include_bytes!(concat!(
        env!("OUT_DIR"),
        "/no-memory-files.bpf"
    )));
    static PROCESSORS: Program = Program::from_static(include_bytes!(concat!(
        env!("OUT_DIR"),
        "/fixed-processors.bpf"
    )));
    static BOTH: Program = Program::from_static(include_bytes!(concat!(
        env!("OUT_DIR"),
        "/no-memory-files-fixed-processors.bpf"
    )));
    match (memory_files, processors) {
        (false, false) => None,
        (true, false) => Some(&MEMORY_FILES),
        (false, true) => Some(&PROCESSORS),
        (true, true) => Some(&BOTH),
    }
}

/// The default policy with root emulation: changes of owners and of identities, and the making of devices, do nothing
/// and report success; `chroot` is left to the kernel. Everything else is as in [`default_program`].
pub fn root_emulation_program() -> &'static Program {
    static PROGRAM: Program = Program::from_static(include_bytes!(concat!(
        env!("OUT_DIR"),
        "/root-emulation.bpf"
    )));
    &PROGRAM
}

/// Translates a profile for a container with the given capabilities in its bounding set, on the running kernel.
///
/// Capabilities are named as in the profile, `CAP_SYS_ADMIN`. What several rules for one system call mean is told at
/// [`compile_for`].
///
/// # Errors
///
/// The profile asks for what cannot be done, is too long, or depends on a kernel version that cannot be read.
pub fn compile(
    profile: &Profile,
    architecture: Architecture,
    granted_capabilities: &[&str],
) -> Result<Program, Error> {
    let kernel = if profile.depends_on_kernel() {
        running_kernel().map_err(Error::KernelVersion)?
    } else {
        KernelVersion { major: 0, minor: 0 }
    };
    compile_for(
        profile,
        &Host {
            architecture,
            capabilities: granted_capabilities,
            kernel,
        },
    )
}

impl Architecture {
    /// The architecture that this was built for.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Self = Self::X86_64;
    /// The architecture that this was built for.
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Self = Self::Aarch64;
}

fn running_kernel() -> std::io::Result<KernelVersion> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    KernelVersion::from_release(&release)
        .ok_or_else(|| std::io::Error::other(format!("release {release:?}")))
}
