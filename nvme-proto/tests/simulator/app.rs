//! Who uses the namespace: issues reads, writes and flushes, and knows what every block must hold.
//!
//! Operations in flight never overlap where one of them writes, as with any sane user of a disk, so what a read must return is always
//! known. An operation that fails or loses its connection is held and issued again until it succeeds.

use crate::rng::Rng;
use std::collections::{HashMap, VecDeque};

pub const BLOCK_BYTES: usize = 512;
pub const BLOCKS: usize = 96;
/// Above the smallest R2T window, so that transfers take several.
const MAX_BLOCKS: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Flush,
}

#[derive(Clone, Copy, Debug)]
pub struct Op {
    pub id: u64,
    pub kind: Kind,
    pub slba: usize,
    pub blocks: usize,
    /// How often it was submitted.
    pub attempts: u32,
}

impl Op {
    pub fn bytes(&self) -> usize {
        self.blocks * BLOCK_BYTES
    }

    /// What a write puts there.
    pub fn data(&self) -> Vec<u8> {
        (self.slba..self.slba + self.blocks)
            .flat_map(|block| content(self.id, block))
            .collect()
    }
}

/// What block `block` holds after write `id`; zeroes before any.
pub fn content(id: u64, block: usize) -> [u8; BLOCK_BYTES] {
    let mut bytes = [id.to_le_bytes()[0]; BLOCK_BYTES];
    bytes[..8].copy_from_slice(&id.to_le_bytes());
    bytes[8..16].copy_from_slice(&(if id == 0 { 0 } else { block as u64 }).to_le_bytes());
    bytes
}

/// Why an operation has to be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    ConnectionLost,
    Damaged,
    Aborted,
}

pub struct App {
    /// The last acknowledged write of each block.
    acknowledged: [u64; BLOCKS],
    writers: [bool; BLOCKS],
    readers: [u8; BLOCKS],
    /// Issued and not yet acknowledged, by id; `true` while submitted on a connection.
    open: HashMap<u64, bool>,
    /// To be issued again.
    held: VecDeque<Op>,
    next_id: u64,
    pub completed: u64,
    pub reads_checked: u64,
    pub reissued_writes: u64,
}

impl App {
    pub fn new() -> Self {
        Self {
            acknowledged: [0; BLOCKS],
            writers: [false; BLOCKS],
            readers: [0; BLOCKS],
            open: HashMap::new(),
            held: VecDeque::new(),
            next_id: 1,
            completed: 0,
            reads_checked: 0,
            reissued_writes: 0,
        }
    }

    /// Something to submit: what is held first, else something new where that overlaps nothing.
    pub fn next(&mut self, rng: &mut Rng, new: bool) -> Option<Op> {
        if !self.held.is_empty() {
            let at = rng.below(self.held.len());
            return self.held.remove(at);
        }
        if !new {
            return None;
        }
        let kind = rng.pick(&[
            Kind::Read,
            Kind::Read,
            Kind::Write,
            Kind::Write,
            Kind::Write,
            Kind::Flush,
        ]);
        let most = rng.pick(&[1, 8, MAX_BLOCKS]);
        let blocks = if kind == Kind::Flush {
            0
        } else {
            1 + rng.below(most)
        };
        // Half of it at the start, so that writes follow each other closely.
        let slba = if rng.chance(50) {
            0
        } else {
            rng.below(BLOCKS - blocks + 1)
        };
        let range = slba..slba + blocks;
        let free = match kind {
            Kind::Read | Kind::Flush => !self.writers[range.clone()].contains(&true),
            Kind::Write => {
                !self.writers[range.clone()].contains(&true)
                    && self.readers[range.clone()].iter().all(|n| *n == 0)
            }
        };
        if !free {
            return None;
        }
        for block in range {
            match kind {
                Kind::Read => self.readers[block] += 1,
                Kind::Write => self.writers[block] = true,
                Kind::Flush => {}
            }
        }
        let id = self.next_id;
        self.next_id += 1;
        self.open.insert(id, false);
        Some(Op {
            id,
            kind,
            slba,
            blocks,
            attempts: 0,
        })
    }

    /// The operation is on a connection now.
    pub fn submitted(&mut self, op: &mut Op) {
        op.attempts += 1;
        if op.attempts > 1 && op.kind == Kind::Write {
            self.reissued_writes += 1;
        }
        *self
            .open
            .get_mut(&op.id)
            .expect("submitted operations are open") = true;
    }

    /// It could not be submitted now.
    pub fn put_back(&mut self, op: Op) {
        self.held.push_back(op);
    }

    fn take(&mut self, op: &Op) -> Result<(), String> {
        match self.open.get_mut(&op.id) {
            Some(submitted @ true) => {
                *submitted = false;
                Ok(())
            }
            Some(false) => Err(format!("{op:?} completed twice on one submission")),
            None => Err(format!("{op:?} completed after it was acknowledged")),
        }
    }

    pub fn failed(&mut self, op: Op, _why: Trouble) -> Result<(), String> {
        self.take(&op)?;
        self.held.push_back(op);
        Ok(())
    }

    pub fn succeeded(&mut self, op: Op, data: &[u8]) -> Result<(), String> {
        self.take(&op)?;
        self.open.remove(&op.id);
        self.completed += 1;
        for (n, block) in (op.slba..op.slba + op.blocks).enumerate() {
            match op.kind {
                Kind::Write => {
                    self.acknowledged[block] = op.id;
                    self.writers[block] = false;
                }
                Kind::Read => {
                    self.readers[block] -= 1;
                    self.reads_checked += 1;
                    self.check(block, &data[n * BLOCK_BYTES..(n + 1) * BLOCK_BYTES])?;
                }
                Kind::Flush => {}
            }
        }
        Ok(())
    }

    /// Block `block` was found to hold `data`, no write to it being open.
    pub fn check(&self, block: usize, data: &[u8]) -> Result<(), String> {
        let id = self.acknowledged[block];
        if data == content(id, block) {
            return Ok(());
        }
        let found = u64::from_le_bytes(data[..8].try_into().expect("8 bytes"));
        Err(format!(
            "stale or lost write: block {block} holds write {found} where {id} was acknowledged last"
        ))
    }

    pub fn is_at_rest(&self) -> bool {
        self.open.is_empty() && self.held.is_empty()
    }

    pub fn open(&self) -> usize {
        self.open.len()
    }
}
