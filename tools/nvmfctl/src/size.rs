//! Sizes in tables: powers of 1024.

const UNITS: [&str; 6] = ["", "K", "M", "G", "T", "P"];

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
    fn sizes_are_shown() {
        assert_eq!(show(1023), "1023");
        assert_eq!(show(10 << 30), "10G");
        assert_eq!(show(1536), "1.5K");
        assert_eq!(show(u64::MAX), "16384P");
    }
}
