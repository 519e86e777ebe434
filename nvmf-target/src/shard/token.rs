//! What the tokens of ring operations say: which queue and, for storage, which slot.
//!
//! A queue's index is used again after it is gone; the generation tells its late completions from those of its successor.

use nvme_proto::queue::SlotId;
use nvmf_io::Token;

use super::spaces::SpaceId;

/// Names an I/O queue of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct QueueKey {
    pub(super) index: u16,
    pub(super) generation: u16,
}

/// What an operation of the ring was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The mailbox has messages.
    Wake,
    /// A receive into receive buffers.
    Receive(QueueKey),
    /// A receive of what is known to come next, payload straight into its command's buffer.
    Step(QueueKey),
    /// A send.
    Send(QueueKey),
    /// An operation of a command on its backing.
    Storage(QueueKey, SlotId),
    /// The completion queue of an RDMA connection has something.
    Completions(QueueKey),
    /// A device that has a ring of its own has something to reap.
    Device(SpaceId),
}

const RECEIVE: u64 = 1;
const STEP: u64 = 2;
const SEND: u64 = 3;
const STORAGE: u64 = 4;
const DEVICE: u64 = 5;
const COMPLETIONS: u64 = 6;

impl Purpose {
    /// As a token: kind, generation, index and slot, 16 bits each.
    pub(super) fn token(self) -> Token {
        let (kind, key, slot) = match self {
            Self::Wake => return Token(0),
            Self::Receive(key) => (RECEIVE, key, 0),
            Self::Step(key) => (STEP, key, 0),
            Self::Send(key) => (SEND, key, 0),
            Self::Completions(key) => (COMPLETIONS, key, 0),
            Self::Storage(key, slot) => (STORAGE, key, slot.0),
            Self::Device(space) => return Token(DEVICE << 48 | u64::from(space.0)),
        };
        let (index, generation) = (u64::from(key.index), u64::from(key.generation));
        Token(kind << 48 | generation << 32 | index << 16 | u64::from(slot))
    }

    /// From a token that [`Purpose::token`] made.
    pub(super) fn of(token: Token) -> Self {
        let key = QueueKey {
            index: (token.0 >> 16) as u16,
            generation: (token.0 >> 32) as u16,
        };
        match token.0 >> 48 {
            RECEIVE => Self::Receive(key),
            STEP => Self::Step(key),
            SEND => Self::Send(key),
            STORAGE => Self::Storage(key, SlotId(token.0 as u16)),
            COMPLETIONS => Self::Completions(key),
            DEVICE => Self::Device(SpaceId(token.0 as u32)),
            _ => Self::Wake,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_what_they_were() {
        for (index, generation, slot) in [(0, 0, 0), (7, 9, 1023), (u16::MAX, u16::MAX, u16::MAX)] {
            let key = QueueKey { index, generation };
            for purpose in [
                Purpose::Wake,
                Purpose::Receive(key),
                Purpose::Step(key),
                Purpose::Send(key),
                Purpose::Completions(key),
                Purpose::Storage(key, SlotId(slot)),
                Purpose::Device(SpaceId(u32::from(slot) << 8)),
            ] {
                assert_eq!(Purpose::of(purpose.token()), purpose);
            }
        }
    }
}
