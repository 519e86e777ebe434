//! Where the next I/O goes and whether it reads or writes.
//!
//! Random offsets visit every block of the range exactly once in each pass, in an order given by the seed, as fio does with
//! its default random map; here a keyed permutation takes the map's place, so a range of any size costs no memory.

/// A keyed permutation of `0..blocks`: a four-round Feistel network over the next even power of two, walked until it lands inside.
#[derive(Clone, Debug)]
pub struct Permutation {
    blocks: u64,
    half_bits: u32,
    keys: [u64; 4],
}

impl Permutation {
    /// A permutation of `0..blocks` (at least one block).
    pub fn new(blocks: u64, seed: u64) -> Self {
        assert!(blocks > 0, "a range holds at least one block");
        let bits = 64 - (blocks - 1).leading_zeros().min(63);
        let mut state = seed;
        Self {
            blocks,
            half_bits: bits.div_ceil(2).max(1),
            keys: std::array::from_fn(|_| next_random(&mut state)),
        }
    }

    /// The block at place `index` of the order.
    #[inline]
    pub fn at(&self, index: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let mut value = index;
        // The domain is less than four times the range, so few steps are needed on average.
        loop {
            let (mut left, mut right) = (value >> self.half_bits, value & mask);
            for key in self.keys {
                let mixed = (right ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                (left, right) = (right, left ^ ((mixed >> 29) & mask));
            }
            value = left << self.half_bits | right;
            if value < self.blocks {
                return value;
            }
        }
    }
}

/// SplitMix64.
#[inline]
pub fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The order of blocks of one pass after another.
#[derive(Clone, Debug)]
pub struct Order {
    blocks: u64,
    seed: u64,
    random: Option<Permutation>,
    index: u64,
    pass: u64,
}

impl Order {
    /// An order over `blocks` blocks, sequential or random.
    pub fn new(blocks: u64, random: bool, seed: u64) -> Self {
        Self {
            blocks,
            seed,
            random: random.then(|| Permutation::new(blocks, seed)),
            index: 0,
            pass: 0,
        }
    }

    /// The pass of the block that [`Order::next_block`] yields next, counted from 0.
    pub fn pass(&self) -> u64 {
        self.pass
    }

    /// Whether the next block begins a pass other than the first.
    pub fn at_pass_start(&self) -> bool {
        self.index == 0 && self.pass > 0
    }

    /// The next block.
    #[inline]
    pub fn next_block(&mut self) -> u64 {
        let block = self
            .random
            .as_ref()
            .map_or(self.index, |p| p.at(self.index));
        self.index += 1;
        if self.index == self.blocks {
            self.index = 0;
            self.pass += 1;
            if self.random.is_some() {
                self.random = Some(Permutation::new(
                    self.blocks,
                    self.seed.wrapping_add(self.pass),
                ));
            }
        }
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_visited_once_in_each_pass() {
        for blocks in [1u64, 2, 3, 7, 64, 1000, 4097] {
            let mut order = Order::new(blocks, true, 42);
            for pass in 0..3 {
                assert_eq!(order.pass(), pass);
                let mut seen: Vec<u64> = (0..blocks).map(|_| order.next_block()).collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..blocks).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn random_order_is_not_sequential() {
        let mut order = Order::new(1 << 20, true, 1);
        let ascending = (0..1000)
            .map(|_| order.next_block())
            .collect::<Vec<_>>()
            .windows(2)
            .filter(|w| w[1] == w[0] + 1)
            .count();
        assert!(ascending < 10);
    }
}
