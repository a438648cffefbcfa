//! The compiler against a direct reading of the profile, the default policy case by case, and both on a real kernel.

use super::interpreter::Call;
use super::*;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const EAFNOSUPPORT: u32 = 0x0005_0061;
const EPROTONOSUPPORT: u32 = 0x0005_005d;

/// The exit signal of a plain fork, in the flags of clone.
const SIGCHLD: u64 = 17;

const BOTH: [Architecture; 2] = [Architecture::X86_64, Architecture::Aarch64];

fn run(program: &Program, call: &Call) -> u32 {
    interpreter::run(program, call).expect("a program that the kernel takes")
}

fn default_profile() -> Profile {
    Profile::parse(DEFAULT_PROFILE.as_bytes()).unwrap()
}

fn default_for(architecture: Architecture) -> Program {
    compile(&default_profile(), architecture, &[]).unwrap()
}

fn call(architecture: Architecture, number: u32, arguments: [u64; 6]) -> Call {
    Call {
        number,
        audit: architecture.audit(),
        arguments,
    }
}

/// What the default policy says of a system call with these first arguments, the same on both architectures.
fn default_verdict(name: &str, first: &[u64]) -> u32 {
    let mut arguments = [0; 6];
    arguments[..first.len()].copy_from_slice(first);
    let [x86, arm] = BOTH.map(|architecture| {
        let number = architecture.number(name).unwrap();
        run(
            &default_for(architecture),
            &call(architecture, number, arguments),
        )
    });
    assert_eq!(x86, arm, "{name} {first:x?}");
    x86
}

// Direct evaluation: the documented meaning of a profile, written with no thought of speed.

fn evaluate(profile: &Profile, host: &Host<'_>, call: &Call) -> u32 {
    if call.audit != host.architecture.audit()
        || host.architecture == Architecture::X86_64
            && (0x4000_0000..u32::MAX).contains(&call.number)
    {
        return KILL;
    }
    let matching = profile.syscalls.iter().filter(|rule| {
        rule.names
            .iter()
            .any(|name| host.architecture.number(name) == Some(call.number))
            && holds_on(rule, host)
            && holds_for(&rule.args, &call.arguments)
    });
    match matching.min_by_key(|rule| rule.action) {
        Some(rule) => value(rule.action, rule.errno_ret),
        None => value(profile.default_action, profile.default_errno_ret),
    }
}

fn holds_on(rule: &Rule, host: &Host<'_>) -> bool {
    let architecture = match host.architecture {
        Architecture::X86_64 => "amd64",
        Architecture::Aarch64 => "arm64",
    };
    let Rule {
        includes, excludes, ..
    } = rule;
    for capability in &includes.caps {
        if !host
            .capabilities
            .iter()
            .any(|granted| granted == capability)
        {
            return false;
        }
    }
    for capability in &excludes.caps {
        if host
            .capabilities
            .iter()
            .any(|granted| granted == capability)
        {
            return false;
        }
    }
    if excludes.arches.iter().any(|name| name == architecture)
        || !includes.arches.is_empty() && !includes.arches.iter().any(|name| name == architecture)
    {
        return false;
    }
    includes
        .min_kernel
        .is_none_or(|version| version <= host.kernel)
        && excludes
            .min_kernel
            .is_none_or(|version| version > host.kernel)
}

fn holds_for(conditions: &[Condition], arguments: &[u64; 6]) -> bool {
    let holds = |condition: &Condition| {
        let Condition {
            index,
            value,
            value_two,
            op,
        } = *condition;
        let argument = arguments[index as usize];
        match op {
            Operator::NotEqual => argument != value,
            Operator::Less => argument < value,
            Operator::LessOrEqual => argument <= value,
            Operator::Equal => argument == value,
            Operator::GreaterOrEqual => argument >= value,
            Operator::Greater => argument > value,
            Operator::MaskedEqual => argument & value == value_two,
        }
    };
    let mut by_index: BTreeMap<u32, Vec<Operator>> = BTreeMap::new();
    for condition in conditions {
        by_index
            .entry(condition.index)
            .or_default()
            .push(condition.op);
    }
    let together = by_index.values().all(|operators| {
        operators.len() == 1 || operators.iter().all(|&op| op == Operator::NotEqual)
    });
    if together {
        conditions.iter().all(holds)
    } else {
        conditions.iter().any(holds)
    }
}

fn value(action: Action, errno: Option<u32>) -> u32 {
    match action {
        Action::KillProcess => KILL,
        Action::KillThread => 0,
        Action::Trap => 0x0003_0000,
        Action::Errno => 0x0005_0000 + errno.unwrap_or(1),
        Action::Notify => unreachable!("refused by the compiler"),
        Action::Trace => 0x7ff0_0000 + errno.unwrap_or(1),
        Action::Log => 0x7ffc_0000,
        Action::Allow => ALLOW,
    }
}

// The default policy

#[test]
fn a_program_says_what_its_profile_says_of_every_number_and_around_every_constant() {
    for profile in [default_profile(), emulating_profile()] {
        for architecture in BOTH {
            let program = compile(&profile, architecture, &[]).unwrap();
            let host = Host {
                architecture,
                capabilities: &[],
                kernel: KernelVersion { major: 6, minor: 1 },
            };
            let numbers = (0..=600).chain([
                0x3fff_ffff,
                0x4000_0000,
                0x7fff_ffff,
                0x8000_0000,
                u32::MAX - 1,
                u32::MAX,
            ]);
            for number in numbers {
                for arguments in telling_arguments(&profile, architecture, number) {
                    let call = call(architecture, number, arguments);
                    assert_eq!(
                        run(&program, &call),
                        evaluate(&profile, &host, &call),
                        "{call:x?}"
                    );
                }
            }
        }
    }
}

