//! From the command identifiers of open commands to their slots.
//!
//! A host may use any 16-bit value. Hosts number their commands from 0 or put a generation into the upper bits, so the low bits
//! alone spread well: open addressing with linear probing, at most half full, nothing to hash, nothing to allocate.

use super::SlotId;
use crate::wire::Cid;

#[derive(Clone, Copy, Debug)]
struct Entry {
    cid: u16,
    /// Slot + 1; 0 is an empty entry.
    slot_plus_one: u16,
}

const EMPTY: Entry = Entry {
    cid: 0,
    slot_plus_one: 0,
};

#[derive(Debug)]
pub(crate) struct CidMap {
    entries: Box<[Entry]>,
    mask: usize,
}

impl CidMap {
    /// Room for `slots` identifiers.
    pub(crate) fn new(slots: u16) -> Self {
        let entries = (usize::from(slots) * 2).next_power_of_two();
        Self {
            entries: vec![EMPTY; entries].into(),
            mask: entries - 1,
        }
    }

    /// The entry of `cid`, or else the empty one where it belongs. There always is an empty one.
    #[inline]
    fn find(&self, cid: Cid) -> usize {
        let mut at = usize::from(cid.0) & self.mask;
        loop {
            let entry = self.entries[at];
            if entry.slot_plus_one == 0 || entry.cid == cid.0 {
                return at;
            }
            at = (at + 1) & self.mask;
        }
    }

    #[inline]
    pub(crate) fn get(&self, cid: Cid) -> Option<SlotId> {
        self.entries[self.find(cid)]
            .slot_plus_one
            .checked_sub(1)
            .map(SlotId)
    }

    /// Adds `cid`; `false` when it is there already.
    #[inline]
    pub(crate) fn insert(&mut self, cid: Cid, slot: SlotId) -> bool {
        let at = self.find(cid);
        let entry = &mut self.entries[at];
        if entry.slot_plus_one != 0 {
            return false;
        }
        *entry = Entry {
            cid: cid.0,
            slot_plus_one: slot.0 + 1,
        };
        true
    }

    /// Removes `cid` and moves up what had been pushed past it, so that no search ends early.
    #[inline]
    pub(crate) fn remove(&mut self, cid: Cid) {
        let mut hole = self.find(cid);
        if self.entries[hole].slot_plus_one == 0 {
            return;
        }
        let mut at = hole;
        loop {
            at = (at + 1) & self.mask;
            let entry = self.entries[at];
            if entry.slot_plus_one == 0 {
                break;
            }
            // The entry may fill the hole unless its own place lies behind the hole.
            let home = usize::from(entry.cid) & self.mask;
            if at.wrapping_sub(home) & self.mask >= at.wrapping_sub(hole) & self.mask {
                self.entries[hole] = entry;
                hole = at;
            }
        }
        self.entries[hole] = EMPTY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        /// Few distinct low bits, so that probe sequences run into each other and around the end.
        #[test]
        fn behaves_as_a_map(slots in 1u16..12, steps in prop::collection::vec((any::<bool>(), 0u16..6, 0u16..4), 0..200)) {
            let (mut map, mut model) = (CidMap::new(slots), HashMap::new());
            for (n, (add, low, high)) in steps.into_iter().enumerate() {
                let cid = Cid(high << 8 | low.wrapping_sub(3) & 0xff);
                if add && model.len() < usize::from(slots) {
                    let slot = SlotId(n as u16);
                    let new = !model.contains_key(&cid);
                    prop_assert_eq!(map.insert(cid, slot), new);
                    model.entry(cid).or_insert(slot);
                } else {
                    map.remove(cid);
                    model.remove(&cid);
                }
                for high in 0..4u16 {
                    for low in 0..256u16 {
                        let cid = Cid(high << 8 | low);
                        prop_assert_eq!(map.get(cid), model.get(&cid).copied());
                    }
                }
            }
        }
    }
}
