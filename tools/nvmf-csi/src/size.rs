//! From a range of sizes to one. Sizes are in bytes.

use tonic::Status;

use crate::Result;
use crate::proto::CapacityRange;

/// Sizes are multiples of this: the block size of volumes.
const GRANULE_BYTES: u64 = 4096;

/// The least and the most of a range; 0 in the message says nothing, and is `None` here.
pub fn bounds(range: Option<&CapacityRange>) -> Result<(Option<u64>, Option<u64>)> {
    let Some(range) = range else {
        return Ok((None, None));
    };
    let bound = |field: &str, value: i64| match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(Status::invalid_argument(format!(
            "capacity_range.{field} is negative"
        ))),
    };
    let required = bound("required_bytes", range.required_bytes)?;
    let limit = bound("limit_bytes", range.limit_bytes)?;
    if let (Some(required), Some(limit)) = (required, limit)
        && required > limit
    {
        return Err(Status::invalid_argument(format!(
            "capacity_range: required_bytes {required} is more than limit_bytes {limit}"
        )));
    }
    Ok((required, limit))
}

/// The size of a new volume: what is required, or `default_bytes`; at least `least_bytes`, which a file system or a source needs.
pub fn choose(range: Option<&CapacityRange>, default_bytes: u64, least_bytes: u64) -> Result<u64> {
    let (required, limit) = bounds(range)?;
    let wanted = match (required, limit) {
        (Some(required), _) => required,
        (None, Some(limit)) => default_bytes.min(limit / GRANULE_BYTES * GRANULE_BYTES),
        (None, None) => default_bytes,
    };
    let out_of_range = |why: String| Status::out_of_range(format!("capacity_range: {why}"));
    let size = wanted
        .max(least_bytes)
        .checked_next_multiple_of(GRANULE_BYTES)
        .filter(|size| i64::try_from(*size).is_ok())
        .ok_or_else(|| out_of_range(format!("{wanted} bytes are more than a volume can have")))?;
    match limit {
        Some(limit) if size > limit => Err(out_of_range(format!(
            "the volume needs {size} bytes, which is more than limit_bytes {limit}"
        ))),
        _ => Ok(size),
    }
}

/// Whether a volume of `size_bytes` is within the range.
pub fn fits(range: Option<&CapacityRange>, size_bytes: u64) -> Result<bool> {
    let (required, limit) = bounds(range)?;
    Ok(required.is_none_or(|required| size_bytes >= required)
        && limit.is_none_or(|limit| size_bytes <= limit))
}

/// Bytes as the interface counts them.
pub fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A size as people write it in attributes: a number of bytes, or one with `Ki`, `Mi`, `Gi` or `Ti`, or `k`, `M`, `G` or `T`, as
/// Kubernetes' quantities have them. `G` is 1000³ there, and 1024³ on the command line.
pub fn quantity(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    let of_unit = |&(unit, bytes): &(&str, u64)| Some((text.strip_suffix(unit)?, bytes));
    let (digits, unit_bytes) = UNITS.iter().find_map(of_unit).unwrap_or((text, 1));
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = digits.parse().ok().filter(|_| is_number)?;
    number.checked_mul(unit_bytes).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    const GIB: i64 = 1 << 30;

    fn range(required_bytes: i64, limit_bytes: i64) -> CapacityRange {
        CapacityRange {
            required_bytes,
            limit_bytes,
        }
    }

    #[test]
    fn sizes_are_what_is_asked_for_in_whole_blocks() {
        let chosen = |required, limit| choose(Some(&range(required, limit)), 10 << 30, 0);
        assert_eq!(choose(None, 10 << 30, 0).unwrap(), 10 << 30);
        assert_eq!(chosen(1, 0).unwrap(), 4096);
        assert_eq!(chosen(4097, 0).unwrap(), 8192);
        assert_eq!(chosen(GIB, GIB).unwrap(), 1 << 30);
        assert_eq!(chosen(0, GIB + 5).unwrap(), 1 << 30);
        assert_eq!(chosen(4097, 4098).unwrap_err().code(), Code::OutOfRange);
        assert_eq!(chosen(i64::MAX, 0).unwrap_err().code(), Code::OutOfRange);
        assert_eq!(chosen(2, 1).unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(chosen(-1, 0).unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(chosen(0, -1).unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn a_source_or_file_system_may_need_more() {
        assert_eq!(choose(Some(&range(1, 0)), 0, 1 << 30).unwrap(), 1 << 30);
        let error = choose(Some(&range(1, 4096)), 0, 1 << 30).unwrap_err();
        assert_eq!(error.code(), Code::OutOfRange);
    }

    #[test]
    fn quantities() {
        for (text, bytes) in [
            ("4096", 4096),
            ("1Ki", 1024),
            ("512Mi", 512 << 20),
            ("2G", 2_000_000_000),
            ("1Ti", 1 << 40),
        ] {
            assert_eq!(quantity(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "Gi",
            "-1",
            "+1",
            "1.5Gi",
            "0",
            "99999999999Ti",
            "1X",
            "1 Gi",
        ] {
            assert_eq!(quantity(text), None, "{text}");
        }
    }

    #[test]
    fn ranges_hold_what_is_between() {
        assert!(fits(None, 5).unwrap());
        assert!(fits(Some(&range(4, 6)), 5).unwrap());
        assert!(!fits(Some(&range(6, 0)), 5).unwrap());
        assert!(!fits(Some(&range(0, 4)), 5).unwrap());
    }
}
