//! The OCI runtime spec of an execution: a pure function of the request and of what the host offers.
//!
//! What libcontainer is told here is deliberately little. The root file system is already mounted when it is called;
//! cgroups, seccomp, the program's own user and its limits are set later by the container's first process (see
//! [`guest`](crate::guest)). Rules for calling libcontainer 0.7.0 that this file keeps:
//!
//! - `cgroupsPath` is absolute and not empty. An empty one makes libcontainer, on cgroup v1, kill every process of
//!   the caller's cgroup. [`build`] is the only place that sets it, and `a_cgroups_path_is_always_absolute` holds it.
//! - No `resources` (they would be applied to a cgroup that is not ours), no `seccomp` (it would be compiled anew on
//!   each start, and is silently ignored without libseccomp), no `oomScoreAdj` (it is written to the caller), no hooks.
//! - `HOME` and `PATH` are always set: without `HOME` libcontainer asks the image's NSS modules for it.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxIdMappingBuilder,
    LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder, ProcessBuilder, RootBuilder,
    Spec, SpecBuilder, UserBuilder,
};

use crate::request::{Network, Request};

/// Paths of `/proc` that tell about the host or reach into it, as Docker masks them.
pub(crate) const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/pagetypeinfo",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
];

/// Paths of `/proc` that are settings, as Docker protects them; `/proc/sys` is made read-only by the container's first
/// process, once it has written a setting there. `/proc/1` is that process, sbxrt's own with the program's id on the host:
/// its place with the scheduler and the OOM killer is a setting too. All its names (`task/1`, `..`) lead through this path.
const READ_ONLY: &[&str] = &[
    "/proc/1",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sysrq-trigger",
];

/// The unit of `kernel.shmall`. System V shared memory belongs to no process and to no file system, so only this
/// setting of the IPC namespace bounds it: to as much as `/dev/shm`.
const PAGE_BYTES: u64 = 4096;

/// Builds the spec that libcontainer gets for `request`, whose root file system is mounted on `root`.
///
/// # Errors
///
/// Fails only where oci-spec refuses a value; none that is used here is one.
pub(crate) fn build(request: &Request, root: &Path) -> Result<Spec, OciSpecError> {
    let mapping = || {
        LinuxIdMappingBuilder::default()
            .container_id(0_u32)
            .host_id(0_u32)
            .size(1_u32)
            .build()
    };
    let mut namespaces = vec![
        LinuxNamespaceType::User,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
    ];
    // For the container's first process until it has started the program: to map root of this user namespace into the
    // program's own (Linux 5.12 asks for CAP_SETFCAP), and to forbid user namespaces below that.
    let mut capabilities = HashSet::from([
        Capability::Setfcap,
        Capability::SysAdmin,
        Capability::SysResource,
    ]);
    if request.network == Network::None {
        namespaces.push(LinuxNamespaceType::Network);
        // To bring the loopback interface up.
        capabilities.insert(Capability::NetAdmin);
    }
    let linux = LinuxBuilder::default()
        .uid_mappings(vec![mapping()?])
        .gid_mappings(vec![mapping()?])
        .namespaces(
            namespaces
                .into_iter()
                .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
                .collect::<Result<Vec<_>, _>>()?,
        )
        .cgroups_path(format!("/sbxrt/{}", request.id))
        .masked_paths(
            MASKED
                .iter()
                .copied()
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        )
        .sysctl(sysctls(request.limits.shm_bytes))
        .readonly_paths(
            READ_ONLY
                .iter()
                .copied()
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        )
        .build()?;
    // oci-spec's default asks for CPU shares and devices; see the rules above.
    let mut linux = linux;
    linux.set_resources(None);

    let mut env = request.process.env.clone();
    for (name, default) in [("PATH", crate::DEFAULT_PATH), ("HOME", "/")] {
        if !env
            .iter()
            .any(|entry| entry.split('=').next() == Some(name))
        {
            env.push(format!("{name}={default}"));
        }
    }
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(UserBuilder::default().uid(0_u32).gid(0_u32).build()?)
        .args(request.process.args.clone())
        .env(env)
        .cwd(request.process.cwd.clone())
        .no_new_privileges(true)
        .capabilities(
            LinuxCapabilitiesBuilder::default()
                .bounding(capabilities.clone())
                .effective(capabilities.clone())
                .permitted(capabilities)
                .inheritable(HashSet::new())
                .ambient(HashSet::new())
                .build()?,
        )
        .rlimits(Vec::new())
        .build()?;

    SpecBuilder::default()
        .version("1.0.2")
        .root(
            RootBuilder::default()
                .path(root)
                .readonly(request.read_only)
                .build()?,
        )
        .mounts(mounts()?)
        .hostname(request.hostname.clone())
        .process(process)
        .linux(linux)
        .annotations(HashMap::from([
            ("sbxrt.user".to_owned(), request.process.user.clone()),
            ("sbxrt.network".to_owned(), request.network.to_string()),
        ]))
        .build()
}

