//! From a [`Profile`] to a [`Program`]: a pure function, used by the build (`build.rs`) and at run time.
//!
//! The program begins with the architecture check, then finds the system call in a balanced tree of comparisons:
//! neighbours with the same fate are one leaf, so Docker's 350 names become about a hundred ranges and seven
//! comparisons. That is what keeps the cost of loading small: the kernel verifies, translates and JITs every
//! instruction, and then runs the filter once for every system call number to find those that are always allowed.

use super::profile::{Action, Condition, Error, Filter, KernelVersion, Operator, Profile, Rule};
use super::program::{Instruction, MAX_INSTRUCTIONS, Program};
use std::collections::{BTreeMap, HashMap};

/// An instruction set that sbxrt can filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// 64-bit x86; i386 and x32 calls end the process.
    X86_64,
    /// 64-bit Arm; 32-bit calls end the process.
    Aarch64,
}

impl Architecture {
    /// The architecture of that name in Rust (`std::env::consts::ARCH`), or `None`.
    pub fn from_rust_name(name: &str) -> Option<Self> {
        match name {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// The number of a system call, or `None` if this architecture does not have it.
    pub fn number(self, name: &str) -> Option<u32> {
        let number = match self {
            Self::X86_64 => name.parse::<syscalls::x86_64::Sysno>().ok()?.id(),
            Self::Aarch64 => {
                let name = match name {
                    // The table has the name of the kernel's header; everybody else, and x86-64, says newfstatat.
                    "newfstatat" => "fstatat",
                    // 79 is the table's number of what it calls fstatat, and fstatat is nobody's system call. The
                    // others are the 32-bit ABI's: the numbers are reserved in the shared table and never work.
                    "fstatat" => return None,
                    _ if name.ends_with("time64") || name.ends_with("adjtime64") => return None,
                    _ => name,
                };
                name.parse::<syscalls::aarch64::Sysno>().ok()?.id()
            }
        };
        u32::try_from(number).ok()
    }

    /// The value of `seccomp_data.arch` for native calls (`linux/audit.h`).
    pub(super) const fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::Aarch64 => 0xc000_00b7,
        }
    }

    /// The name in `includes.arches`, which is Go's.
    pub(super) const fn go_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }
}

/// The ABI that a system call was made with, by the name that people know, and the call's name in it or its number.
pub(super) fn describe(audit: u32, number: u32) -> (String, String) {
    // From here on x32 has numbers of its own.
    const X32_OWN: u32 = 512;
    let is_x32 = number & X32_BIT != 0 && number != u32::MAX;
    let number = if audit == Architecture::X86_64.audit() && is_x32 {
        number ^ X32_BIT
    } else {
        number
    };
    let index = number as usize;
    let (architecture, name) = match audit {
        0xc000_003e if is_x32 => (
            "x32",
            syscalls::x86_64::Sysno::new(index)
                .filter(|_| number < X32_OWN)
                .map(|call| call.name()),
        ),
        0xc000_003e => (
            "x86_64",
            syscalls::x86_64::Sysno::new(index).map(|call| call.name()),
        ),
        0x4000_0003 => (
            "i386",
            syscalls::x86::Sysno::new(index).map(|call| call.name()),
        ),
        0xc000_00b7 => (
            "aarch64",
            syscalls::aarch64::Sysno::new(index).map(|call| match call.name() {
                "fstatat" => "newfstatat",
                name => name,
            }),
        ),
        0x4000_0028 => (
            "arm",
            syscalls::arm::Sysno::new(index).map(|call| call.name()),
        ),
        other => return (format!("{other:#x}"), number.to_string()),
    };
    (
        architecture.to_owned(),
        name.map_or_else(|| number.to_string(), str::to_owned),
    )
}

/// What a profile's `includes` and `excludes` are decided by.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// The architecture that the program is for.
    pub architecture: Architecture,
    /// The capabilities in the container's bounding set, such as `CAP_SYS_ADMIN`.
    pub capabilities: &'a [&'a str],
    /// The kernel that the program will run on.
    pub kernel: KernelVersion,
}