/// Every combination of the values, for each argument that a rule for this system call looks at, between which the rule
/// changes its mind, with clean and with dirty upper halves.
fn telling_arguments(profile: &Profile, architecture: Architecture, number: u32) -> Vec<[u64; 6]> {
    let mut values: [BTreeSet<u64>; 6] = std::array::from_fn(|_| BTreeSet::from([0]));
    let rules = profile.syscalls.iter().filter(|rule| {
        rule.names
            .iter()
            .any(|name| architecture.number(name) == Some(number))
    });
    for condition in rules.flat_map(|rule| &rule.args) {
        let constant = match condition.op {
            Operator::MaskedEqual => condition.value_two,
            _ => condition.value,
        };
        values[condition.index as usize].extend(
            [constant.wrapping_sub(1), constant, constant.wrapping_add(1)]
                .into_iter()
                .flat_map(|value| [value, value ^ 1 << 32, value ^ 1 << 63]),
        );
    }
    values
        .iter()
        .enumerate()
        .fold(vec![[0; 6]], |all, (index, values)| {
            let with = |arguments: &[u64; 6], value: u64| {
                let mut arguments = *arguments;
                arguments[index] = value;
                arguments
            };
            all.iter()
                .flat_map(|arguments| values.iter().map(move |&value| with(arguments, value)))
                .collect()
        })
}

#[test]
fn build_and_crate_compile_the_same_program() {
    assert_eq!(*default_program(), default_for(Architecture::NATIVE));
}

#[test]
fn default_program_is_small() {
    for architecture in BOTH {
        let count = default_for(architecture).instruction_count();
        assert!(
            count <= 288,
            "{count} instructions: loading costs about 0.3 µs for each"
        );
    }
}

#[test]
fn default_profile_holds_for_any_kernel_and_names_only_what_exists() {
    let profile = default_profile();
    assert!(!profile.depends_on_kernel());
    let unknown: Vec<_> = profile
        .syscalls
        .iter()
        .flat_map(|rule| &rule.names)
        .filter(|name| {
            BOTH.iter()
                .all(|architecture| architecture.number(name).is_none())
        })
        .collect();
    assert_eq!(unknown, Vec::<&String>::new());
}

#[test]
fn default_profile_names_a_system_call_in_one_list_only() {
    let mut seen = BTreeSet::new();
    let twice: Vec<_> = default_profile()
        .syscalls
        .into_iter()
        .filter(|rule| rule.args.is_empty())
        .flat_map(|rule| rule.names)
        .filter(|name| !seen.insert(name.clone()))
        .collect();
    assert_eq!(twice, Vec::<String>::new());
}

#[test]
fn default_policy_is_reviewed() {
    for architecture in BOTH {
        let program = default_for(architecture);
        let conditional: BTreeSet<_> = default_profile()
            .syscalls
            .into_iter()
            .filter(|rule| !rule.args.is_empty())
            .flat_map(|rule| rule.names)
            .collect();
        let lines: BTreeSet<_> = names(architecture)
            .into_iter()
            .map(|(name, number)| {
                let verdict = match run(&program, &call(architecture, number, [0; 6])) {
                    _ if conditional.contains(name) => "depends on its arguments",
                    ALLOW => "allowed",
                    EPERM => "EPERM",
                    ENOSYS => "ENOSYS",
                    other => panic!("{name}: {other:#x}"),
                };
                format!("{name}: {verdict}")
            })
            .collect();
        let text: Vec<_> = lines.into_iter().collect();
        insta::assert_snapshot!(format!("{architecture:?}").to_lowercase(), text.join("\n"));
    }
}

// Root emulation

fn emulating_profile() -> Profile {
    default_profile().with(Profile::parse(ROOT_EMULATION_PROFILE.as_bytes()).unwrap())
}

/// The verdict of a call that does nothing and reports success.
const PRETENDED: u32 = 0x0005_0000;

#[test]
fn root_emulation_differs_from_the_default_in_these_calls_alone() {
    for architecture in BOTH {
        let default = default_for(architecture);
        let emulating = compile(&emulating_profile(), architecture, &[]).unwrap();
        let mut different = BTreeMap::new();
        for (name, number) in names(architecture) {
            // S_IFIFO, S_IFCHR, S_IFBLK, S_IFREG and what else rules compare with.
            for argument in [
                0,
                1,
                2,
                16,
                0o010_644,
                0o020_644,
                0o060_644,
                0o100_644,
                0x5412,
                0x1000_0000,
                u64::MAX,
            ] {
                let call = call(architecture, number, [argument; 6]);
                let (before, after) = (run(&default, &call), run(&emulating, &call));
                if before != after {
                    different.insert(name, (before, after));
                }
            }
        }
        let expected: BTreeMap<_, _> = [
            "capset",
            "chown",
            "fchown",
            "fchownat",
            "lchown",
            "mknod",
            "mknodat",
            "setfsgid",
            "setfsuid",
            "setgid",
            "setgroups",
            "setregid",
            "setresgid",
            "setresuid",
            "setreuid",
            "setuid",
        ]
        .into_iter()
        .filter(|name| architecture.number(name).is_some())
        .map(|name| (name, (ALLOW, PRETENDED)))
        .chain([("chroot", (EPERM, ALLOW))])
        .collect();
        assert_eq!(different, expected, "{architecture:?}");
    }
}

#[test]
fn root_emulation_pretends_to_make_devices_and_makes_what_is_none() {
    for architecture in BOTH {
        let program = compile(&emulating_profile(), architecture, &[]).unwrap();
        for (name, index) in [("mknod", 1), ("mknodat", 2)] {
            let Some(number) = architecture.number(name) else {
                continue;
            };
            for (mode, expected) in [
                (0o020_666, PRETENDED),
                (0o060_600, PRETENDED),
                (0o010_644, ALLOW),
                (0o100_644, ALLOW),
                (0o140_755, ALLOW),
                (0o644, ALLOW),
            ] {
                let mut arguments = [0; 6];
                arguments[index] = mode;
                let call = call(architecture, number, arguments);
                assert_eq!(run(&program, &call), expected, "{name} {mode:o}");
            }
        }
    }
}

