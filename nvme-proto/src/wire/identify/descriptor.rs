//! Namespace Identification Descriptors (CNS 03h): a list of entries with a header of four bytes
//! (NIDT, NIDL, two reserved) and NIDL bytes of identifier. An entry with NIDL 0 ends it.

use super::super::uid::{Eui64, Nguid, Uuid};
use super::{Csi, IDENTIFY_DATA_BYTES};

const HEADER_BYTES: usize = 4;

/// Namespace Identifier Type (NIDT).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DescriptorKind(pub u8);

impl DescriptorKind {
    /// IEEE Extended Unique Identifier, 8 bytes.
    pub const EUI64: Self = Self(1);
    /// Namespace Globally Unique Identifier, 16 bytes.
    pub const NGUID: Self = Self(2);
    /// Namespace UUID, 16 bytes.
    pub const UUID: Self = Self(3);
    /// Command Set Identifier, 1 byte.
    pub const CSI: Self = Self(4);
}

/// One descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Descriptor {
    /// EUI64.
    Eui64(Eui64),
    /// NGUID.
    Nguid(Nguid),
    /// UUID.
    Uuid(Uuid),
    /// Command set of the namespace.
    Csi(Csi),
}

/// Builds the data structure.
#[derive(Clone, Debug)]
pub struct DescriptorList {
    bytes: Box<[u8; IDENTIFY_DATA_BYTES]>,
    len: usize,
}

impl Default for DescriptorList {
    fn default() -> Self {
        Self {
            bytes: Box::new([0; IDENTIFY_DATA_BYTES]),
            len: 0,
        }
    }
}

impl DescriptorList {
    /// Appends a descriptor. Identifiers of zero mean "none" and are left out.
    pub fn push(&mut self, descriptor: Descriptor) {
        match descriptor {
            Descriptor::Eui64(id) if !id.is_none() => self.push_raw(DescriptorKind::EUI64, &id.0),
            Descriptor::Nguid(id) if !id.is_none() => self.push_raw(DescriptorKind::NGUID, &id.0),
            Descriptor::Uuid(id) if !id.is_none() => self.push_raw(DescriptorKind::UUID, &id.0),
            Descriptor::Csi(csi) => self.push_raw(DescriptorKind::CSI, &[csi.0]),
            _ => {}
        }
    }

    fn push_raw(&mut self, kind: DescriptorKind, id: &[u8]) {
        // There are four kinds, 57 bytes in all: a list that is full is one that was filled wrongly.
        debug_assert!(self.len + HEADER_BYTES + id.len() <= IDENTIFY_DATA_BYTES);
        let Some(entry) = self
            .bytes
            .get_mut(self.len..self.len + HEADER_BYTES + id.len())
        else {
            return;
        };
        entry[0] = kind.0;
        entry[1] = id.len() as u8;
        entry[HEADER_BYTES..].copy_from_slice(id);
        self.len += HEADER_BYTES + id.len();
    }

    /// The data structure.
    pub fn as_bytes(&self) -> &[u8; IDENTIFY_DATA_BYTES] {
        &self.bytes
    }
}

/// The descriptors in `data`. Unknown kinds are skipped, and so are known ones of a wrong length;
/// the list ends at NIDL 0 or where an entry would reach past the data.
pub fn descriptors(data: &[u8]) -> impl Iterator<Item = Descriptor> + '_ {
    let mut rest = data;
    core::iter::from_fn(move || {
        let [kind, len, _, _, tail @ ..] = rest else {
            return None;
        };
        let len = usize::from(*len);
        if len == 0 || len > tail.len() {
            rest = &[];
            return None;
        }
        let (id, next) = tail.split_at(len);
        rest = next;
        Some((DescriptorKind(*kind), id))
    })
    .filter_map(|(kind, id)| match kind {
        DescriptorKind::EUI64 => Some(Descriptor::Eui64(Eui64(id.try_into().ok()?))),
        DescriptorKind::NGUID => Some(Descriptor::Nguid(Nguid(id.try_into().ok()?))),
        DescriptorKind::UUID => Some(Descriptor::Uuid(Uuid(id.try_into().ok()?))),
        DescriptorKind::CSI => Some(Descriptor::Csi(Csi(*<&[u8; 1]>::try_from(id)
            .ok()?
            .first()?))),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden() {
        let mut list = DescriptorList::default();
        list.push(Descriptor::Uuid(Uuid([0xaa; 16])));
        list.push(Descriptor::Eui64(Eui64::NONE));
        list.push(Descriptor::Csi(Csi::NVM));
        let b = list.as_bytes();
        assert_eq!(b[..5], [3, 16, 0, 0, 0xaa]);
        assert_eq!(b[20..30], [4, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        let read: Vec<_> = descriptors(b).collect();
        assert_eq!(
            read,
            [
                Descriptor::Uuid(Uuid([0xaa; 16])),
                Descriptor::Csi(Csi::NVM)
            ]
        );
    }

    #[test]
    fn odd_entries_are_skipped() {
        let mut data = vec![9, 2, 0, 0, 1, 2]; // unknown kind
        data.extend([2, 3, 0, 0, 1, 2, 3]); // an NGUID of three bytes
        data.extend([4, 1, 0, 0, 2]);
        data.extend([3, 200, 0, 0, 1]); // reaches past the end
        assert_eq!(
            descriptors(&data).collect::<Vec<_>>(),
            [Descriptor::Csi(Csi(2))]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_end(data in prop::collection::vec(any::<u8>(), 0..4096)) {
            prop_assert!(descriptors(&data).count() <= data.len() / 5);
        }
    }
}
