//! Namespaces and the table of a subsystem's namespaces.
//!
//! Both are immutable: adding, removing or resizing makes a new [`NamespaceTable`] that shares what did not change. A namespace that is
//! only resized keeps its [`Backing`], by which shards recognise it.

use std::sync::Arc;

use nvme_proto::wire::{Lba, Nsid};
use uuid::Uuid;

use super::counters::IoCounters;
use crate::backend::Backing;

/// What identifies a namespace to hosts, the same over restarts (a host drops a namespace whose identifiers changed), except for
/// memory namespaces, which get new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespaceIds {
    /// Never nil.
    pub uuid: Uuid,
    /// Namespace Globally Unique Identifier; never zero.
    pub nguid: [u8; 16],
    /// IEEE Extended Unique Identifier; zero for none.
    pub eui64: [u8; 8],
}

/// Block size and number of blocks of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    block_shift: u8,
    blocks: u64,
}

impl Geometry {
    /// A namespace of `size_bytes` in blocks of `1 << block_shift` bytes; a last part that fills no block is not served.
    /// `None` unless the block size is 512 to 65536 bytes.
    pub fn new(block_bytes: u32, size_bytes: u64) -> Option<Self> {
        let valid = block_bytes.is_power_of_two() && (512..=65536).contains(&block_bytes);
        let block_shift = block_bytes.trailing_zeros() as u8;
        valid.then_some(Self {
            block_shift,
            blocks: size_bytes >> block_shift,
        })
    }

    /// log2 of the block size, as LBADS in Identify Namespace has it.
    pub fn block_shift(&self) -> u8 {
        self.block_shift
    }

    /// Block size in bytes.
    pub fn block_bytes(&self) -> u32 {
        1 << self.block_shift
    }

    /// Number of blocks: NSZE.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Size in bytes, of whole blocks.
    pub fn size_bytes(&self) -> u64 {
        self.blocks << self.block_shift
    }

    /// The byte offset of `count_blocks` blocks from `start`, or `None` when any of them lies outside the namespace.
    #[inline]
    pub fn offset_bytes(&self, start: Lba, count_blocks: u64) -> Option<u64> {
        let end = start.0.checked_add(count_blocks)?;
        (end <= self.blocks).then(|| start.0 << self.block_shift)
    }
}

/// A namespace: an amount of storage that hosts read and write in blocks.
#[derive(Debug, Clone)]
pub struct Namespace {
    /// Its identifier in the subsystem.
    pub nsid: Nsid,
    /// Its identity.
    pub ids: NamespaceIds,
    /// Its block size and size.
    pub geometry: Geometry,
    /// Whether writes are refused with Namespace is Write Protected.
    pub read_only: bool,
    /// Where its blocks are.
    pub backing: Arc<Backing>,
    /// Its I/O, for SMART and metrics; kept over a resize.
    pub counters: Arc<IoCounters>,
}

/// A snapshot of a subsystem's namespaces, indexed by NSID.
#[derive(Debug, Clone, Default)]
pub struct NamespaceTable {
    slots: Vec<Option<Arc<Namespace>>>,
}

impl NamespaceTable {
    /// A table of `namespaces`; when two have one NSID the later replaces the earlier.
    pub fn new(namespaces: impl IntoIterator<Item = Arc<Namespace>>) -> Self {
        let mut table = Self::default();
        for namespace in namespaces {
            let index = namespace.nsid.0 as usize - 1;
            if table.slots.len() <= index {
                table.slots.resize(index + 1, None);
            }
            table.slots[index] = Some(namespace);
        }
        table
    }

    /// The namespace with this identifier.
    #[inline]
    pub fn get(&self, nsid: Nsid) -> Option<&Arc<Namespace>> {
        self.slots.get((nsid.0 as usize).wrapping_sub(1))?.as_ref()
    }

    /// All namespaces, by ascending NSID.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Namespace>> + '_ {
        self.slots.iter().flatten()
    }

    /// Number of namespaces.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there is no namespace.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// The highest NSID in use, 0 when there is none.
    pub fn highest_nsid(&self) -> Nsid {
        Nsid(self.slots.len() as u32)
    }

    /// The table with `namespace` added, or put in the place of the one with its NSID.
    pub fn with(&self, namespace: Arc<Namespace>) -> Self {
        Self::new(self.iter().cloned().chain([namespace]))
    }

    /// The table without the namespace `nsid`.
    pub fn without(&self, nsid: Nsid) -> Self {
        Self::new(
            self.iter()
                .filter(|namespace| namespace.nsid != nsid)
                .cloned(),
        )
    }
}

impl FromIterator<Arc<Namespace>> for NamespaceTable {
    fn from_iter<I: IntoIterator<Item = Arc<Namespace>>>(namespaces: I) -> Self {
        Self::new(namespaces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{BackingOptions, BackingSpec};

    fn namespace(nsid: u32, blocks: u64) -> Arc<Namespace> {
        let spec = BackingSpec::Null {
            size_bytes: blocks * 512,
        };
        let backing = Backing::open(
            &spec,
            &BackingOptions {
                read_only: false,
                block_bytes: Some(512),
            },
        )
        .unwrap();
        Arc::new(Namespace {
            nsid: Nsid(nsid),
            ids: NamespaceIds {
                uuid: Uuid::from_u128(nsid.into()),
                nguid: [1; 16],
                eui64: [0; 8],
            },
            geometry: Geometry::new(backing.block_bytes(), backing.size_bytes()).unwrap(),
            read_only: false,
            backing: Arc::new(backing),
            counters: IoCounters::new(1),
        })
    }

    #[test]
    fn ranges_are_checked_against_the_size() {
        let geometry = Geometry::new(4096, 10 * 4096 + 1).unwrap();
        assert_eq!((geometry.blocks(), geometry.size_bytes()), (10, 40960));
        assert_eq!(geometry.offset_bytes(Lba(9), 1), Some(36864));
        assert_eq!(geometry.offset_bytes(Lba(0), 10), Some(0));
        assert_eq!(geometry.offset_bytes(Lba(9), 2), None);
        assert_eq!(geometry.offset_bytes(Lba(10), 1), None);
        assert_eq!(
            geometry.offset_bytes(Lba(u64::MAX), 2),
            None,
            "the end may not wrap around"
        );
        assert_eq!(Geometry::new(1000, 1 << 20), None);
        assert_eq!(Geometry::new(256, 1 << 20), None);
    }

    #[test]
    fn tables_share_what_did_not_change() {
        let first = NamespaceTable::new([namespace(1, 8), namespace(5, 8)]);
        assert_eq!((first.len(), first.highest_nsid()), (2, Nsid(5)));
        for absent in [0, 2, 6, u32::MAX] {
            assert!(first.get(Nsid(absent)).is_none());
        }
        let second = first.with(namespace(2, 16)).without(Nsid(5));
        assert_eq!(second.iter().map(|n| n.nsid.0).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(second.highest_nsid(), Nsid(2));
        assert!(Arc::ptr_eq(
            first.get(Nsid(1)).unwrap(),
            second.get(Nsid(1)).unwrap()
        ));
    }
}