/// Translates a profile for a host.
///
/// Of the rules that match a system call the most restrictive applies, in the order of [`Action`]; among equals the
/// first. libseccomp forgets all conditional rules of a system call as soon as there is an unconditional one, whatever
/// their actions; here no rule is forgotten, so a program is never more permissive than libseccomp's.
///
/// # Errors
///
/// The profile asks for what cannot be done (see [`Error`]), or needs more than 4096 instructions.
pub fn compile_for(profile: &Profile, host: &Host<'_>) -> Result<Program, Error> {
    let default = verdict(
        profile.default_action,
        profile.default_errno_ret,
        profile.default_errno.as_deref(),
    )?;
    let mut calls: BTreeMap<u32, Vec<Clause<'_>>> = BTreeMap::new();
    for (index, rule) in profile.syscalls.iter().enumerate() {
        let result = check(rule, profile.default_action).map_err(|source| Error::Rule {
            number: index + 1,
            names: rule.names.iter().take(3).cloned().collect(),
            comment: rule.comment.clone().unwrap_or_default(),
            source: Box::new(source),
        })?;
        if !applies(rule, host) {
            continue;
        }
        let alternatives = rule.alternatives();
        for number in rule
            .names
            .iter()
            .filter_map(|name| host.architecture.number(name))
        {
            calls
                .entry(number)
                .or_default()
                .extend(alternatives.iter().map(|&conditions| Clause {
                    action: rule.action,
                    verdict: result,
                    conditions,
                }));
        }
    }
    assemble(
        &ranges(calls, default, host.architecture),
        host.architecture,
    )
}

/// Whether the rule counts on this host, decided as Docker does.
fn applies(rule: &Rule, host: &Host<'_>) -> bool {
    let granted = |capability: &String| host.capabilities.contains(&capability.as_str());
    let native = |name: &String| name == host.architecture.go_name();
    let Filter {
        caps,
        arches,
        min_kernel,
    } = &rule.excludes;
    let excluded = arches.iter().any(native)
        || caps.iter().any(granted)
        || min_kernel.is_some_and(|version| host.kernel >= version);
    let Filter {
        caps,
        arches,
        min_kernel,
    } = &rule.includes;
    let included = (arches.is_empty() || arches.iter().any(native))
        && caps.iter().all(granted)
        && min_kernel.is_none_or(|version| host.kernel >= version);
    included && !excluded
}

/// What the rule lets the filter return.
fn check(rule: &Rule, default: Action) -> Result<u32, Error> {
    if let Some(condition) = rule.args.iter().find(|condition| condition.index > 5) {
        return Err(Error::ArgumentIndex(condition.index));
    }
    // A permission for what does not exist harms nobody, and profiles have many for other machines and newer kernels. A
    // prohibition that is misspelt lets through what it was to stop.
    if rule.action < default
        && let Some(unknown) = rule.names.iter().find(|name| !exists(name))
    {
        return Err(Error::UnknownCall(unknown.clone()));
    }
    verdict(rule.action, rule.errno_ret, rule.errno.as_deref())
}

/// Whether any of the common architectures has a system call of that name.
fn exists(name: &str) -> bool {
    Architecture::X86_64.number(name).is_some()
        || Architecture::Aarch64.number(name).is_some()
        || name.parse::<syscalls::x86::Sysno>().is_ok()
        || name.parse::<syscalls::arm::Sysno>().is_ok()
}

/// The value that a filter returns for an action (`linux/seccomp.h`).
fn verdict(action: Action, errno: Option<u32>, errno_name: Option<&str>) -> Result<u32, Error> {
    const EPERM: u32 = 1;
    let errno = match errno_name {
        Some(name) if !name.is_empty() => errno_by_name(name)?,
        _ => errno.unwrap_or(EPERM),
    };
    if errno > 4095 {
        return Err(Error::ErrnoTooLarge(errno));
    }
    match action {
        Action::KillProcess => Ok(KILL_PROCESS),
        Action::KillThread => Ok(0),
        Action::Trap => Ok(TRAP),
        Action::Errno => Ok(0x0005_0000 | errno),
        Action::Notify => Err(Error::Notify),
        Action::Trace => Ok(0x7ff0_0000 | errno),
        Action::Log => Ok(0x7ffc_0000),
        Action::Allow => Ok(0x7fff_0000),
    }
}

fn errno_by_name(name: &str) -> Result<u32, Error> {
    const LAST: i32 = 133; // EHWPOISON
    name.parse().ok().map_or_else(
        || {
            (1..=LAST)
                .find(|&number| syscalls::Errno::new(number).name() == Some(name))
                .and_then(|number| u32::try_from(number).ok())
                .ok_or_else(|| Error::UnknownErrno(name.to_owned()))
        },
        Ok,
    )
}

/// A rule of one system call: the verdict if all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Clause<'p> {
    action: Action,
    verdict: u32,
    conditions: &'p [Condition],
}

