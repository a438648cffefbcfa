//! Limits as the command line writes them: an amount or none, `--ulimit`, `--require`, and the defaults.

use std::time::Duration;

use sbxrt::{LimitName, Requirement, Rlimit, RlimitResource};

use crate::error::Error;
use crate::quantity::{parse_duration, parse_size};

/// The time limit of a run with `--json` that names none: whoever reads a document waits for it.
pub(crate) const JSON_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of each stream a document holds at most, unless said otherwise.
pub(crate) const JSON_OUTPUT_LIMIT: u64 = 10 << 20;
/// The size of a `--tmpfs` that names none.
pub(crate) const TMPFS_SIZE: u64 = 64 << 20;

/// An upper bound, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound<T> {
    Unlimited,
    At(T),
}

impl<T> Bound<T> {
    /// The bound in the words of the library.
    pub(crate) fn into_option(self) -> Option<T> {
        match self {
            Self::Unlimited => None,
            Self::At(value) => Some(value),
        }
    }
}

/// Whether `text` lifts a limit in words.
fn lifts(text: &str) -> bool {
    ["none", "unlimited"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word))
}

fn bound<T: PartialEq + Default>(
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Bound<T>, String> {
    if lifts(text) {
        return Ok(Bound::Unlimited);
    }
    let value = parse(text)?;
    Ok(if value == T::default() {
        Bound::Unlimited
    } else {
        Bound::At(value)
    })
}

/// Reads a bound on bytes.
pub(crate) fn size(text: &str) -> Result<Bound<u64>, String> {
    bound(text, parse_size)
}

/// Reads a bound on time.
pub(crate) fn duration(text: &str) -> Result<Bound<Duration>, String> {
    bound(text, parse_duration)
}

/// Reads a bound on processors.
pub(crate) fn cpus(text: &str) -> Result<Bound<f64>, String> {
    bound(text, |text| {
        let number = text
            .parse::<f64>()
            .ok()
            .filter(|number| number.is_finite() && *number >= 0.0);
        number.ok_or_else(|| "write a number of processors such as 2 or 0.5".to_owned())
    })
}

/// Reads a bound on things that are counted.
pub(crate) fn count(text: &str) -> Result<Bound<u64>, String> {
    bound(text, |text| {
        text.parse()
            .map_err(|_not_a_number| "write a number such as 4096".to_owned())
    })
}

/// Reads a bound on memory and swap together. `-1` lifts it, as in Docker.
pub(crate) fn memory_swap(text: &str) -> Result<Bound<u64>, String> {
    if text == "-1" {
        return Ok(Bound::Unlimited);
    }
    size(text)
}

/// How much of swap that is beside `memory`.
pub(crate) fn swap(memory: Bound<u64>, both: Option<Bound<u64>>) -> Result<Option<u64>, Error> {
    match (memory, both) {
        (_, None) => Ok(Some(0)),
        (_, Some(Bound::Unlimited)) => Ok(None),
        (Bound::At(memory), Some(Bound::At(both))) if both >= memory => Ok(Some(both - memory)),
        (Bound::At(_), _) => Err(Error::Limits {
            reason: "--memory-swap is less than --memory, which is a part of it",
        }),
        (Bound::Unlimited, _) => Err(Error::Limits {
            reason: "--memory-swap needs --memory, which is a part of it",
        }),
    }
}

/// Reads a bound on processes. `-1` lifts it, as in Docker.
pub(crate) fn pids(text: &str) -> Result<Bound<u32>, String> {
    if text == "-1" {
        return Ok(Bound::Unlimited);
    }
    bound(text, |text| {
        text.parse()
            .map_err(|_not_a_number| "write a number of processes such as 128".to_owned())
    })
}

/// Reads `NAME=SOFT[:HARD]`, as in Docker.
pub(crate) fn ulimit(text: &str) -> Result<Rlimit, String> {
    let (name, values) = text
        .split_once('=')
        .ok_or("write NAME=SOFT[:HARD], such as nofile=1024:4096")?;
    let resource: RlimitResource = name
        .parse()
        .map_err(|error: sbxrt::UnknownName| error.to_string())?;
    let value = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        text => text
            .parse::<u64>()
            .map_err(|_not_a_number| format!("{text:?} is not a number")),
    };
    let (soft, hard) = match values.split_once(':') {
        Some((soft, hard)) => (value(soft)?, value(hard)?),
        None => (value(values)?, value(values)?),
    };
    if soft > hard {
        return Err(format!(
            "the soft limit {soft} is above the hard limit {hard}"
        ));
    }
    Ok(Rlimit {
        resource,
        soft,
        hard,
    })
}

