//! The JSON form of a seccomp policy: the format that Docker and Podman share.
//!
//! It is OCI's `linux.seccomp` with `includes` and `excludes` on each rule. Fields that decide nothing here
//! (`archMap`, `comment`, `flags`) are read and dropped. A field that neither Docker nor Podman knows is an error
//! where Docker ignores it: a misspelt `args` would turn a narrow permission into a wide one.

use serde::{Deserialize, Deserializer, Serialize, de};
use std::fmt;

/// Why a seccomp profile cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not a seccomp profile.
    #[error("not a seccomp profile")]
    Parse(#[from] serde_json::Error),
    /// A rule asks for what cannot be done.
    #[error("rule {number} ({})", if comment.is_empty() { names.join(", ") } else { format!("{}: {comment}", names.join(", ")) })]
    Rule {
        /// Which one, from 1.
        number: usize,
        /// Its system calls, at most three of them.
        names: Vec<String>,
        /// What its author says of it.
        comment: String,
        /// Why it cannot.
        #[source]
        source: Box<Error>,
    },
    /// A rule forbids a system call that Linux has nowhere: it would forbid nothing.
    #[error("{0:?} is no system call of Linux")]
    UnknownCall(String),
    /// The profile hands system calls to a listener, which sbxrt does not have.
    #[error("SCMP_ACT_NOTIFY is not supported: there is no listener")]
    Notify,
    /// An error number beyond what the kernel can return.
    #[error("errnoRet {0} is larger than 4095")]
    ErrnoTooLarge(u32),
    /// An error name that is not one of Linux's.
    #[error("unknown error name {0:?}")]
    UnknownErrno(String),
    /// A condition on an argument that does not exist.
    #[error("there is no argument {0}, only 0 to 5")]
    ArgumentIndex(u32),
    /// The program is larger than the kernel takes.
    #[error("the profile needs more than the 4096 instructions that the kernel takes")]
    TooLong,
    /// Bytes that are not a classic BPF program.
    #[error("{0} bytes are not a seccomp program: it is 1 to 4096 instructions of 8 bytes")]
    NotAProgram(usize),
    /// The running kernel's version is needed (`minKernel`) and cannot be read.
    #[error("failed to read the kernel's version")]
    KernelVersion(#[source] std::io::Error),
}

/// A seccomp profile as Docker's `--security-opt seccomp=FILE` takes it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", try_from = "Document")]
pub struct Profile {
    /// What happens to a system call that no rule matches.
    pub default_action: Action,
    /// The error number of a default `SCMP_ACT_ERRNO` or `SCMP_ACT_TRACE`; EPERM if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// The same by name, as Podman writes it; it goes before the number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_errno: Option<String>,
    /// The rules. Of those that match, the most restrictive applies.
    pub syscalls: Vec<Rule>,
}

impl Profile {
    /// Reads a profile from its JSON text.
    ///
    /// # Errors
    ///
    /// The text is not JSON, lacks `defaultAction`, or has a field, action, operator or version that is not known.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        Ok(serde_json::from_slice(json)?)
    }

    /// This policy with the rules of another on top, which decides alone about every system call that it allows; where
    /// both have a say, the more restrictive rule applies as always. The default is this policy's.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        let allowed: Vec<&String> = other
            .syscalls
            .iter()
            .filter(|rule| rule.action == Action::Allow && rule.args.is_empty())
            .flat_map(|rule| &rule.names)
            .collect();
        for rule in &mut self.syscalls {
            rule.names.retain(|name| !allowed.contains(&name));
        }
        self.syscalls.retain(|rule| !rule.names.is_empty());
        self.syscalls.extend(other.syscalls);
        self
    }

    /// Whether any rule has a `minKernel`.
    pub fn depends_on_kernel(&self) -> bool {
        self.syscalls
            .iter()
            .any(|rule| rule.includes.min_kernel.is_some() || rule.excludes.min_kernel.is_some())
    }
}

/// One rule: what happens to some system calls, for some arguments, on some hosts.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// The system calls; a name that the architecture does not have is skipped. Old profiles have one, as `name`.
    #[serde(alias = "name", deserialize_with = "one_or_many")]
    pub names: Vec<String>,
    /// What happens.
    pub action: Action,
    /// The error number of `SCMP_ACT_ERRNO` or `SCMP_ACT_TRACE`; EPERM if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// The same by name, as Podman writes it; it goes before the number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<String>,
    /// Conditions on arguments; none means always. See [`Rule::alternatives`] for how several combine.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub args: Vec<Condition>,
    /// The rule counts only on hosts like this.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Filter::is_empty"
    )]
    pub includes: Filter,
    /// The rule does not count on hosts like this.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Filter::is_empty"
    )]
    pub excludes: Filter,
    /// For the reader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

impl Rule {
    /// A rule that holds on every host.
    pub fn new(
        names: Vec<String>,
        action: Action,
        errno_ret: Option<u32>,
        args: Vec<Condition>,
    ) -> Self {
        Self {
            names,
            action,
            errno_ret,
            errno: None,
            args,
            includes: Filter::default(),
            excludes: Filter::default(),
            comment: None,
        }
    }

