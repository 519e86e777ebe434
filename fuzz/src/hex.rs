//! Inputs as text.

/// The bytes of a line of hexadecimal digits.
pub fn from_hex(line: &str) -> Option<Vec<u8>> {
    if !line.is_ascii() || !line.len().is_multiple_of(2) {
        return None;
    }
    (0..line.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&line[at..at + 2], 16).ok())
        .collect()
}
