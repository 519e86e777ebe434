//! The error information log: the last errors, newest first, in a ring that never grows.

use crate::wire::log::{ErrorEntry, ParameterLocation, TransportType};
use crate::wire::{Cid, Lba, Nsid, Qid, Status};
use std::collections::VecDeque;
use zerocopy::IntoBytes;

/// How many errors are kept (ELPE + 1): what fits one page of 4 KiB.
pub(super) const ENTRIES: usize = 64;

/// An error to be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorRecord {
    /// Queue of the command.
    pub sqid: Qid,
    /// The command.
    pub cid: Cid,
    /// Its status.
    pub status: Status,
    /// Where in the command the error is.
    pub location: Option<ParameterLocation>,
    /// Namespace of the command.
    pub nsid: Nsid,
    /// The first block that the error is about.
    pub lba: Option<Lba>,
}

#[derive(Debug)]
pub(super) struct ErrorLog {
    /// Errors so far, kept or not.
    count: u64,
    trtype: TransportType,
    newest_first: VecDeque<ErrorEntry>,
}

impl ErrorLog {
    pub fn new(trtype: TransportType) -> Self {
        Self {
            count: 0,
            trtype,
            newest_first: VecDeque::with_capacity(ENTRIES),
        }
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn record(&mut self, e: &ErrorRecord) {
        self.count += 1;
        self.newest_first.truncate(ENTRIES - 1);
        let entry = ErrorEntry::new(
            self.count,
            e.sqid,
            e.cid,
            e.status,
            e.location,
            e.nsid,
            e.lba,
            self.trtype.0,
        );
        self.newest_first.push_front(entry);
    }

    /// The page: kept entries, then unused ones (all zero).
    pub fn page(&self) -> Vec<u8> {
        let mut page = Vec::with_capacity(ENTRIES * ErrorEntry::SIZE);
        for entry in &self.newest_first {
            page.extend_from_slice(entry.as_bytes());
        }
        page.resize(ENTRIES * ErrorEntry::SIZE, 0);
        page
    }
}
