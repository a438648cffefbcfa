//! Sets of processors, in the form in which the kernel and Docker write them: `0-1,3`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Processors by number: a list of numbers and ranges, such as `0-1,3`.
///
/// ```
/// let processors: sbxrt_runtime::Cpuset = "3,0-1,1".parse()?;
/// assert_eq!(processors.to_string(), "0-1,3");
/// # Ok::<(), sbxrt_runtime::CpusetError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cpuset {
    processors: BTreeSet<u16>,
}

impl Cpuset {
    /// The highest number that is understood (`cpu_set_t`).
    pub const LAST: u16 = 1023;

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.processors.iter().copied()
    }

    /// Those that are not in `others`, if there are any.
    pub(crate) fn missing_in(&self, others: &Self) -> Option<Self> {
        let missing = &self.processors - &others.processors;
        (!missing.is_empty()).then_some(Self {
            processors: missing,
        })
    }
}

impl FromIterator<u16> for Cpuset {
    fn from_iter<I: IntoIterator<Item = u16>>(processors: I) -> Self {
        Self {
            processors: processors.into_iter().collect(),
        }
    }
}

impl fmt::Display for Cpuset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

/// A list of processors that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} is not a list of processors such as 0-1,3 (up to {})",
    Cpuset::LAST
)]
pub struct CpusetError {
    given: String,
}

impl FromStr for Cpuset {
    type Err = CpusetError;

    fn from_str(text: &str) -> Result<Self, CpusetError> {
        let number = |text: &str| {
            let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse().ok().filter(|_| is_digits);
            number.filter(|number| *number <= Self::LAST)
        };
        let part = |part: &str| match part.split_once('-') {
            Some((first, last)) => {
                Some(number(first)?..=number(last)?).filter(|range| !range.is_empty())
            }
            None => number(part).map(|number| number..=number),
        };
        let ranges: Option<Vec<_>> = text.split(',').map(part).collect();
        match ranges {
            Some(ranges) => Ok(ranges.into_iter().flatten().collect()),
            None => Err(CpusetError {
                given: text.to_owned(),
            }),
        }
    }
}

impl TryFrom<String> for Cpuset {
    type Error = CpusetError;

    fn try_from(text: String) -> Result<Self, CpusetError> {
        text.parse()
    }
}

impl From<Cpuset> for String {
    fn from(cpuset: Cpuset) -> Self {
        cpuset.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        let table = [
            ("0", Some("0")),
            ("0-1,3", Some("0-1,3")),
            ("3,1,0,1-1", Some("0-1,3")),
            ("0-1023", Some("0-1023")),
            ("1024", None),
            ("3-1", None),
            ("", None),
            ("0,", None),
            ("-1", None),
            ("+1", None),
            ("0-", None),
            ("0-1-2", None),
            (" 1", None),
            ("99999999999", None),
        ];
        for (text, expected) in table {
            let read = text.parse::<Cpuset>().map(|cpuset| cpuset.to_string());
            assert_eq!(read.ok().as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let cpuset = |text: &str| text.parse::<Cpuset>().unwrap();
        let missing = cpuset("0-3").missing_in(&cpuset("1-2,7"));
        assert_eq!(missing, Some(cpuset("0,3")));
        assert_eq!(cpuset("1-2").missing_in(&cpuset("0-7")), None);
    }
}
