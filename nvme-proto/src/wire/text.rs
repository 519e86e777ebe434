//! Fixed-length ASCII fields, left justified and padded with spaces.

use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// An ASCII field of `N` bytes. A peer may send anything; reading stops at the padding and shows
/// what is not printable as `?`.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(transparent)]
pub struct Ascii<const N: usize>(pub [u8; N]);

impl<const N: usize> Ascii<N> {
    /// A field holding `text`, or `None` if it is longer than the field or not printable ASCII.
    pub fn new(text: &str) -> Option<Self> {
        let fits = text.len() <= N && text.bytes().all(|b| (0x20..=0x7e).contains(&b));
        fits.then(|| {
            let mut bytes = [b' '; N];
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            Self(bytes)
        })
    }

    /// The bytes without padding. Peers pad with spaces or with NUL; both are taken off.
    pub fn trimmed(&self) -> &[u8] {
        let text = self.0.split(|&b| b == 0).next().unwrap_or_default();
        text.trim_ascii_end()
    }
}

impl<const N: usize> fmt::Display for Ascii<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        self.trimmed().iter().try_for_each(|&b| {
            f.write_char(if matches!(b, 0x20..=0x7e) {
                b.into()
            } else {
                '?'
            })
        })
    }
}

impl<const N: usize> fmt::Debug for Ascii<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_and_limits() {
        let field = Ascii::<8>::new("ab c").unwrap();
        assert_eq!(&field.0, b"ab c    ");
        assert_eq!(field.to_string(), "ab c");
        assert_eq!(Ascii::<4>(*b"a\0xy").to_string(), "a");
        assert_eq!(Ascii::<4>([b'a', 0x1b, b'c', b' ']).to_string(), "a?c");
        assert!(Ascii::<4>::new("abcde").is_none());
        assert!(Ascii::<4>::new("a\u{e9}").is_none());
    }
}
