//! The default policy, case by case, and what emulating root changes of it.

use super::*;

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
