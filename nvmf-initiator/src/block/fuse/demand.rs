//! How many readers wait in the kernel for requests: as many as were of use in the last turns.

/// Turns in a row in which every reader was of use, before there are more: a single stream of requests, which never
/// feeds two, then pays for a fruitless reader only now and then.
const BUSY_TURNS_TO_GROW: u32 = 4;

/// How many readers there shall be.
pub(super) struct Demand {
    readers: usize,
    /// Requests taken in this turn.
    pub served: usize,
    busy_turns: u32,
}

impl Default for Demand {
    fn default() -> Self {
        Demand {
            readers: 1,
            served: 0,
            busy_turns: 0,
        }
    }
}

impl Demand {
    /// Learns from the turn that ends with `waiting` readers still waiting; no more than `most` are wanted.
    pub fn end_turn(&mut self, waiting: usize, most: usize) -> usize {
        let served = std::mem::take(&mut self.served);
        if waiting > 0 && served > 0 {
            self.readers = served.clamp(1, self.readers);
            self.busy_turns = 0;
        } else if served > 0 {
            self.busy_turns += 1;
            if self.busy_turns >= BUSY_TURNS_TO_GROW {
                self.readers *= 2;
                self.busy_turns = 0;
            }
        }
        self.readers = self.readers.min(most);
        self.readers
    }
}