/// System calls with the same fate: from `first` to the next range's first.
#[derive(Debug)]
struct Range<'p> {
    first: u32,
    /// Tried in order; the first that holds decides.
    clauses: Vec<Clause<'p>>,
    /// If none holds.
    otherwise: u32,
}

/// Divides all 2³² numbers into ranges.
fn ranges<'p>(
    calls: BTreeMap<u32, Vec<Clause<'p>>>,
    default: u32,
    architecture: Architecture,
) -> Vec<Range<'p>> {
    let mut ranges: Vec<Range<'p>> = Vec::new();
    let mut add = |first: u32, clauses: Vec<Clause<'p>>, otherwise: u32| {
        if let Some(last) = ranges.last()
            && last.clauses.is_empty()
            && clauses.is_empty()
            && last.otherwise == otherwise
        {
            return;
        }
        ranges.push(Range {
            first,
            clauses,
            otherwise,
        });
    };
    let mut next = 0;
    for (number, mut clauses) in calls {
        if number > next {
            add(next, Vec::new(), default);
        }
        clauses.sort_by_key(|clause| clause.action);
        let otherwise = match clauses
            .iter()
            .position(|clause| clause.conditions.is_empty())
        {
            Some(always) => {
                let verdict = clauses[always].verdict;
                clauses.truncate(always);
                verdict
            }
            None => default,
        };
        add(number, clauses, otherwise);
        next = number + 1;
    }
    add(next, Vec::new(), default);
    if architecture == Architecture::X86_64 {
        add(X32_BIT, Vec::new(), KILL_PROCESS);
        // -1 has the bit too but is nobody's number: it is what a tracer writes to skip a call.
        add(u32::MAX, Vec::new(), default);
    }
    ranges
}

/// The bit that marks a call of the x32 ABI, which reports itself as native x86-64; above it no number is native.
const X32_BIT: u32 = 0x4000_0000;

// The values that a filter returns (`linux/seccomp.h`).
pub(super) const ACTION: u32 = 0xffff_0000;
pub(super) const TRAP: u32 = 0x0003_0000;
pub(super) const KILL_PROCESS: u32 = 0x8000_0000;

// linux/bpf_common.h
const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

fn assemble(ranges: &[Range<'_>], architecture: Architecture) -> Result<Program, Error> {
    let mut assembler = Assembler::default();
    let tree = assembler.tree(ranges)?;
    let body = assembler.load(NUMBER, tree)?;
    let check = assembler.branch(
        JUMP_EQUAL,
        architecture.audit(),
        body,
        Target::Return(KILL_PROCESS),
    )?;
    assembler.load(ARCHITECTURE, check)?;
    Program::new(assembler.reversed.into_iter().rev())
}

/// Where control goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// The filter ends with this value.
    Return(u32),
    /// On to the instruction at this place in [`Assembler::reversed`].
    At(usize),
}

/// Writes a program from its end to its beginning: BPF jumps only forward, so every target is known when it is needed.
#[derive(Debug, Default)]
struct Assembler {
    reversed: Vec<Instruction>,
    /// The latest `ret` of each value, to be shared.
    returns: HashMap<u32, usize>,
}

