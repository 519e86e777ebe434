//! Asynchronous events.
//!
//! A host keeps a few Asynchronous Event Requests outstanding; each is completed by one event. Once a
//! kind of event was delivered it is masked until the host reads the log page that tells more with
//! RAE = 0: what happens in between the page shows anyway. An event that finds no request outstanding
//! waits for one, and is dropped if the host reads the page first.

use super::fault::Fault;
use crate::wire::event::AsyncEvent;
use crate::wire::feature::AsyncEventConfig;
use crate::wire::log::{CriticalWarning, LogId};
use crate::wire::{Cid, Status};
use std::collections::VecDeque;

/// AERL in Identify Controller, 0's based: four requests. Linux keeps one, SPDK up to eight.
pub(super) const AERL: u8 = 3;

/// An Asynchronous Event Request that is to be completed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventCompletion {
    /// The tag that the request came with.
    pub tag: u16,
    /// Success with an event, or why the request ends without one.
    pub status: Status,
    /// Dword 0: the event.
    pub result: u64,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    tag: u16,
    cid: Cid,
}

/// One kind of event and where it stands.
#[derive(Clone, Copy, Debug)]
struct Kind {
    event: AsyncEvent,
    /// The bits of the configuration that let it through; any of them will do.
    enabled_by: AsyncEventConfig,
    /// Happened, and not told yet.
    pending: bool,
    /// Told, and not acknowledged yet.
    masked: bool,
}

const fn kind(event: AsyncEvent, enabled_by: AsyncEventConfig) -> Kind {
    Kind {
        event,
        enabled_by,
        pending: false,
        masked: false,
    }
}

/// Everything that this crate's controllers can tell.
const KINDS: [Kind; 5] = [
    kind(
        AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED,
        AsyncEventConfig::NAMESPACE_ATTRIBUTE,
    ),
    kind(
        AsyncEvent::DISCOVERY_LOG_CHANGED,
        AsyncEventConfig::DISCOVERY_LOG_CHANGE,
    ),
    kind(
        AsyncEvent::SMART_RELIABILITY,
        AsyncEventConfig::SMART_RELIABILITY
            .union(AsyncEventConfig::SMART_READ_ONLY)
            .union(AsyncEventConfig::SMART_VOLATILE_BACKUP)
            .union(AsyncEventConfig::SMART_PERSISTENT_MEMORY),
    ),
    kind(
        AsyncEvent::SMART_TEMPERATURE,
        AsyncEventConfig::SMART_TEMPERATURE,
    ),
    kind(AsyncEvent::SMART_SPARE, AsyncEventConfig::SMART_SPARE),
];

#[derive(Debug)]
pub(super) struct Events {
    supported: AsyncEventConfig,
    default: AsyncEventConfig,
    config: AsyncEventConfig,
    kinds: [Kind; KINDS.len()],
    held: VecDeque<Held>,
    aborted: VecDeque<EventCompletion>,
    warnings: CriticalWarning,
}

impl Events {
    /// `notices` are on from the start, as in Linux's and SPDK's targets; SMART events are off until the
    /// host enables them.
    pub fn new(notices: AsyncEventConfig, smart: bool) -> Self {
        let supported = if smart {
            notices | AsyncEventConfig::SMART
        } else {
            notices
        };
        Self {
            supported,
            default: notices,
            config: notices,
            kinds: KINDS,
            held: VecDeque::with_capacity(usize::from(AERL) + 1),
            aborted: VecDeque::new(),
            warnings: CriticalWarning::empty(),
        }
    }

    pub fn supported(&self) -> AsyncEventConfig {
        self.supported
    }

    pub fn default_config(&self) -> AsyncEventConfig {
        self.default
    }

    pub fn config(&self) -> AsyncEventConfig {
        self.config
    }

    /// Sets the configuration. What is switched off is not told any more.
    pub fn configure(&mut self, config: AsyncEventConfig) {
        self.config = config;
        for kind in &mut self.kinds {
            kind.pending &= config.intersects(kind.enabled_by);
        }
    }

    /// Takes an Asynchronous Event Request.
    pub fn hold(&mut self, tag: u16, cid: Cid) -> Result<(), Fault> {
        if self.held.len() > usize::from(AERL) {
            return Err(Fault::AerLimit);
        }
        self.held.push_back(Held { tag, cid });
        Ok(())
    }

    /// Ends the held request `cid` without an event; whether there was one.
    pub fn abort(&mut self, cid: Cid) -> bool {
        let Some(index) = self.held.iter().position(|h| h.cid == cid) else {
            return false;
        };
        if let Some(held) = self.held.remove(index) {
            self.end(held, Status::ABORT_REQUESTED);
        }
        true
    }

    fn end(&mut self, held: Held, status: Status) {
        self.aborted.push_back(EventCompletion {
            tag: held.tag,
            status,
            result: 0,
        });
    }

    /// The controller was reset: requests end, events are forgotten, settings are the default again.
    pub fn reset(&mut self) {
        while let Some(held) = self.held.pop_front() {
            self.end(held, Status::ABORTED_SQ_DELETION);
        }
        self.kinds = KINDS;
        self.config = self.default;
        self.warnings = CriticalWarning::empty();
    }

    /// Something happened.
    pub fn raise(&mut self, event: AsyncEvent) {
        for kind in self.kinds.iter_mut().filter(|k| k.event == event) {
            kind.pending |= !kind.masked && self.config.intersects(kind.enabled_by);
        }
    }

    /// The critical warnings are these now: those that are new are told, where their own bit is enabled.
    pub fn set_warnings(&mut self, warnings: CriticalWarning) {
        let new = warnings - self.warnings;
        self.warnings = warnings;
        // Each warning has the position of its bit in the configuration.
        let enabled = CriticalWarning::from_bits_truncate(self.config.bits() as u8) & new;
        let reliability = CriticalWarning::RELIABILITY
            | CriticalWarning::READ_ONLY
            | CriticalWarning::VOLATILE_BACKUP
            | CriticalWarning::PERSISTENT_MEMORY;
        if enabled.intersects(reliability) {
            self.raise(AsyncEvent::SMART_RELIABILITY);
        }
        if enabled.contains(CriticalWarning::TEMPERATURE) {
            self.raise(AsyncEvent::SMART_TEMPERATURE);
        }
        if enabled.contains(CriticalWarning::SPARE) {
            self.raise(AsyncEvent::SMART_SPARE);
        }
    }

    /// The host read `log` with RAE = 0.
    pub fn acknowledge(&mut self, log: LogId) {
        for kind in self.kinds.iter_mut().filter(|k| k.event.log() == log) {
            kind.pending = false;
            kind.masked = false;
        }
    }

    /// The next request to complete.
    pub fn poll(&mut self) -> Option<EventCompletion> {
        if let Some(aborted) = self.aborted.pop_front() {
            return Some(aborted);
        }
        let kind = self.kinds.iter_mut().find(|k| k.pending)?;
        let held = self.held.pop_front()?;
        kind.pending = false;
        kind.masked = true;
        Some(EventCompletion {
            tag: held.tag,
            status: Status::SUCCESS,
            result: kind.event.0.into(),
        })
    }
}