#[test]
fn build_and_crate_compile_the_same_emulation() {
    let compiled = compile(&emulating_profile(), Architecture::NATIVE, &[]).unwrap();
    assert_eq!(*root_emulation_program(), compiled);
    assert!(compiled.instruction_count() <= 310);
}

/// All system calls of an architecture by the names that profiles use.
fn names(architecture: Architecture) -> Vec<(&'static str, u32)> {
    (0..=600)
        .filter_map(|number| {
            let name = match architecture {
                Architecture::X86_64 => syscalls::x86_64::Sysno::new(number)?.name(),
                Architecture::Aarch64 => match syscalls::aarch64::Sysno::new(number)?.name() {
                    "fstatat" => "newfstatat",
                    name => name,
                },
            };
            Some((name, architecture.number(name)?))
        })
        .collect()
}

#[test]
fn numbers_are_the_kernels() {
    let table = [
        ("read", Some(0), Some(63)),
        ("newfstatat", Some(262), Some(79)),
        ("fstatat", None, None),
        ("open", Some(2), None),
        ("semtimedop_time64", None, None),
        ("clock_gettime64", None, None),
        ("timerfd_settime64", None, None),
        ("clone", Some(56), Some(220)),
        ("pread64", Some(17), Some(67)),
        ("getdents64", Some(217), Some(61)),
        ("io_uring_setup", Some(425), Some(425)),
        ("mseal", Some(462), Some(462)),
        ("no_such_call", None, None),
    ];
    for (name, x86, arm) in table {
        assert_eq!(
            BOTH.map(|architecture| architecture.number(name)),
            [x86, arm],
            "{name}"
        );
    }
}

#[test]
fn socket_families_are_three() {
    for name in ["socket", "socketpair"] {
        for (family, verdict) in [
            (libc::AF_UNSPEC, EAFNOSUPPORT),
            (libc::AF_UNIX, ALLOW),
            (libc::AF_INET, ALLOW),
            (libc::AF_AX25, EAFNOSUPPORT),
            (libc::AF_INET6, ALLOW),
            (libc::AF_NETLINK, EAFNOSUPPORT),
            (libc::AF_PACKET, EAFNOSUPPORT),
            (libc::AF_CAN, EAFNOSUPPORT),
            (libc::AF_TIPC, EAFNOSUPPORT),
            (libc::AF_BLUETOOTH, EAFNOSUPPORT),
            (libc::AF_ALG, EAFNOSUPPORT),
            (libc::AF_VSOCK, EAFNOSUPPORT),
            (libc::AF_XDP, EAFNOSUPPORT),
        ] {
            let family = u64::try_from(family).unwrap();
            assert_eq!(
                default_verdict(name, &[family, 1, 0]),
                verdict,
                "{name} {family}"
            );
            let dirty = family | 1 << 32;
            assert_eq!(
                default_verdict(name, &[dirty, 1, 0]),
                EAFNOSUPPORT,
                "{name} {dirty:#x}"
            );
        }
    }
}

#[test]
fn clone_makes_threads_and_processes_but_no_namespaces() {
    const THREAD: u64 = 0x003d_0f00;
    for flags in [
        17,
        THREAD,
        0x4111, /* vfork */
        THREAD | 0xffff_ffff << 32,
    ] {
        assert_eq!(default_verdict("clone", &[flags]), ALLOW, "{flags:#x}");
    }
    for namespace in [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ] {
        let flags = u64::try_from(namespace).unwrap();
        for flags in [
            flags,
            flags | SIGCHLD,
            flags | THREAD,
            flags | 0xdead << 32,
            flags | 0x7e02_0000,
        ] {
            assert_eq!(default_verdict("clone", &[flags]), EPERM, "{flags:#x}");
        }
    }
    assert_eq!(default_verdict("clone3", &[0, 88]), ENOSYS);
}

#[test]
fn personality_is_linux_or_a_question() {
    for value in [0, 8, 0x20000, 0x20008, 0xffff_ffff] {
        assert_eq!(
            default_verdict("personality", &[value]),
            ALLOW,
            "{value:#x}"
        );
    }
    for value in [
        1,
        7,
        9,
        0x0004_0000,
        0x0040_0000,
        0x20001,
        0xffff_fffe,
        1 << 32,
        u64::MAX,
    ] {
        assert_eq!(
            default_verdict("personality", &[value]),
            EPERM,
            "{value:#x}"
        );
    }
}

#[test]
fn protocols_are_the_usual_ones() {
    for name in ["socket", "socketpair"] {
        for (protocol, verdict) in [
            (0, ALLOW),
            (libc::IPPROTO_ICMP, ALLOW),
            (libc::IPPROTO_TCP, ALLOW),
            (libc::IPPROTO_UDP, ALLOW),
            (libc::IPPROTO_ICMPV6, ALLOW),
            (262, ALLOW), // IPPROTO_MPTCP, which Go's servers ask for
            (libc::IPPROTO_DCCP, EPROTONOSUPPORT),
            (libc::IPPROTO_SCTP, EPROTONOSUPPORT),
            (libc::IPPROTO_UDPLITE, EPROTONOSUPPORT),
            (115, EPROTONOSUPPORT), // IPPROTO_L2TP
            (libc::IPPROTO_RAW, EPROTONOSUPPORT),
        ] {
            let protocol = u64::try_from(protocol).unwrap();
            assert_eq!(
                default_verdict(name, &[2, 1, protocol]),
                verdict,
                "{name} {protocol}"
            );
        }
    }
    assert_eq!(default_verdict("setsockopt", &[3, 6, 31]), 0x0005_005c); // ENOPROTOOPT for TCP_ULP
    assert_eq!(default_verdict("setsockopt", &[3, 6, 1]), ALLOW); // TCP_NODELAY
    assert_eq!(default_verdict("setsockopt", &[3, 1, 31]), ALLOW);
}