impl Assembler {
    /// Finds the range of the system call in the accumulator, and decides.
    fn tree(&mut self, ranges: &[Range<'_>]) -> Result<Target, Error> {
        let [range] = ranges else {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            let first = upper[0].first;
            let upper = self.tree(upper)?;
            let lower = self.tree(lower)?;
            return self.branch(JUMP_GREATER_OR_EQUAL, first, upper, lower);
        };
        let mut entry = Target::Return(range.otherwise);
        for clause in range.clauses.iter().rev() {
            let no = entry;
            entry = Target::Return(clause.verdict);
            for condition in clause.conditions.iter().rev() {
                entry = self.condition(*condition, entry, no)?;
            }
        }
        Ok(entry)
    }

    fn condition(
        &mut self,
        condition: Condition,
        yes: Target,
        no: Target,
    ) -> Result<Target, Error> {
        let Condition {
            index,
            value,
            value_two,
            op,
        } = condition;
        let offset = ARGUMENTS + 8 * index;
        match op {
            Operator::Equal => self.masked_equal(offset, u64::MAX, value, yes, no),
            Operator::NotEqual => self.masked_equal(offset, u64::MAX, value, no, yes),
            Operator::MaskedEqual => self.masked_equal(offset, value, value_two, yes, no),
            Operator::Greater => self.ordered(JUMP_GREATER, offset, value, yes, no),
            Operator::GreaterOrEqual => self.ordered(JUMP_GREATER_OR_EQUAL, offset, value, yes, no),
            Operator::Less => self.ordered(JUMP_GREATER_OR_EQUAL, offset, value, no, yes),
            Operator::LessOrEqual => self.ordered(JUMP_GREATER, offset, value, no, yes),
        }
    }

    fn masked_equal(
        &mut self,
        offset: u32,
        mask: u64,
        value: u64,
        yes: Target,
        no: Target,
    ) -> Result<Target, Error> {
        if value & !mask != 0 {
            return Ok(no);
        }
        let (mask_high, mask_low) = words(mask);
        let (high, low) = words(value);
        let yes = self.word_equal(offset, mask_low, low, yes, no)?;
        self.word_equal(offset + 4, mask_high, high, yes, no)
    }

    fn word_equal(
        &mut self,
        offset: u32,
        mask: u32,
        value: u32,
        yes: Target,
        no: Target,
    ) -> Result<Target, Error> {
        if mask == 0 || yes == no {
            return Ok(yes);
        }
        let compare = if mask == u32::MAX {
            self.branch(JUMP_EQUAL, value, yes, no)?
        } else if mask == value && mask.is_power_of_two() {
            self.branch(JUMP_SET, mask, yes, no)?
        } else {
            self.branch(JUMP_EQUAL, value, yes, no)?;
            self.push(AND, 0, 0, mask)?
        };
        self.load(offset, compare)
    }

    /// `operation` is "greater" or "greater or equal"; high words that are equal leave it to the low words.
    fn ordered(
        &mut self,
        operation: u16,
        offset: u32,
        value: u64,
        yes: Target,
        no: Target,
    ) -> Result<Target, Error> {
        if yes == no {
            return Ok(yes);
        }
        let (high, low) = words(value);
        let compare = self.branch(operation, low, yes, no)?;
        let low = self.load(offset, compare)?;
        let equal = self.branch(JUMP_EQUAL, high, low, no)?;
        let greater = self.branch(JUMP_GREATER, high, yes, equal)?;
        self.load(offset + 4, greater)
    }

    /// Loads a word of `struct seccomp_data` and goes on.
    fn load(&mut self, offset: u32, then: Target) -> Result<Target, Error> {
        if then != Target::At(self.reversed.len().wrapping_sub(1)) {
            self.go(then)?;
        }
        self.push(LOAD_WORD, 0, 0, offset)
    }

    fn branch(
        &mut self,
        operation: u16,
        constant: u32,
        yes: Target,
        no: Target,
    ) -> Result<Target, Error> {
        let yes = self.near(yes)?;
        let no = self.near(no)?;
        let offset =
            |place| u8::try_from(self.distance(place)).expect("a near place is within reach");
        self.push(operation, offset(yes), offset(no), constant)
    }

    /// A place with the effect of `target` that a conditional jump reaches, also after one more instruction.
    fn near(&mut self, target: Target) -> Result<usize, Error> {
        const REACH: usize = u8::MAX as usize - 1;
        let place = match target {
            Target::Return(value) => self.returns.get(&value).copied(),
            Target::At(place) => Some(place),
        };
        match place.filter(|&place| self.distance(place) <= REACH) {
            Some(place) => Ok(place),
            None => self.go(target),
        }
    }

    /// An instruction, written here, that does what `target` does.
    fn go(&mut self, target: Target) -> Result<usize, Error> {
        let place = self.reversed.len();
        match target {
            Target::Return(value) => {
                self.push(RETURN, 0, 0, value)?;
                self.returns.insert(value, place);
            }
            Target::At(there) => {
                let distance =
                    u32::try_from(self.distance(there)).expect("a program is shorter than 2^32");
                self.push(JUMP, 0, 0, distance)?;
            }
        }
        Ok(place)
    }

    /// How many instructions a jump written here skips to come to `place`.
    fn distance(&self, place: usize) -> usize {
        self.reversed.len() - place - 1
    }

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Result<Target, Error> {
        if self.reversed.len() == MAX_INSTRUCTIONS {
            return Err(Error::TooLong);
        }
        self.reversed.push(Instruction { code, jt, jf, k });
        Ok(Target::At(self.reversed.len() - 1))
    }
}

/// The high and the low half.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the halves are what is wanted"
)]
const fn words(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}
