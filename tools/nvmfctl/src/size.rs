//! Sizes as people write and read them: powers of 1024.

const UNITS: [&str; 6] = ["", "K", "M", "G", "T", "P"];

/// Bytes of a text such as `4096`, `512M`, `10G` or `10GiB`.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_end_matches("iB").trim_end_matches('B');
    let power = UNITS
        .iter()
        .position(|name| name.eq_ignore_ascii_case(unit));
    let bytes = number
        .parse::<u64>()
        .ok()
        .zip(power)
        .and_then(|(number, power)| number.checked_mul(1 << (10 * power)));
    bytes
        .ok_or_else(|| format!("{text:?} is no size; write such as 512M, 10G or a number of bytes"))
}

/// Three digits and a unit.
pub fn show(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes}"),
        _ if value.fract() == 0.0 => format!("{value}{}", UNITS[unit]),
        _ => format!("{value:.1}{}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512M", 512 << 20),
            ("10GiB", 10 << 30),
            ("2t", 2 << 40),
            ("1KB", 1024),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "G", "1.5G", "-1", "10X", "99999999999999P", "1 G"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(show(1023), "1023");
        assert_eq!(show(10 << 30), "10G");
        assert_eq!(show(1536), "1.5K");
        assert_eq!(show(u64::MAX), "16384P");
    }
}
