//! A first-in first-out of slots with a fixed capacity.

use super::SlotId;

/// Each slot is in it at most once (its owner keeps a flag), so a capacity of all slots never overflows.
#[derive(Debug)]
pub(crate) struct SlotRing {
    entries: Box<[u16]>,
    mask: u16,
    head: u16,
    tail: u16,
}

impl SlotRing {
    pub(crate) fn new(slots: u16) -> Self {
        let capacity = slots.next_power_of_two();
        Self {
            entries: vec![0; usize::from(capacity)].into(),
            mask: capacity - 1,
            head: 0,
            tail: 0,
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    #[inline]
    pub(crate) fn push(&mut self, slot: SlotId) {
        debug_assert!(self.tail.wrapping_sub(self.head) <= self.mask);
        self.entries[usize::from(self.tail & self.mask)] = slot.0;
        self.tail = self.tail.wrapping_add(1);
    }

    #[inline]
    pub(crate) fn front(&self) -> Option<SlotId> {
        (!self.is_empty()).then(|| SlotId(self.entries[usize::from(self.head & self.mask)]))
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Option<SlotId> {
        let slot = self.front()?;
        self.head = self.head.wrapping_add(1);
        Some(slot)
    }

    pub(crate) fn clear(&mut self) {
        self.head = self.tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn behaves_as_a_queue(slots in 1u16..20, pushes: Vec<bool>) {
            let (mut ring, mut model) = (SlotRing::new(slots), VecDeque::new());
            for (n, push) in pushes.into_iter().enumerate() {
                if push && model.len() < usize::from(slots) {
                    let slot = SlotId(n as u16 % slots);
                    ring.push(slot);
                    model.push_back(slot);
                } else {
                    prop_assert_eq!(ring.front(), model.front().copied());
                    prop_assert_eq!(ring.pop(), model.pop_front());
                }
                prop_assert_eq!(ring.is_empty(), model.is_empty());
            }
        }
    }
}