    /// The conditions as alternatives: the rule matches if all conditions of any one alternative hold.
    ///
    /// Conditions on different arguments must all hold. Several on the *same* argument are alternatives, as runc and
    /// crun read them, since libseccomp takes only one condition for each argument. The exception is an argument that
    /// has only `SCMP_CMP_NE` conditions: read as alternatives they would be always true, so they can only be meant
    /// together, "none of these values".
    pub fn alternatives(&self) -> Vec<&[Condition]> {
        let repeats = self.args.iter().enumerate().any(|(position, condition)| {
            self.args[..position].iter().any(|earlier| {
                earlier.index == condition.index
                    && (earlier.op != Operator::NotEqual || condition.op != Operator::NotEqual)
            })
        });
        if repeats {
            self.args.chunks(1).collect()
        } else {
            vec![&self.args]
        }
    }
}

/// What the kernel does with a system call, the most restrictive first.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Action {
    /// Ends the whole process with SIGSYS.
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    /// Ends the calling thread with SIGSYS.
    #[serde(rename = "SCMP_ACT_KILL_THREAD", alias = "SCMP_ACT_KILL")]
    KillThread,
    /// Sends a SIGSYS that can be caught.
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    /// Returns an error without entering the system call.
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    /// Asks a listener; refused by [`compile()`](super::compile()), for there is none.
    #[serde(rename = "SCMP_ACT_NOTIFY")]
    Notify,
    /// Asks the tracer; ENOSYS without one.
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    /// Allows the system call and logs it.
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    /// Allows the system call.
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
}

/// A comparison of one 64-bit argument of a system call with a constant.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub index: u32,
    /// The constant; for [`Operator::MaskedEqual`] the mask.
    pub value: u64,
    /// For [`Operator::MaskedEqual`] the value expected under the mask.
    #[serde(default)]
    pub value_two: u64,
    /// The comparison.
    pub op: Operator,
}

/// How an argument is compared; all comparisons are unsigned and of the whole 64 bits.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub enum Operator {
    /// `argument != value`
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    /// `argument < value`
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    /// `argument <= value`
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    /// `argument == value`
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    /// `argument >= value`
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    /// `argument > value`
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    /// `argument & value == valueTwo`
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// A description of hosts, for `includes` and `excludes`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filter {
    /// Capabilities (`CAP_SYS_ADMIN`) of the container: `includes` needs all of them, `excludes` any.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub caps: Vec<String>,
    /// Architectures by Docker's names (`amd64`, `arm64`), any of them.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub arches: Vec<String>,
    /// This kernel or a newer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_kernel: Option<KernelVersion>,
}

impl Filter {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The first two numbers of a kernel's version; distributions do as they like with the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// The 6 of 6.12.
    pub major: u32,
    /// The 12 of 6.12.
    pub minor: u32,
}

impl KernelVersion {
    /// Reads the start of a release such as `6.12.9-amd64`, or `None` if it does not begin with two numbers.
    pub fn from_release(release: &str) -> Option<Self> {
        let (major, rest) = release.split_once('.')?;
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        Some(Self {
            major: major.parse().ok()?,
            minor: rest[..digits].parse().ok()?,
        })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

impl Serialize for KernelVersion {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KernelVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_release(&text)
            .filter(|version| version.to_string() == text)
            .ok_or_else(|| {
                de::Error::custom(format!(
                    "invalid kernel version {text:?}, expected \"<major>.<minor>\""
                ))
            })
    }
}

/// A profile as it is in a file, with the fields that decide nothing here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    default_action: Action,
    default_errno_ret: Option<u32>,
    default_errno: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    syscalls: Vec<Rule>,
    /// Only the native architecture may make system calls.
    #[serde(default, deserialize_with = "null_is_default")]
    architectures: Vec<de::IgnoredAny>,
    #[serde(default, deserialize_with = "null_is_default")]
    arch_map: Vec<de::IgnoredAny>,
    /// They change logging and mitigations, never what is allowed.
    #[serde(default, rename = "flags")]
    _flags: de::IgnoredAny,
    /// Nobody listens: `SCMP_ACT_NOTIFY` is refused.
    #[serde(default, rename = "listenerPath")]
    _listener_path: de::IgnoredAny,
    #[serde(default, rename = "listenerMetadata")]
    _listener_metadata: de::IgnoredAny,
}

impl TryFrom<Document> for Profile {
    type Error = &'static str;

    fn try_from(document: Document) -> Result<Self, Self::Error> {
        if !document.architectures.is_empty() && !document.arch_map.is_empty() {
            return Err("both `architectures` and `archMap` are given, use either");
        }
        Ok(Self {
            default_action: document.default_action,
            default_errno_ret: document.default_errno_ret,
            default_errno: document.default_errno,
            syscalls: document.syscalls,
        })
    }
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a system call or a list of them")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(name) => vec![name],
        OneOrMany::Many(names) => names,
    })
}

/// Go writes an empty list as `null`.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
