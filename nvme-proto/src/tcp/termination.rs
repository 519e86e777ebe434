//! The end of a connection because of a violation: one termination request, then silence.

use super::pdu::PduType;
use super::{TX_HEADER_BYTES, TxHeader, encoder};
use crate::violation::{Outcome, Violation};

/// Where a connection stands.
#[derive(Debug)]
pub(super) enum Life {
    /// Commands flow.
    Live,
    /// The peer broke a rule. The termination request waits to be sent, or was.
    Terminating(Terminating),
    /// Over: the peer terminated, the driver closed, or there is nothing to say.
    Closed,
}

/// A termination request, until it is handed out.
#[derive(Debug)]
pub(super) struct Terminating {
    pdu: TxHeader,
    /// 0 once it was handed out.
    pdu_bytes: u8,
}

impl Life {
    #[inline]
    pub(super) fn is_live(&self) -> bool {
        matches!(self, Self::Live)
    }

    /// A termination request waits to be handed out.
    #[inline]
    pub(super) fn has_pdu(&self) -> bool {
        matches!(self, Self::Terminating(t) if t.pdu_bytes > 0)
    }

    pub(super) fn is_terminating(&self) -> bool {
        matches!(self, Self::Terminating(_))
    }

    /// Ends a live connection without a word; a termination request that is due stays.
    pub(super) fn close(&mut self) {
        if self.is_live() {
            *self = Self::Closed;
        }
    }

    /// What follows from `violation` in the PDU that starts with `header`. Only the first violation counts.
    #[cold]
    pub(super) fn end(&mut self, pdu_type: PduType, violation: Violation, header: &[u8]) {
        if !self.is_live() {
            return;
        }
        *self = match violation.outcome() {
            Outcome::TermReq { fes, fei } => {
                let mut pdu = [0; TX_HEADER_BYTES];
                let pdu_bytes = encoder::term_req(&mut pdu, pdu_type, fes, fei, header);
                Self::Terminating(Terminating { pdu, pdu_bytes })
            }
            Outcome::Close | Outcome::Status(_) | Outcome::Reject(_) => Self::Closed,
        };
    }

    /// Writes the termination request if it has not been handed out yet; returns its length.
    #[cold]
    pub(super) fn poll_transmit(&mut self, out: &mut TxHeader) -> Option<u8> {
        match self {
            Self::Terminating(t) if t.pdu_bytes > 0 => {
                *out = t.pdu;
                Some(core::mem::take(&mut t.pdu_bytes))
            }
            _ => None,
        }
    }
}