#[test]
fn the_first_process_is_not_the_programs_to_change() {
    for name in [
        "prlimit64",
        "sched_setaffinity",
        "sched_setattr",
        "sched_setparam",
        "sched_setscheduler",
    ] {
        for (pid, verdict) in [
            (0, ALLOW),
            (1, EPERM),
            (0xffff_0000_0000_0001, EPERM),
            (2, ALLOW),
        ] {
            assert_eq!(default_verdict(name, &[pid, 7]), verdict, "{name} {pid:#x}");
        }
    }
    for name in ["setpriority", "ioprio_set"] {
        assert_eq!(default_verdict(name, &[1, 1, 0]), EPERM, "{name}");
        assert_eq!(default_verdict(name, &[0, 0, 0]), ALLOW, "{name}");
    }
    // PRIO_USER and IOPRIO_WHO_USER reach it too; process groups are 1 and 2.
    for (name, group, user) in [("setpriority", 1, 2), ("ioprio_set", 2, 3)] {
        assert_eq!(default_verdict(name, &[user, 0, 0]), EPERM, "{name}");
        assert_eq!(
            default_verdict(name, &[0xffff_0000_0000_0000 | user, 0, 0]),
            EPERM,
            "{name}"
        );
        assert_eq!(default_verdict(name, &[group, 0, 0]), ALLOW, "{name}");
    }
}

#[test]
fn the_limit_on_core_dumps_stays_as_it_is() {
    const CORE: u64 = libc::RLIMIT_CORE as u64;
    const NOFILE: u64 = libc::RLIMIT_NOFILE as u64;
    const POINTER: u64 = 0x7fff_0000_1000;
    let table = [
        ("setrlimit", vec![CORE, POINTER], PRETENDED),
        ("setrlimit", vec![CORE | 1 << 32, POINTER], PRETENDED),
        ("setrlimit", vec![NOFILE, POINTER], ALLOW),
        ("prlimit64", vec![0, CORE, POINTER, 0], PRETENDED),
        ("prlimit64", vec![77, CORE, POINTER, 0], PRETENDED),
        ("prlimit64", vec![0, CORE, 0, POINTER], ALLOW),
        ("prlimit64", vec![0, CORE, POINTER, POINTER], EPERM),
        ("prlimit64", vec![0, NOFILE, POINTER, POINTER], ALLOW),
        // The program's own process sets it when it is under the filter already.
        ("prlimit64", vec![0, NOFILE, POINTER, 0], ALLOW),
    ];
    for (name, arguments, verdict) in table {
        assert_eq!(
            default_verdict(name, &arguments),
            verdict,
            "{name} {arguments:x?}"
        );
    }
}

#[test]
fn descriptors_take_no_leases_and_pipes_stay_small() {
    const DIRTY: u64 = 1 << 32; // the kernel reads 32 bits
    for (command, argument, verdict) in [
        (1024, 0, EPERM), // F_SETLEASE
        (DIRTY + 1024, 1, EPERM),
        (1025, 0, ALLOW),    // F_GETLEASE
        (1031, 4096, ALLOW), // F_SETPIPE_SZ
        (1031, 65_536, ALLOW),
        (1031, 65_537, EPERM),
        (1031, 1 << 20, EPERM),
        (DIRTY + 1031, 1 << 20, EPERM),
        (1032, 1 << 20, ALLOW), // F_GETPIPE_SZ
        (4, 1 << 20, ALLOW),    // F_SETFL
    ] {
        assert_eq!(
            default_verdict("fcntl", &[0, command, argument]),
            verdict,
            "{command:#x} {argument}"
        );
    }
}

#[test]
fn limits_without_a_cgroup_refuse_what_would_undo_them_and_nothing_else() {
    assert!(limits_program(false, false).is_none());
    for (memory_files, processors) in [(true, false), (false, true), (true, true)] {
        let program = limits_program(memory_files, processors).unwrap();
        for (name, number) in names(Architecture::NATIVE) {
            let expected = match name {
                "memfd_create" | "memfd_secret" if memory_files => ENOSYS,
                "sched_setaffinity" if processors => EPERM,
                _ => ALLOW,
            };
            let call = call(Architecture::NATIVE, number, [0; 6]);
            assert_eq!(run(program, &call), expected, "{name}");
        }
    }
}

#[test]
fn terminal_input_cannot_be_forged_even_with_dirty_upper_bits() {
    for (command, verdict) in [
        (0x5412, EPERM),
        (0xdead_beef_0000_5412, EPERM),
        (0x541c, EPERM),
        (0xffff_ffff_0000_541c, EPERM),
        (0x5423, EPERM), // TIOCSETD
        (0x5401, ALLOW),
        (0x5413, ALLOW),
        (0xffff_5412, ALLOW),
        (0x5412_0000_5401, ALLOW),
    ] {
        assert_eq!(
            default_verdict("ioctl", &[0, command]),
            verdict,
            "{command:#x}"
        );
    }
}

#[test]
fn a_foreign_abi_ends_the_process() {
    const I386: u32 = 0x4000_0003;
    const ARM: u32 = 0x4000_0028;
    let x86 = default_for(Architecture::X86_64);
    let arm = default_for(Architecture::Aarch64);
    for number in 0..=600 {
        let x32 = call(Architecture::X86_64, number | 0x4000_0000, [0; 6]);
        assert_eq!(run(&x86, &x32), KILL);
        for audit in [I386, ARM, 0, Architecture::Aarch64.audit()] {
            let call = Call {
                number,
                audit,
                arguments: [0; 6],
            };
            assert_eq!(run(&x86, &call), KILL);
        }
        for audit in [I386, ARM, 0, Architecture::X86_64.audit()] {
            let call = Call {
                number,
                audit,
                arguments: [0; 6],
            };
            assert_eq!(run(&arm, &call), KILL);
        }
    }
}

// The compiler