/// Settings of the container's IPC namespace.
fn sysctls(shm_bytes: Option<u64>) -> HashMap<String, String> {
    let mut settings = HashMap::from([
        // Semaphores and messages are the kernel's memory, which belongs to no process.
        ("kernel.sem".to_owned(), "250 8000 32 128".to_owned()),
        ("kernel.msgmni".to_owned(), "128".to_owned()),
        ("kernel.msgmnb".to_owned(), "16384".to_owned()),
    ]);
    if let Some(bytes) = shm_bytes {
        let pages = (bytes / PAGE_BYTES).max(1);
        settings.insert("kernel.shmall".to_owned(), pages.to_string());
    }
    settings
}

/// What can only be mounted in the container's own pid namespace. Everything else is mounted before libcontainer is called,
/// or, in the container's own IPC namespace, by its [first process](crate::guest): each mount costs libcontainer some eighty
/// system calls, because it must expect that somebody exchanges what lies on the way.
///
/// There is no sysfs: `/sys` is an empty directory. It tells about the host's hardware, is the way to cgroups and
/// firmware, and cannot be mounted inside another container or with the host's network.
///
/// `/proc` is whole, but for what is masked. With `subset=pid` there would be no `/proc/meminfo`, `cpuinfo`, `uptime`,
/// `mounts`, `sys`: free, uptime, vmstat, lscpu, sysctl and whoever reads `/proc/mounts` or
/// `/proc/sys/kernel/random/uuid` fail then (tried on Debian 12; Python, Node.js, Java, Perl, gcc and git go on). Nothing in
/// it tells of other users: processes, locks, network, System V objects and keys are those of the sandbox's namespaces.
/// `hidepid` would hide the first process alone, which is not dumpable, and shut off by Landlock.
fn mounts() -> Result<Vec<Mount>, OciSpecError> {
    let proc = MountBuilder::default()
        .destination("/proc")
        .typ("proc")
        .source("proc")
        .options(["nosuid", "noexec", "nodev"].map(str::to_owned).to_vec())
        .build()?;
    Ok(vec![proc])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Limits, Process, Root};

    fn request(network: Network) -> Request {
        Request {
            id: "cafe".to_owned(),
            root: Root::Host,
            read_only: true,
            upper: None,
            emulate_root: false,
            seccomp: crate::seccomp::Policy::Default,
            mounts: Vec::new(),
            process: Process {
                args: vec!["/bin/true".to_owned()],
                env: vec!["PATH=/bin".to_owned()],
                cwd: "/".into(),
                user: "1000".to_owned(),
                terminal: None,
                rlimits: Vec::new(),
            },
            hostname: "box".to_owned(),
            network,
            limits: Limits::default(),
            files: Vec::new(),
            outputs: crate::Outputs::default(),
            require: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn the_spec_of_a_closed_sandbox() {
        let spec = build(&request(Network::None), Path::new("/rootfs")).unwrap();
        let mut value = serde_json::to_value(spec).unwrap();
        for (_, set) in value["process"]["capabilities"].as_object_mut().unwrap() {
            // oci-spec keeps them in a hash set.
            set.as_array_mut().unwrap().sort_by_key(ToString::to_string);
        }
        insta::with_settings!({ sort_maps => true }, { insta::assert_json_snapshot!(value) });
    }

    #[test]
    fn the_hosts_network_takes_away_the_namespace() {
        let spec = build(&request(Network::Host), Path::new("/rootfs")).unwrap();
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        assert!(
            namespaces
                .iter()
                .all(|namespace| namespace.typ() != LinuxNamespaceType::Network)
        );
    }

    #[test]
    fn a_cgroups_path_is_always_absolute() {
        for id in ["a", "..", ""] {
            let spec = build(
                &Request {
                    id: id.to_owned(),
                    ..request(Network::None)
                },
                Path::new("/"),
            )
            .unwrap();
            let path = spec
                .linux()
                .as_ref()
                .unwrap()
                .cgroups_path()
                .clone()
                .unwrap();
            assert!(
                path.starts_with("/sbxrt") && path != Path::new("/"),
                "{id:?}: {path:?}"
            );
        }
    }

    #[test]
    fn libcontainer_gets_nothing_that_it_would_do_badly() {
        let spec = build(&request(Network::None), Path::new("/rootfs")).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.resources().is_none() && linux.seccomp().is_none());
        let process = spec.process().as_ref().unwrap();
        assert!(process.oom_score_adj().is_none() && spec.hooks().is_none());
        let env = process.env().clone().unwrap();
        assert!(
            ["HOME=", "PATH="]
                .iter()
                .all(|name| env.iter().any(|entry| entry.starts_with(name)))
        );
    }
}
