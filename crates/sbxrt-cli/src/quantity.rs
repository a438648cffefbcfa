//! Sizes and durations as people write them, both ways.

use std::fmt::Write as _;
use std::time::Duration;

/// The suffixes of sizes, as Docker reads them: each is binary, whatever its spelling.
const SIZE_UNITS: &[(&[&str], u32)] = &[
    (&["", "b"], 0),
    (&["k", "kb", "kib"], 10),
    (&["m", "mb", "mib"], 20),
    (&["g", "gb", "gib"], 30),
    (&["t", "tb", "tib"], 40),
];

/// The units of durations in nanoseconds.
const TIME_UNITS: &[(&str, u64)] = &[
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// Reads a number of bytes: `512m`, `1.5g`, `64KiB`, `1000`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let unit = unit.trim().to_ascii_lowercase();
    let shift = SIZE_UNITS
        .iter()
        .find_map(|(names, shift)| names.contains(&unit.as_str()).then_some(*shift))
        .ok_or_else(|| format!("unknown unit {unit:?}; write b, k, m, g or t"))?;
    scale(number, 1 << shift).ok_or_else(|| "write a size such as 512m, 1.5g or 65536".to_owned())
}

/// Reads a duration: `10s`, `500ms`, `1h30m`, `1.5s`, or plain seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let malformed = || "write a duration such as 10s, 500ms, 1h30m or plain seconds".to_owned();
    let mut nanoseconds = 0_u64;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(malformed());
    }
    while !rest.is_empty() {
        let (number, after) = split(rest);
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let factor = match unit.trim() {
            // A bare number is seconds, but only where it stands alone: in `1m30` it could be anything.
            "" if rest.len() == text.trim().len() => 1_000_000_000,
            unit => TIME_UNITS
                .iter()
                .find_map(|(name, factor)| (*name == unit).then_some(*factor))
                .ok_or_else(malformed)?,
        };
        let part = scale(number, factor).ok_or_else(malformed)?;
        nanoseconds = nanoseconds.checked_add(part).ok_or_else(malformed)?;
        rest = next.trim_start();
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Writes a number of bytes with a binary unit: `512 MiB`, `1.5 GiB`.
pub(crate) fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10_235 && unit + 1 < UNITS.len() {
        // Rounded, so that 1023.96 KiB does not become 1024.0 KiB.
        tenths = (tenths + 512) / 1024;
        unit += 1;
    }
    match tenths % 10 {
        0 => format!("{} {}", tenths / 10, UNITS[unit]),
        fraction => format!("{}.{fraction} {}", tenths / 10, UNITS[unit]),
    }
}

/// Writes a duration in the syntax of [`parse_duration`]: `1m30s`, `500ms`, `1.5s`.
pub(crate) fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let milliseconds = duration.subsec_millis();
    if seconds == 0 {
        return format!("{milliseconds}ms");
    }
    let mut text = String::new();
    // Writing to a string cannot fail.
    for (unit, factor) in [("h", 3600), ("m", 60)] {
        let count = if factor == 60 {
            seconds / 60 % 60
        } else {
            seconds / factor
        };
        if count > 0 {
            let _ = write!(text, "{count}{unit}");
        }
    }
    let rest = seconds % 60;
    if milliseconds > 0 {
        let decimals = format!("{milliseconds:03}");
        let _ = write!(text, "{rest}.{}s", decimals.trim_end_matches('0'));
    } else if rest > 0 {
        let _ = write!(text, "{rest}s");
    }
    text
}

/// Writes a number of things: `1 layer`, `3 layers`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// Splits a text behind its leading number.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    text.split_at(end)
}

/// Multiplies a decimal number; `None` where it is none or the product does not fit.
fn scale(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    // More digits than these make no difference to any unit here.
    let fraction = &fraction[..fraction.len().min(15)];
    let denominator = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = fraction.parse::<u128>().ok()? * u128::from(factor) / denominator;
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(factor)?
        .checked_add(u64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        let table = [
            ("0", Some(0)),
            ("1000", Some(1000)),
            ("7b", Some(7)),
            ("64k", Some(64 << 10)),
            ("64KiB", Some(64 << 10)),
            ("512m", Some(512 << 20)),
            ("512 MB", Some(512 << 20)),
            ("1.5g", Some(3 << 29)),
            ("2T", Some(2 << 40)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("99999999999g", None),
            ("", None),
            ("m", None),
            ("-1", None),
            ("1.", None),
            (".5m", None),
            ("1.2.3m", None),
            ("5x", None),
            ("5 m b", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_size(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn durations_are_read_with_units_or_as_seconds() {
        let table = [
            ("10", Some(10_000)),
            ("0", Some(0)),
            ("10s", Some(10_000)),
            ("500ms", Some(500)),
            ("2m", Some(120_000)),
            ("1h30m", Some(5_400_000)),
            ("1h 30m", Some(5_400_000)),
            ("1.5s", Some(1500)),
            ("0.25", Some(250)),
            ("1d", Some(86_400_000)),
            ("", None),
            ("s", None),
            ("1m30", None),
            ("10 parsecs", None),
            ("-1s", None),
            ("1e3s", None),
            ("99999999999999999d", None),
        ];
        for (text, expected) in table {
            assert_eq!(
                parse_duration(text).ok(),
                expected.map(Duration::from_millis),
                "{text:?}"
            );
        }
    }

    #[test]
    fn sizes_are_written_with_at_most_one_decimal() {
        let table = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1 MiB"),
            (64 << 20, "64 MiB"),
            (5 << 30, "5 GiB"),
            (u64::MAX, "16384 PiB"),
        ];
        for (bytes, expected) in table {
            assert_eq!(format_size(bytes), expected, "{bytes}");
        }
    }

    #[test]
    fn durations_that_are_written_read_back_as_themselves() {
        for (milliseconds, expected) in [
            (1, "1ms"),
            (500, "500ms"),
            (1500, "1.5s"),
            (10_000, "10s"),
            (60_000, "1m"),
            (5_405_020, "1h30m5.02s"),
        ] {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!(format_duration(duration), expected);
            assert_eq!(parse_duration(expected), Ok(duration));
        }
    }
}
