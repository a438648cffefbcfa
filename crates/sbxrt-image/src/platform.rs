//! Platforms: which of an index's images is for this machine.
//!
//! Names are those of Go's GOOS and GOARCH, as the image index specification asks; variants follow its platform table.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system and processor that an image is for, such as `linux/amd64` or `linux/arm/v7`.
///
/// ```
/// use sbxrt_image::Platform;
///
/// let platform: Platform = "linux/arm64/v8".parse()?;
/// assert_eq!(platform.to_string(), "linux/arm64"); // v8 is what arm64 means
/// # Ok::<(), sbxrt_image::InvalidPlatform>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// The operating system, `linux` for all that sbxrt can run.
    pub os: String,
    /// The processor architecture by its Go name: `amd64`, `arm64`, ….
    pub architecture: String,
    /// The variant of the processor where it is not the usual one: `v7`, `v3`, ….
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Builds a platform from its parts in normal form: what a variant leaves unsaid is left out.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, variant) = match (architecture, variant.filter(|text| !text.is_empty()))
        {
            ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64", None),
            ("aarch64", variant) => ("arm64", variant),
            ("arm" | "armhf", None | Some("7")) => ("arm", Some("v7")),
            ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("5")) => ("arm", Some("v5")),
            other => other,
        };
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// Returns the platform of this machine, as far as the program's own build tells.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::new(std::env::consts::OS, architecture, None)
    }

    /// Returns how well an image for `offered` runs where this platform is wanted: lower is better, `None` is not at
    /// all. A processor runs what was built for its older variants, never the other way round.
    pub(crate) fn distance_to(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        if self.variant == offered.variant {
            return Some(0);
        }
        let level = |platform: &Self| match (&platform.variant, platform.architecture.as_str()) {
            (None, "amd64") => Some(1),
            (None, "arm64") => Some(80),
            // `v8` for arm, `v3` for amd64, `v8.2` for arm64.
            (Some(variant), "arm64") => {
                let (major, minor) = variant
                    .strip_prefix('v')?
                    .split_once('.')
                    .unwrap_or((variant.strip_prefix('v')?, "0"));
                Some(
                    major.parse::<u32>().ok()?.checked_mul(10)? + minor.parse::<u32>().ok()?.min(9),
                )
            }
            (Some(variant), _) => variant.strip_prefix('v')?.parse::<u32>().ok(),
            (None, _) => None,
        };
        level(self)?.checked_sub(level(offered)?)
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let invalid = || InvalidPlatform(text.chars().take(80).collect());
        let is_name = |part: &&str| {
            part.starts_with(|first: char| first.is_ascii_alphanumeric())
                && part.len() <= 32
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let parts = text.split('/').collect::<Vec<_>>();
        if !parts.iter().all(is_name) {
            return Err(invalid());
        }
        match parts[..] {
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(formatter, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// A text that is not a platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid platform {0:?}: expected OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/amd64"
)]
pub struct InvalidPlatform(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_into_normal_form() {
        let table = [
            ("linux/amd64", Some("linux/amd64")),
            ("linux/x86_64", Some("linux/amd64")),
            ("linux/amd64/v1", Some("linux/amd64")),
            ("linux/amd64/v3", Some("linux/amd64/v3")),
            ("linux/arm64/v8", Some("linux/arm64")),
            ("linux/aarch64", Some("linux/arm64")),
            ("linux/arm", Some("linux/arm/v7")),
            ("linux/arm/v6", Some("linux/arm/v6")),
            ("linux", None),
            ("linux/", None),
            ("linux/amd64/v1/x", None),
            ("linux/../amd64", None),
            ("", None),
        ];
        for (text, expected) in table {
            let platform = text
                .parse::<Platform>()
                .ok()
                .map(|platform| platform.to_string());
            assert_eq!(platform.as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_processor_runs_its_older_variants_and_no_newer_ones() {
        let table = [
            ("linux/amd64", "linux/amd64", Some(0)),
            ("linux/amd64/v3", "linux/amd64", Some(2)),
            ("linux/amd64", "linux/amd64/v3", None),
            ("linux/arm/v7", "linux/arm/v6", Some(1)),
            ("linux/arm/v6", "linux/arm/v7", None),
            ("linux/arm64/v8.2", "linux/arm64", Some(2)),
            ("linux/arm64", "linux/arm/v7", None),
            ("linux/amd64", "windows/amd64", None),
            ("linux/amd64", "unknown/unknown", None),
            ("linux/s390x", "linux/s390x", Some(0)),
        ];
        for (wanted, offered, expected) in table {
            let distance = wanted
                .parse::<Platform>()
                .unwrap()
                .distance_to(&offered.parse().unwrap());
            assert_eq!(distance, expected, "{offered} where {wanted} is wanted");
        }
    }
}
