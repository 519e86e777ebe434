//! [`Rotation`]: which of a controller's queues on a shard takes the next command.
//!
//! Queues take turns, by bursts: what is sent together on one queue is one message, and a message costs sender and receiver as much
//! as several commands. A burst ends when the shard sends, and before that when so much went to one queue that others would stand
//! idle for it: a target has a queue's commands on one core.

/// Queues among which all that is open is spread at the least. With few commands open each takes the next queue; a thousand go out
/// in bursts.
const SPREAD: usize = 4;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(crate) struct Rotation {
    /// The queue that takes the next command, if it can.
    next: usize,
    /// Commands of the burst that it may still take.
    left: usize,
    /// Which flush the burst goes out with.
    flush: u64,
}

impl Rotation {
    /// The queue, of `count`, for one more command when `open` are, which goes out with `flush`. `None` where no queue has room.
    pub fn pick(
        &mut self,
        count: usize,
        flush: u64,
        open: usize,
        has_room: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        if self.flush != flush && self.left > 0 {
            self.next += 1;
            self.left = 0;
        }
        self.flush = flush;
        // A queue may have gone meanwhile.
        let at = (0..count)
            .map(|step| (self.next + step) % count)
            .find(|&at| has_room(at))?;
        if at != self.next || self.left == 0 {
            self.left = (open / SPREAD).max(1);
        }
        self.left -= 1;
        self.next = if self.left == 0 { at + 1 } else { at };
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picks(
        rotation: &mut Rotation,
        flush: u64,
        open: std::ops::RangeInclusive<usize>,
    ) -> Vec<usize> {
        open.map(|open| rotation.pick(8, flush, open, |_| true).unwrap())
            .collect()
    }

    #[test]
    fn few_commands_take_queues_in_turn() {
        let mut rotation = Rotation::default();
        assert_eq!(picks(&mut rotation, 0, 1..=7), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(picks(&mut rotation, 0, 1..=3), [7, 0, 1]);
    }

    #[test]
    fn many_commands_go_out_in_bursts_over_enough_queues() {
        let mut rotation = Rotation::default();
        let mut taken = [0; 8];
        for _ in 0..64 {
            taken[rotation.pick(8, 0, 64, |_| true).unwrap()] += 1;
        }
        assert_eq!(taken, [16, 16, 16, 16, 0, 0, 0, 0]);
        for _ in 0..64 {
            taken[rotation.pick(8, 0, 64, |_| true).unwrap()] += 1;
        }
        assert_eq!(taken, [16; 8], "all have their turn");
    }

    #[test]
    fn a_burst_ends_with_what_it_goes_out_with() {
        let mut rotation = Rotation::default();
        assert_eq!(picks(&mut rotation, 0, 64..=66), [0, 0, 0]);
        assert_eq!(picks(&mut rotation, 1, 64..=65), [1, 1]);
        assert_eq!(picks(&mut rotation, 2, 1..=2), [2, 3]);
        assert_eq!(picks(&mut rotation, 3, 1..=1), [4]);
    }

    #[test]
    fn queues_without_room_are_passed_over_and_none_is_said_so() {
        let mut rotation = Rotation::default();
        assert_eq!(rotation.pick(4, 0, 64, |at| at >= 2), Some(2));
        assert_eq!(
            rotation.pick(4, 0, 64, |at| at == 1),
            Some(1),
            "in the middle of a burst"
        );
        assert_eq!(rotation.pick(4, 0, 64, |_| false), None);
        assert_eq!(rotation.pick(0, 0, 64, |_| true), None);
        assert_eq!(
            rotation.pick(1, 0, 64, |_| true),
            Some(0),
            "fewer queues than there were"
        );
    }
}
