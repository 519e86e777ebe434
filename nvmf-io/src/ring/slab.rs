//! A slab of operations, each with what it owns.
//!
//! An operation's key, its `user_data`, is index and generation. The generation moves on when the operation ends, so
//! a late completion of an ended operation finds nothing.

use super::Token;

/// The `user_data` of entries whose completion nobody asked for: cancellations. Never a key.
pub(super) const IGNORED: u64 = u64::MAX;

const NONE: u32 = u32::MAX;

pub(super) struct Op<W> {
    pub(super) token: Token,
    generation: u32,
    state: State<W>,
}

enum State<W> {
    Live(W),
    Free { next: u32 },
}

impl<W> Op<W> {
    /// What the operation does.
    pub(super) fn work(&mut self) -> &mut W {
        match &mut self.state {
            State::Live(work) => work,
            State::Free { .. } => unreachable!("only indices of live operations are used"),
        }
    }
}

/// All operations of a ring.
pub(super) struct Slab<W> {
    ops: Vec<Op<W>>,
    free: u32,
    live: usize,
}

impl<W> Slab<W> {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self {
            ops: Vec::with_capacity(capacity),
            free: NONE,
            live: 0,
        }
    }

    /// Adds an operation; allocates only when more are live than ever before and than there is capacity for.
    pub(super) fn insert(&mut self, token: Token, work: W) -> u32 {
        self.live += 1;
        let state = State::Live(work);
        if let Some(op) = self.ops.get_mut(self.free as usize) {
            let index = self.free;
            if let State::Free { next } = std::mem::replace(&mut op.state, state) {
                self.free = next;
            }
            op.token = token;
            return index;
        }
        let index =
            u32::try_from(self.ops.len()).expect("fewer than 2^32 operations fit in memory");
        self.ops.push(Op {
            token,
            generation: 0,
            state,
        });
        index
    }

    pub(super) fn key(&self, index: u32) -> u64 {
        u64::from(self.ops[index as usize].generation) << 32 | u64::from(index)
    }

    /// The index of the live operation with this key.
    pub(super) fn find(&self, key: u64) -> Option<u32> {
        let index = key as u32;
        let op = self.ops.get(index as usize)?;
        let live = op.generation == (key >> 32) as u32 && matches!(op.state, State::Live(_));
        live.then_some(index)
    }

    pub(super) fn get_mut(&mut self, index: u32) -> &mut Op<W> {
        &mut self.ops[index as usize]
    }

    /// Ends an operation.
    pub(super) fn remove(&mut self, index: u32) -> W {
        let op = &mut self.ops[index as usize];
        // The last generation is left out, so that no key equals `IGNORED`.
        op.generation = (op.generation + 1) % u32::MAX;
        match std::mem::replace(&mut op.state, State::Free { next: self.free }) {
            State::Live(work) => {
                self.free = index;
                self.live -= 1;
                work
            }
            State::Free { .. } => unreachable!("only indices of live operations are used"),
        }
    }

    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Indices of the live operations with `token`.
    pub(super) fn with_token(&self, token: Token) -> impl Iterator<Item = u32> + '_ {
        self.indices()
            .filter(move |&index| self.ops[index as usize].token == token)
    }

    /// Indices of all live operations.
    pub(super) fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..)
            .zip(&self.ops)
            .filter(|(_, op)| matches!(op.state, State::Live(_)))
            .map(|(index, _)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_ended_operations_find_nothing() {
        let mut slab = Slab::with_capacity(2);
        let first = slab.insert(Token(1), "first");
        let second = slab.insert(Token(1), "second");
        let key = slab.key(first);
        assert_eq!(slab.find(key), Some(first));
        assert_eq!(
            slab.with_token(Token(1)).collect::<Vec<_>>(),
            [first, second]
        );
        assert_eq!(slab.remove(first), "first");
        assert_eq!(slab.find(key), None);
        let third = slab.insert(Token(3), "third");
        assert_eq!(third, first, "the index is used again");
        assert_eq!(slab.find(key), None, "with another generation");
        assert_ne!(slab.key(third), key);
        assert_eq!(slab.find(IGNORED), None);
        assert_eq!(*slab.get_mut(third).work(), "third");
        assert_eq!(slab.live(), 2);
    }
}
