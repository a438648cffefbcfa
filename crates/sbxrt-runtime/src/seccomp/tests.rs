//! The compiler against a direct reading of the profile. What of these tests is about one subject is in modules below.

mod format;
mod kernel;
mod policy;
mod properties;

use super::interpreter::Call;
use super::*;
use std::collections::{BTreeMap, BTreeSet};

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

fn emulating_profile() -> Profile {
    default_profile().with(Profile::parse(ROOT_EMULATION_PROFILE.as_bytes()).unwrap())
}

/// The verdict of a call that does nothing and reports success.
const PRETENDED: u32 = 0x0005_0000;

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

#[test]
fn bytes_that_are_no_program_are_refused() {
    for length in [0, 1, 7, 9, 8 * 4097] {
        assert!(
            matches!(Program::from_bytes(vec![0; length]), Err(Error::NotAProgram(found)) if found == length)
        );
    }
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
