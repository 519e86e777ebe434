//! Namespace lists: CNS 02h and 07h, and the Changed Namespace List log page.

use super::super::ids::Nsid;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Up to 1024 NSIDs in rising order; an entry of zero ends the list.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(transparent)]
pub struct NamespaceList {
    entries: [U32; Self::MAX_ENTRIES],
}

const _: () = assert!(size_of::<NamespaceList>() == 4096);

impl NamespaceList {
    /// The most entries that fit.
    pub const MAX_ENTRIES: usize = 1024;

    /// The first [`Self::MAX_ENTRIES`] of `nsids`.
    pub fn new(nsids: impl IntoIterator<Item = Nsid>) -> Self {
        let mut list = Self::new_zeroed();
        for (entry, nsid) in list.entries.iter_mut().zip(nsids) {
            *entry = U32::new(nsid.0);
        }
        list
    }

    /// The entries up to the first zero.
    pub fn iter(&self) -> impl Iterator<Item = Nsid> + '_ {
        self.entries
            .iter()
            .map(|e| Nsid(e.get()))
            .take_while(|&n| n != Nsid::NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden() {
        let list = NamespaceList::new([Nsid(1), Nsid(0x0102_0304)]);
        assert_eq!(list.as_bytes()[..12], [1, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0]);
        assert_eq!(NamespaceList::new((1..5000).map(Nsid)).iter().count(), 1024);
    }

    proptest! {
        #[test]
        fn round_trip(nsids in prop::collection::vec(1u32.., 0..1024)) {
            let list = NamespaceList::new(nsids.iter().copied().map(Nsid));
            prop_assert_eq!(list.iter().map(|n| n.0).collect::<Vec<_>>(), nsids);
        }
    }
}