#[test]
fn the_most_restrictive_matching_rule_applies_and_of_equals_the_first() {
    let json = br#"{
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "syscalls": [
            { "names": ["read", "write", "close"], "action": "SCMP_ACT_ALLOW" },
            { "names": ["write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5,
              "args": [{ "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }] },
            { "names": ["write", "close"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
              "args": [{ "index": 0, "value": 2, "op": "SCMP_CMP_LT" }] },
            { "names": ["close"], "action": "SCMP_ACT_LOG" },
            { "names": ["close"], "action": "SCMP_ACT_TRAP", "args": [{ "index": 0, "value": 9, "op": "SCMP_CMP_EQ" }] }
        ]
    }"#;
    let program = compile(&Profile::parse(json).unwrap(), Architecture::X86_64, &[]).unwrap();
    let table = [
        (0, 1, ALLOW),
        (1, 1, 0x0005_0005),
        (1, 0, 0x0005_0007),
        (1, 2, ALLOW),
        (3, 1, 0x0005_0007),
        (3, 2, 0x7ffc_0000),
        (3, 9, 0x0003_0000),
        (39, 0, KILL),
    ];
    for (number, argument, verdict) in table {
        let call = call(Architecture::X86_64, number, [argument; 6]);
        assert_eq!(run(&program, &call), verdict, "{call:?}");
    }
}

#[test]
fn a_listener_is_asked_where_a_process_would_be_ended_and_nowhere_else() {
    let asking = default_program().asking().unwrap();
    let native = Architecture::NATIVE;
    for number in (0..=600).chain([0x4000_0027, u32::MAX]) {
        for audit in [native.audit(), 0x4000_0003] {
            let call = Call {
                audit,
                ..call(native, number, [1; 6])
            };
            let expected = match run(default_program(), &call) {
                KILL => 0x7fc0_0000,
                other => other,
            };
            assert_eq!(run(&asking, &call), expected, "{call:x?}");
        }
    }
    let sparing = limits_program(true, true).unwrap().sparing();
    assert_eq!(sparing.asking(), None);
    let foreign = Call {
        audit: 0x4000_0003,
        ..call(native, 20, [0; 6])
    };
    assert_eq!(run(&sparing, &foreign), ALLOW);
}

/// More leaves than an 8-bit jump can skip, for every system call and every kind of comparison.
#[test]
fn a_program_longer_than_a_conditional_jump_is_right() {
    let operators = [
        Operator::Equal,
        Operator::Greater,
        Operator::LessOrEqual,
        Operator::MaskedEqual,
    ];
    let syscalls = names(Architecture::X86_64)
        .into_iter()
        .map(|(name, number)| Rule {
            names: vec![name.to_owned()],
            action: Action::Errno,
            errno_ret: Some(number),
            args: vec![Condition {
                index: number % 6,
                value: u64::from(number) << (number % 40),
                value_two: 0,
                op: operators[number as usize % operators.len()],
            }],
            ..allow_nothing()
        })
        .collect();
    let profile = Profile {
        syscalls,
        ..kill_everything()
    };
    let host = Host {
        architecture: Architecture::X86_64,
        capabilities: &[],
        kernel: KernelVersion { major: 6, minor: 1 },
    };
    let program = compile_for(&profile, &host).unwrap();
    assert!(program.instruction_count() > 1000);
    for number in 0..=600 {
        for argument in [0, u64::from(number) << (number % 40), u64::MAX] {
            let call = call(Architecture::X86_64, number, [argument; 6]);
            assert_eq!(
                run(&program, &call),
                evaluate(&profile, &host, &call),
                "{call:x?}"
            );
        }
    }
}

#[test]
fn a_profile_that_is_too_long_is_refused() {
    let args = (0..5000)
        .map(|value| Condition {
            index: 0,
            value,
            value_two: 0,
            op: Operator::NotEqual,
        })
        .collect();
    let rule = Rule {
        names: vec!["read".to_owned()],
        args,
        ..allow_nothing()
    };
    let profile = Profile {
        syscalls: vec![rule],
        ..kill_everything()
    };
    assert!(matches!(
        compile(&profile, Architecture::X86_64, &[]),
        Err(Error::TooLong)
    ));
}

fn kill_everything() -> Profile {
    Profile {
        default_action: Action::KillProcess,
        default_errno_ret: None,
        default_errno: None,
        syscalls: Vec::new(),
    }
}

fn allow_nothing() -> Rule {
    Rule::new(Vec::new(), Action::Allow, None, Vec::new())
}

fn any_value() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..4_u64,
        1 => (0..64_u32).prop_map(|bit| 1 << bit),
        1 => prop::sample::select(vec![0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001, 0xffff_ffff_0000_0000, u64::MAX]),
        1 => any::<u64>(),
    ]
}

fn any_condition() -> impl Strategy<Value = Condition> {
    let operator = prop::sample::select(vec![
        Operator::NotEqual,
        Operator::NotEqual,
        Operator::Less,
        Operator::LessOrEqual,
        Operator::Equal,
        Operator::GreaterOrEqual,
        Operator::Greater,
        Operator::MaskedEqual,
    ]);
    (0..6_u32, any_value(), any_value(), operator, any::<bool>()).prop_map(
        |(index, value, two, op, possible)| Condition {
            index,
            value,
            value_two: if possible { two & value } else { two },
            op,
        },
    )
}

fn any_action() -> impl Strategy<Value = Action> {
    prop::sample::select(vec![
        Action::KillProcess,
        Action::KillThread,
        Action::Trap,
        Action::Errno,
        Action::Trace,
        Action::Log,
        Action::Allow,
    ])
}

fn any_filter() -> impl Strategy<Value = Filter> {
    let caps = prop::sample::subsequence(vec!["CAP_SYS_ADMIN", "CAP_SYS_PTRACE"], 0..=1);
    let arches = prop::sample::subsequence(vec!["amd64", "arm64", "s390x"], 0..=2);
    let versions = prop::sample::select(vec![(4, 8), (6, 1), (6, 2), (7, 0)]);
    (caps, arches, prop::option::of(versions)).prop_map(|(caps, arches, version)| Filter {
        caps: caps.into_iter().map(str::to_owned).collect(),
        arches: arches.into_iter().map(str::to_owned).collect(),
        min_kernel: version.map(|(major, minor)| KernelVersion { major, minor }),
    })
}

const SOME_NAMES: [&str; 12] = [
    "read",
    "write",
    "close",
    "openat",
    "socket",
    "clone",
    "newfstatat",
    "getrandom",
    "mseal",
    "open",
    "ioctl",
    "bpf",
];

fn any_rule() -> impl Strategy<Value = Rule> {
    let names = prop::sample::subsequence(SOME_NAMES.to_vec(), 1..4);
    let args = prop::collection::vec(any_condition(), 0..5);
    let filter = || prop_oneof![3 => Just(Filter::default()), 1 => any_filter()];
    (
        names,
        any_action(),
        prop::option::of(0..4096_u32),
        args,
        filter(),
        filter(),
    )
        .prop_map(
            |(names, action, errno_ret, args, includes, excludes)| Rule {
                includes,
                excludes,
                ..Rule::new(
                    names.into_iter().map(str::to_owned).collect(),
                    action,
                    errno_ret,
                    args,
                )
            },
        )
}

fn any_profile() -> impl Strategy<Value = Profile> {
    let rules = prop::collection::vec(any_rule(), 0..24);
    (any_action(), prop::option::of(0..4096_u32), rules).prop_map(
        |(default_action, default_errno_ret, syscalls)| Profile {
            default_action,
            default_errno_ret,
            default_errno: None,
            syscalls,
        },
    )
}

proptest! {
    #[test]
    fn a_program_does_what_its_profile_says(
        profile in any_profile(),
        arm in any::<bool>(),
        admin in any::<bool>(),
        random in prop::collection::vec(prop::array::uniform6(any_value()), 12),
    ) {
        let architecture = BOTH[usize::from(arm)];
        let host = Host {
            architecture,
            capabilities: if admin { &["CAP_SYS_ADMIN"] } else { &[] },
            kernel: KernelVersion { major: 6, minor: 1 },
        };
        let program = compile_for(&profile, &host).unwrap();
        // Around the constants of the rules, where comparisons go wrong.
        let constants = profile.syscalls.iter().flat_map(|rule| &rule.args).flat_map(|condition| {
            [condition.value, condition.value_two].map(|value| [value.wrapping_sub(1), value, value.wrapping_add(1)])
        });
        let edges = constants.flatten().take(48).map(|value| [value; 6]);
        for arguments in random.iter().copied().chain(edges) {
            for number in SOME_NAMES.iter().filter_map(|name| architecture.number(name)).chain([1000]) {
                let call = call(architecture, number, arguments);
                prop_assert_eq!(run(&program, &call), evaluate(&profile, &host, &call), "{:x?}", call);
            }
        }
    }

    #[test]
    fn a_profile_survives_its_json(profile in any_profile()) {
        let json = serde_json::to_vec(&profile).unwrap();
        prop_assert_eq!(Profile::parse(&json).unwrap(), profile);
    }

    #[test]
    fn a_program_survives_its_bytes(profile in any_profile()) {
        let program = compile(&profile, Architecture::X86_64, &[]).unwrap();
        prop_assert_eq!(Program::from_bytes(program.as_bytes().to_vec()).unwrap(), program);
    }
}

#[test]
fn bytes_that_are_no_program_are_refused() {
    for length in [0, 1, 7, 9, 8 * 4097] {
        assert!(
            matches!(Program::from_bytes(vec![0; length]), Err(Error::NotAProgram(found)) if found == length)
        );
    }
}

// The format

#[test]
fn the_dialects_of_docker_and_podman_are_read() {
    let json = br#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "defaultErrno": "ENOSYS",
        "archMap": [{ "architecture": "SCMP_ARCH_RISCV64", "subArchitectures": null }],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            { "names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {}, "excludes": null },
            { "name": "write", "action": "SCMP_ACT_ERRNO", "args": [], "errno": "EPROTONOSUPPORT" },
            { "names": ["close"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22, "errno": "22", "includes": { "minKernel": "4.8" } },
            { "names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_BPF"], "arches": ["amd64"] } },
            { "names": ["bpf"], "action": "SCMP_ACT_KILL", "excludes": { "caps": ["CAP_BPF"] } }
        ]
    }"#;
    let profile = Profile::parse(json).unwrap();
    for (capabilities, bpf) in [(&[][..], 0), (&["CAP_BPF"], ALLOW)] {
        let program = compile(&profile, Architecture::X86_64, capabilities).unwrap();
        for (name, verdict) in [
            ("read", ALLOW),
            ("write", 0x0005_005d),
            ("close", 0x0005_0016),
            ("bpf", bpf),
            ("open", ENOSYS),
        ] {
            let number = Architecture::X86_64.number(name).unwrap();
            assert_eq!(
                run(&program, &call(Architecture::X86_64, number, [0; 6])),
                verdict,
                "{name}"
            );
        }
    }
}

