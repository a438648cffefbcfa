//! Profiles as Docker and podman write them, and what is said of one that is wrong.

use super::*;

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
