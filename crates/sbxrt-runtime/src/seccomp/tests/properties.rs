//! Any profile: its program against a direct reading of it.

use proptest::prelude::*;

use super::*;

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