#[test]
fn what_is_wrong_with_a_profile_is_said() {
    let cases = [
        "{}",
        "nonsense",
        r#"{ "defaultAction": "SCMP_ACT_PERMIT" }"#,
        r#"{ "defaultAction": "SCMP_ACT_NOTIFY" }"#,
        r#"{ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096 }"#,
        r#"{ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "EWHAT" }"#,
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscall": [] }"#,
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["a"], "archMap": [{}] }"#,
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "action": "SCMP_ACT_ALLOW" }] }"#,
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["a"], "name": "b", "action": "SCMP_ACT_ALLOW" }] }"#,
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["a"], "arg": [], "action": "SCMP_ACT_ALLOW" }] }"#,
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["a"], "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 6, "value": 0, "op": "SCMP_CMP_EQ" }] }] }"#,
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": ["uname"], "action": "SCMP_ACT_KILL" },
            { "names": ["mount", "unmae", "read", "write"], "action": "SCMP_ACT_KILL", "comment": "the machine" }] }"#,
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": ["uname", "open"], "action": "SCMP_ACT_ERRNO", "errno": "EWHAT" }] }"#,
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["a"], "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": -1, "op": "SCMP_CMP_EQ" }] }] }"#,
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["a"], "action": "SCMP_ACT_ALLOW",
            "includes": { "minKernel": "4.8.1" } }] }"#,
    ];
    let messages: Vec<_> = cases
        .iter()
        .map(|json| {
            let error = Profile::parse(json.as_bytes())
                .and_then(|profile| compile(&profile, Architecture::X86_64, &[]))
                .unwrap_err();
            let mut message = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(source) = cause {
                message = format!("{message}: {source}");
                cause = source.source();
            }
            message
        })
        .collect();
    insta::assert_snapshot!("errors", messages.join("\n"));
}