/// Reads `LIMIT=MECHANISM`.
pub(crate) fn requirement(text: &str) -> Result<(LimitName, Requirement), String> {
    let (limit, mechanism) = text
        .split_once('=')
        .ok_or("write LIMIT=MECHANISM, such as memory=cgroup")?;
    let limit = limit
        .replace('-', "_")
        .parse()
        .map_err(|error: sbxrt::UnknownName| error.to_string())?;
    let mechanism = mechanism
        .parse()
        .map_err(|error: sbxrt::UnknownName| format!("{error}, cgroup"))?;
    Ok((limit, mechanism))
}

#[cfg(test)]
mod tests {
    use sbxrt::Mechanism;

    use super::*;

    #[test]
    fn nought_and_words_lift_a_limit() {
        for text in ["0", "none", "unlimited", "None", "0m"] {
            assert_eq!(size(text), Ok(Bound::Unlimited), "{text:?}");
        }
        for text in ["0", "0s", "none"] {
            assert_eq!(duration(text), Ok(Bound::Unlimited), "{text:?}");
        }
        for text in ["0", "0.0", "unlimited"] {
            assert_eq!(cpus(text), Ok(Bound::Unlimited), "{text:?}");
        }
        for text in ["0", "-1", "none"] {
            assert_eq!(pids(text), Ok(Bound::Unlimited), "{text:?}");
        }
        for text in ["0", "none"] {
            assert_eq!(count(text), Ok(Bound::Unlimited), "{text:?}");
        }
        assert_eq!(count("9"), Ok(Bound::At(9)));
        for text in ["-1", "1k", ""] {
            assert!(count(text).is_err(), "{text:?}");
        }
        assert_eq!(memory_swap("-1"), Ok(Bound::Unlimited));
        assert_eq!(size("64m"), Ok(Bound::At(64 << 20)));
        assert_eq!(cpus("0.5"), Ok(Bound::At(0.5)));
        assert_eq!(pids("7"), Ok(Bound::At(7)));
        for text in ["nan", "inf", "-1", "two", ""] {
            assert!(cpus(text).is_err(), "{text:?}");
        }
        for text in ["-2", "1.5", "4294967296", ""] {
            assert!(pids(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn swap_is_what_is_beside_memory() {
        use Bound::{At, Unlimited};
        let table = [
            (At(64), None, Ok(Some(0))),
            (Unlimited, None, Ok(Some(0))),
            (At(64), Some(Unlimited), Ok(None)),
            (At(64), Some(At(64)), Ok(Some(0))),
            (At(64), Some(At(100)), Ok(Some(36))),
            (At(64), Some(At(63)), Err(())),
            (Unlimited, Some(At(100)), Err(())),
        ];
        for (memory, both, expected) in table {
            assert_eq!(
                swap(memory, both).map_err(drop),
                expected,
                "{memory:?} {both:?}"
            );
        }
    }

    #[test]
    fn ulimits_are_read_as_docker_reads_them() {
        let limit = |resource, soft, hard| {
            Some(Rlimit {
                resource,
                soft,
                hard,
            })
        };
        let table = [
            (
                "nofile=1024:4096",
                limit(RlimitResource::Nofile, 1024, 4096),
            ),
            ("core=0", limit(RlimitResource::Core, 0, 0)),
            (
                "memlock=-1",
                limit(RlimitResource::Memlock, u64::MAX, u64::MAX),
            ),
            (
                "stack=8388608:unlimited",
                limit(RlimitResource::Stack, 8_388_608, u64::MAX),
            ),
            ("nofile=2:1", None),
            ("nofile", None),
            ("nofile=", None),
            ("nofile=1:2:3", None),
            ("files=1", None),
        ];
        for (text, expected) in table {
            assert_eq!(ulimit(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn requirements_name_a_limit_and_a_mechanism() {
        let table = [
            (
                "memory=cgroup",
                Some((LimitName::Memory, Requirement::Cgroup)),
            ),
            (
                "pids=rlimit",
                Some((LimitName::Pids, Requirement::Exactly(Mechanism::Rlimit))),
            ),
            (
                "wall-time=timer",
                Some((LimitName::WallTime, Requirement::Exactly(Mechanism::Timer))),
            ),
            ("memory", None),
            ("memory=magic", None),
            ("weight=cgroup", None),
        ];
        for (text, expected) in table {
            assert_eq!(requirement(text).ok(), expected, "{text:?}");
        }
    }
}
