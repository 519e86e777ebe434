//! Block sizes, times and core lists as fio writes them, and units of what is shown. Sizes are those of the whole project
//! (`nvmf-size`), whose powers of 1024 are fio's default.
//!
//! A bare number is in the unit the option names (bytes, seconds). Every parser bounds its input and says what it would have taken.

use std::time::Duration;

/// Parses a block size: a size that is a power of two from 512 bytes to 2 MiB.
pub fn parse_block_size(text: &str) -> Result<u32, String> {
    let bytes = nvmf_size::parse(text).map_err(|error| error.to_string())?;
    if !bytes.is_power_of_two() || !(512..=2 << 20).contains(&bytes) {
        return Err(format!(
            "block size {text}: it must be a power of two from 512 to 2m"
        ));
    }
    Ok(bytes as u32)
}

/// Parses a time such as `30`, `30s`, `500ms` or `2m`; a bare number is in seconds.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.len() - lower.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = lower.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("'{text}' is not a time: write 30, 30s, 500ms or 2m"))?;
    let scale_us = match unit.trim() {
        "us" => 1,
        "ms" => 1_000,
        "" | "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        _ => {
            return Err(format!(
                "'{text}' is not a time: the unit is one of us, ms, s, m, h"
            ));
        }
    };
    number
        .checked_mul(scale_us)
        .map(Duration::from_micros)
        .ok_or_else(|| format!("'{text}' is too long a time"))
}

/// Parses a list of cores such as `0,2-3`.
pub fn parse_cores(text: &str) -> Result<Vec<usize>, String> {
    let bad = || format!("'{text}' is not a list of cores: write 0,2-3");
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| bad())?;
        let last: usize = last.trim().parse().map_err(|_| bad())?;
        if last < first || last >= 1024 {
            return Err(bad());
        }
        cores.extend(first..=last);
    }
    Ok(cores)
}

/// Writes a number of bytes with a binary unit, as fio's tables do.
pub fn show_bytes(bytes: f64) -> String {
    let (mut value, mut unit) = (bytes, 0);
    while value >= 1024.0 && unit < 4 {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", ["B", "KiB", "MiB", "GiB", "TiB"][unit])
}

/// Writes a count with k or M behind it.
pub fn show_count(count: f64) -> String {
    match count {
        c if c >= 1e6 => format!("{:.2}M", c / 1e6),
        c if c >= 1e3 => format!("{:.1}k", c / 1e3),
        c => format!("{c:.0}"),
    }
}

/// Writes nanoseconds in the unit that reads best.
pub fn show_ns(ns: f64) -> String {
    match ns {
        n if n >= 1e9 => format!("{:.2} s", n / 1e9),
        n if n >= 1e6 => format!("{:.2} ms", n / 1e6),
        n => format!("{:.1} us", n / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_bounded() {
        assert_eq!(parse_block_size("4k"), Ok(4096));
        for text in ["0", "256", "3k", "4m"] {
            assert!(parse_block_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_default_to_seconds() {
        assert_eq!(parse_time("3"), Ok(Duration::from_secs(3)));
        assert_eq!(parse_time("250ms"), Ok(Duration::from_millis(250)));
        assert!(parse_time("3 weeks").is_err());
    }

    #[test]
    fn core_lists_take_ranges() {
        assert_eq!(parse_cores("0,2-3"), Ok(vec![0, 2, 3]));
        assert!(parse_cores("3-1").is_err());
        assert!(parse_cores("a").is_err());
    }
}