#[test]
fn kernel_versions_are_compared_by_two_numbers() {
    for (release, expected) in [
        ("6.12.9-amd64\n", Some((6, 12))),
        ("5.10-rc5", Some((5, 10))),
        ("4.18.0-553.el8_10.x86_64", Some((4, 18))),
        ("6.1+", Some((6, 1))),
        ("6", None),
        ("6.", None),
        ("v6.1", None),
    ] {
        let expected = expected.map(|(major, minor)| KernelVersion { major, minor });
        assert_eq!(
            KernelVersion::from_release(release),
            expected,
            "{release:?}"
        );
    }
    assert!(
        running_kernel().unwrap()
            >= KernelVersion {
                major: 4,
                minor: 14
            }
    );
}

// The kernel

/// Runs `check` in a child under the default filter; its result is the exit status.
///
/// The child is a copy of one thread of several, so `check` must not allocate or lock.
fn confined(check: impl FnOnce() -> i32) -> WaitStatus {
    confined_by(default_program(), check)
}

#[expect(
    unsafe_code,
    reason = "fork is how a filter can be tried without keeping it"
)]
fn confined_by(program: &Program, check: impl FnOnce() -> i32) -> WaitStatus {
    // SAFETY: the child only makes system calls and then exits.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => waitpid(child, None).unwrap(),
        ForkResult::Child => {
            let ready = nix::sys::prctl::set_dumpable(false).is_ok()
                && nix::sys::prctl::set_no_new_privs().is_ok()
                && install(program).is_ok();
            let status = if ready { check() } else { 255 };
            // SAFETY: ends the child at once, without destructors of the parent's state.
            unsafe { libc::_exit(status) }
        }
    }
}

/// The error number of a system call, 0 for success.
#[expect(
    unsafe_code,
    reason = "libc has no wrappers for calls that are to be refused"
)]
fn errno_of(number: libc::c_long, arguments: [libc::c_ulong; 3]) -> i32 {
    let [first, second, third] = arguments;
    // SAFETY: the callers pass numbers and null pointers, with which no system call in use touches memory.
    let result = unsafe { libc::syscall(number, first, second, third, 0_usize, 0_usize, 0_usize) };
    if result >= 0 {
        0
    } else {
        nix::errno::Errno::last_raw()
    }
}

#[test]
fn the_kernel_refuses_what_the_policy_refuses() {
    const NEW_USER: libc::c_ulong = 0x1000_0000;
    let cases = [
        (libc::SYS_getpid, [0; 3], 0),
        (libc::SYS_unshare, [NEW_USER, 0, 0], libc::EPERM),
        (libc::SYS_clone, [NEW_USER | SIGCHLD, 0, 0], libc::EPERM),
        (libc::SYS_clone3, [0, 0, 0], libc::ENOSYS),
        (600, [0; 3], libc::ENOSYS),
        (-1, [0; 3], libc::ENOSYS),
        (libc::SYS_socket, [1, 1, 0], 0),
        (libc::SYS_socket, [2, 1, 0], 0),
        (libc::SYS_socket, [16, 3, 0], libc::EAFNOSUPPORT),
        (libc::SYS_socket, [38, 5, 0], libc::EAFNOSUPPORT),
        (libc::SYS_socket, [40, 1, 0], libc::EAFNOSUPPORT),
        (libc::SYS_ioctl, [0, 0x5412, 0], libc::EPERM),
        (libc::SYS_ioctl, [0, 0xdead_beef_0000_5412, 0], libc::EPERM),
        (libc::SYS_ioctl, [0, 0x541c, 0], libc::EPERM),
        (libc::SYS_personality, [0xffff_ffff, 0, 0], 0),
        (libc::SYS_personality, [0x0004_0000, 0, 0], libc::EPERM),
        (libc::SYS_ptrace, [0, 0, 0], libc::EPERM),
        (libc::SYS_mount, [0; 3], libc::EPERM),
        (libc::SYS_setns, [0; 3], libc::EPERM),
        (libc::SYS_chroot, [0; 3], libc::EPERM),
        (libc::SYS_bpf, [0; 3], libc::EPERM),
        (libc::SYS_keyctl, [0; 3], libc::EPERM),
        (libc::SYS_userfaultfd, [0; 3], libc::EPERM),
        (libc::SYS_perf_event_open, [0; 3], libc::EPERM),
        (libc::SYS_io_uring_setup, [0; 3], libc::EPERM),
        (libc::SYS_name_to_handle_at, [0; 3], libc::EPERM),
        (libc::SYS_memfd_create, [0; 3], libc::EFAULT),
    ];
    let first_wrong = || {
        let wrong = cases
            .iter()
            .position(|&(number, arguments, expected)| errno_of(number, arguments) != expected);
        wrong.map_or(0, |case| i32::try_from(case + 1).unwrap_or(254))
    };
    match confined(first_wrong) {
        WaitStatus::Exited(_, 0) => (),
        WaitStatus::Exited(_, case @ 1..=100) => panic!(
            "not as expected: {:x?}",
            cases[usize::try_from(case).unwrap() - 1]
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_kernel_reports_the_success_of_what_is_pretended() {
    const NOBODY: libc::c_ulong = 65_534;
    const NOWHERE: libc::c_ulong = 0;
    const FIFO: libc::c_ulong = 0o010_644;
    const DEVICE: libc::c_ulong = 0o020_644;
    // Arguments with which the kernel itself would fail: EFAULT, EBADF or EPERM.
    let cases = [
        (libc::SYS_capset, [NOWHERE; 3], 0),
        (libc::SYS_fchown, [999, NOBODY, NOBODY], 0),
        (libc::SYS_fchownat, [999, NOWHERE, NOBODY], 0),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_chown, [NOWHERE, NOBODY, NOBODY], 0),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_lchown, [NOWHERE, NOBODY, NOBODY], 0),
        (libc::SYS_setfsgid, [NOBODY; 3], 0),
        (libc::SYS_setfsuid, [NOBODY; 3], 0),
        (libc::SYS_setgid, [NOBODY; 3], 0),
        (libc::SYS_setgroups, [1, NOWHERE, 0], 0),
        (libc::SYS_setregid, [NOBODY; 3], 0),
        (libc::SYS_setresgid, [NOBODY; 3], 0),
        (libc::SYS_setresuid, [NOBODY; 3], 0),
        (libc::SYS_setreuid, [NOBODY; 3], 0),
        (libc::SYS_setuid, [NOBODY; 3], 0),
        (libc::SYS_mknodat, [999, NOWHERE, DEVICE], 0),
        (libc::SYS_mknodat, [999, NOWHERE, FIFO], libc::EFAULT),
        (libc::SYS_fchmod, [999, 0, 0], libc::EBADF),
        (libc::SYS_unshare, [0x1000_0000, 0, 0], libc::EPERM),
        (libc::SYS_mount, [0; 3], libc::EPERM),
        (libc::SYS_chroot, [NOWHERE; 3], libc::EFAULT),
    ];
    let first_wrong = || {
        let user = nix::unistd::getuid();
        let wrong = cases
            .iter()
            .position(|&(number, arguments, expected)| errno_of(number, arguments) != expected);
        if nix::unistd::getuid() != user {
            return 254;
        }
        wrong.map_or(0, |case| i32::try_from(case + 1).unwrap_or(253))
    };
    match confined_by(root_emulation_program(), first_wrong) {
        WaitStatus::Exited(_, 0) => (),
        WaitStatus::Exited(_, case @ 1..=100) => panic!(
            "not as expected: {:x?}",
            cases[usize::try_from(case).unwrap() - 1]
        ),
        other => panic!("{other:?}"),
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
#[expect(unsafe_code, reason = "only assembly makes an i386 call")]
fn the_kernel_ends_a_process_that_uses_a_foreign_abi() {
    let x32 = confined(|| errno_of(0x4000_0000 + libc::SYS_getpid, [0; 3]));
    assert!(
        matches!(x32, WaitStatus::Signaled(_, Signal::SIGSYS, _)),
        "{x32:?}"
    );
    let i386 = confined(|| {
        // SAFETY: getpid has no arguments; the registers that the kernel may clear are named.
        unsafe {
            std::arch::asm!(
                "int 0x80",
                inlateout("eax") 20 => _,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        0
    });
    // A kernel without 32-bit support has no such trap.
    assert!(
        matches!(
            i386,
            WaitStatus::Signaled(_, Signal::SIGSYS | Signal::SIGSEGV, _)
        ),
        "{i386:?}"
    );
}

#[test]
fn the_kernel_takes_no_filter_without_no_new_privs_or_privilege() {
    if nix::unistd::geteuid().is_root() {
        return; // CAP_SYS_ADMIN may install filters without it.
    }
    let error = std::thread::spawn(|| install(default_program()))
        .join()
        .unwrap()
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
}

/// Standard output of a command under the default filter, or `None` if the machine does not have it.
#[expect(
    unsafe_code,
    reason = "the filter is installed between fork and exec, as in a run"
)]
fn output_under_filter(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    // SAFETY: both calls only make system calls.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_no_new_privs()?;
            install(default_program())
        });
    }
    match command.output() {
        Ok(output) => {
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            Some(String::from_utf8(output.stdout).unwrap())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: no {program}");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

#[test]
fn bash_works_under_the_default_filter() {
    let script = "set -e; cd /tmp; x=$(echo $((6 * 7)) | cat); sleep 0.01 & wait; ls -l / >/dev/null; read y < <(echo ok); echo $x $y";
    if let Some(output) = output_under_filter("bash", &["-c", script]) {
        assert_eq!(output, "42 ok\n");
    }
}

#[test]
fn python_works_under_the_default_filter() {
    let script = r#"
import asyncio, concurrent.futures, mmap, multiprocessing, os, select, socket, subprocess, sys, tempfile, threading, time

done = []
threads = [threading.Thread(target=done.append, args=(i,)) for i in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
assert sorted(done) == list(range(8))
assert subprocess.run(["sh", "-c", "echo hi"], capture_output=True, check=True).stdout == b"hi\n"
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    assert list(pool.map(abs, [-3])) == [3]
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
peer, _ = server.accept(); client.sendall(b"x"); assert peer.recv(1) == b"x"
left, right = socket.socketpair(); left.send(b"y"); assert right.recv(1) == b"y"
assert any(a[4][0] in ("127.0.0.1", "::1") for a in socket.getaddrinfo("localhost", 80))
assert asyncio.run(asyncio.sleep(0.001, "z")) == "z"
async def child():
    process = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
    return await process.wait()
assert asyncio.run(child()) == 3
with tempfile.TemporaryFile() as file:
    file.truncate(4096); mmap.mmap(file.fileno(), 4096)[0:1]
os.close(os.memfd_create("m")); os.sched_getaffinity(0); select.epoll().close(); time.sleep(0.001)
try:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
except OSError as error:
    assert error.strerror == "Address family not supported by protocol"
print("works", end="")
"#;
    if let Some(output) = output_under_filter("python3", &["-c", script]) {
        assert_eq!(output, "works");
    }
}
