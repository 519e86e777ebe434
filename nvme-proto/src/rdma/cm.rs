//! Private data of the connection manager: what a host says when it asks for a queue's connection, and the two answers.
//!
//! The connection manager fills private data with zeroes to a length of its own, so what follows a structure is not looked at.

use crate::queue::MAX_QUEUE_DEPTH;
use crate::wire::{Cntlid, Qid};
use core::fmt;
use thiserror::Error;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The only record format.
const RECFMT: u16 = 0;

/// Private data of a connection request.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CmRequest {
    /// Record Format (RECFMT): 0.
    pub recfmt: U16,
    /// Queue ID (QID): 0 for an admin queue.
    pub qid: U16,
    /// RDMA Host Receive Queue Size (HRQSIZE), 1's based: how many responses the host can take at once.
    pub hrqsize: U16,
    /// RDMA Host Send Queue Size (HSQSIZE), 0's based: how many commands the host will have open.
    pub hsqsize: U16,
    /// Controller ID (CNTLID), for an I/O queue of hosts that say it.
    pub cntlid: U16,
    reserved10: [u8; 22],
}

/// Private data of an acceptance.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CmAccept {
    /// Record Format (RECFMT): 0.
    pub recfmt: U16,
    /// RDMA Controller Receive Queue Size (CRQSIZE): how many commands the controller can take at once.
    pub crqsize: U16,
    reserved4: [u8; 28],
}

/// Private data of a rejection.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CmReject {
    /// Record Format (RECFMT): 0.
    pub recfmt: U16,
    /// Status (STS): why.
    pub sts: U16,
}

const _: () = assert!(size_of::<CmRequest>() == CmRequest::SIZE);
const _: () = assert!(size_of::<CmAccept>() == CmAccept::SIZE);
const _: () = assert!(size_of::<CmReject>() == CmReject::SIZE);

/// Why a controller rejects a connection (STS).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CmStatus(pub u16);

impl CmStatus {
    /// Invalid Private Data Length.
    pub const INVALID_LENGTH: Self = Self(0x01);
    /// Invalid RECFMT.
    pub const INVALID_RECFMT: Self = Self(0x02);
    /// Invalid QID.
    pub const INVALID_QID: Self = Self(0x03);
    /// Invalid HSQSIZE.
    pub const INVALID_HSQSIZE: Self = Self(0x04);
    /// Invalid HRQSIZE.
    pub const INVALID_HRQSIZE: Self = Self(0x05);
    /// No RDMA Resources: the host may come again.
    pub const NO_RESOURCES: Self = Self(0x06);
    /// Invalid IRD: how many READs the host serves at once.
    pub const INVALID_IRD: Self = Self(0x07);
    /// Invalid ORD: how many READs the host has outstanding.
    pub const INVALID_ORD: Self = Self(0x08);
}

impl fmt::Display for CmStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::INVALID_LENGTH => "invalid private data length",
            Self::INVALID_RECFMT => "invalid RECFMT",
            Self::INVALID_QID => "invalid QID",
            Self::INVALID_HSQSIZE => "invalid HSQSIZE",
            Self::INVALID_HRQSIZE => "invalid HRQSIZE",
            Self::NO_RESOURCES => "no RDMA resources",
            Self::INVALID_IRD => "invalid IRD",
            Self::INVALID_ORD => "invalid ORD",
            _ => return write!(f, "unknown ({:#06x})", self.0),
        };
        write!(f, "{name} ({:02x}h)", self.0)
    }
}

impl fmt::Debug for CmStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is wrong with a connection request, or with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CmFault {
    /// Private data is at least as long as its structure: 32 bytes in a request and an acceptance, 4 in a rejection.
    #[error("{0} bytes of private data are too few")]
    Length(u8),
    /// RECFMT is 0.
    #[error("record format {0} is not known, only 0 is")]
    RecordFormat(u16),
    /// QID is one that a controller here may have.
    #[error("QID {qid} is above {limit}")]
    QueueId {
        /// QID as received.
        qid: u16,
        /// The highest that there is.
        limit: u16,
    },
    /// HSQSIZE, 0's based, is a queue of at least two entries and at most as many as are supported.
    #[error("HSQSIZE {hsqsize} (0's based) is not within 1 and {}", .limit - 1)]
    HostSendQueue {
        /// HSQSIZE as received.
        hsqsize: u16,
        /// Entries supported.
        limit: u16,
    },
    /// HRQSIZE, 1's based, is at least 1: a host without receives cannot be answered.
    #[error("HRQSIZE is 0: the host could not take a response")]
    HostReceiveQueue,
    /// The host serves at least one READ at a time: without that, data of writes could not be fetched.
    #[error("the host serves no READ (its responder resources are 0)")]
    ReadDepth,
}

impl CmFault {
    /// What the host is told.
    pub const fn status(&self) -> CmStatus {
        match self {
            Self::Length(_) => CmStatus::INVALID_LENGTH,
            Self::RecordFormat(_) => CmStatus::INVALID_RECFMT,
            Self::QueueId { .. } => CmStatus::INVALID_QID,
            Self::HostSendQueue { .. } => CmStatus::INVALID_HSQSIZE,
            Self::HostReceiveQueue => CmStatus::INVALID_HRQSIZE,
            Self::ReadDepth => CmStatus::INVALID_IRD,
        }
    }
}

/// The prefix of `private_data` that is a `T`.
fn prefix<T: FromBytes + Unaligned>(private_data: &[u8]) -> Result<T, CmFault> {
    let short = |_| CmFault::Length(private_data.len().min(u8::MAX.into()) as u8);
    T::read_from_prefix(private_data)
        .map(|(value, _)| value)
        .map_err(short)
}

fn known_format(recfmt: U16) -> Result<(), CmFault> {
    match recfmt.get() {
        RECFMT => Ok(()),
        other => Err(CmFault::RecordFormat(other)),
    }
}

impl CmRequest {
    /// Size in bytes.
    pub const SIZE: usize = 32;

    /// A request for the queue `qid` of `entries`, for the controller `cntlid`.
    pub fn new(qid: Qid, entries: u16, cntlid: Cntlid) -> Self {
        Self {
            recfmt: U16::new(RECFMT),
            qid: U16::new(qid.0),
            hrqsize: U16::new(entries),
            hsqsize: U16::new(entries.saturating_sub(1)),
            cntlid: U16::new(cntlid.0),
            ..Self::new_zeroed()
        }
    }

    /// Reads and judges a request. `read_depth` is how many READs the host serves at once, as the connection manager reports it;
    /// `max_qid` the highest identifier that a queue can have.
    ///
    /// CNTLID is not looked at: Connect says it again, and is what counts.
    pub fn parse(private_data: &[u8], read_depth: u8, max_qid: u16) -> Result<Self, CmFault> {
        let request: Self = prefix(private_data)?;
        known_format(request.recfmt)?;
        let qid = request.qid.get();
        if qid > max_qid {
            return Err(CmFault::QueueId {
                qid,
                limit: max_qid,
            });
        }
        let hsqsize = request.hsqsize.get();
        if hsqsize == 0 || hsqsize >= MAX_QUEUE_DEPTH {
            return Err(CmFault::HostSendQueue {
                hsqsize,
                limit: MAX_QUEUE_DEPTH,
            });
        }
        if request.hrqsize.get() == 0 {
            return Err(CmFault::HostReceiveQueue);
        }
        if read_depth == 0 {
            return Err(CmFault::ReadDepth);
        }
        Ok(request)
    }

    /// The queue.
    pub fn qid(&self) -> Qid {
        Qid(self.qid.get())
    }

    /// Commands that the host will have open at most.
    pub fn entries(&self) -> u16 {
        self.hsqsize.get() + 1
    }
}

impl CmAccept {
    /// Size in bytes.
    pub const SIZE: usize = 32;

    /// An acceptance by a controller that takes `entries` commands at once.
    pub fn new(entries: u16) -> Self {
        Self {
            recfmt: U16::new(RECFMT),
            crqsize: U16::new(entries),
            ..Self::new_zeroed()
        }
    }

    /// Reads an acceptance.
    pub fn parse(private_data: &[u8]) -> Result<Self, CmFault> {
        let accept: Self = prefix(private_data)?;
        known_format(accept.recfmt)?;
        Ok(accept)
    }
}

impl CmReject {
    /// Size in bytes.
    pub const SIZE: usize = 4;

    /// A rejection because of `status`.
    pub fn new(status: CmStatus) -> Self {
        Self {
            recfmt: U16::new(RECFMT),
            sts: U16::new(status.0),
        }
    }

    /// Reads a rejection.
    pub fn parse(private_data: &[u8]) -> Result<Self, CmFault> {
        let reject: Self = prefix(private_data)?;
        known_format(reject.recfmt)?;
        Ok(reject)
    }

    /// Why.
    pub fn status(&self) -> CmStatus {
        CmStatus(self.sts.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_QID: u16 = 128;

    /// A request as Linux's host makes it: padded by the connection manager to 56 bytes.
    fn request(change: impl FnOnce(&mut CmRequest)) -> [u8; 56] {
        let mut request = CmRequest::new(Qid(3), 128, Cntlid(7));
        change(&mut request);
        let mut bytes = [0; 56];
        bytes[..32].copy_from_slice(request.as_bytes());
        bytes
    }

    fn fault(bytes: &[u8], read_depth: u8) -> (CmFault, CmStatus) {
        let fault = CmRequest::parse(bytes, read_depth, MAX_QID).unwrap_err();
        (fault, fault.status())
    }

    #[test]
    fn golden_private_data() {
        let bytes = request(|_| {});
        assert_eq!(bytes[..12], [0, 0, 3, 0, 128, 0, 127, 0, 7, 0, 0, 0]);
        assert_eq!(bytes[12..], [0; 44]);
        let request = CmRequest::parse(&bytes, 16, MAX_QID).unwrap();
        assert_eq!((request.qid(), request.entries()), (Qid(3), 128));

        let accept = CmAccept::new(0x0201);
        assert_eq!(accept.as_bytes()[..6], [0, 0, 1, 2, 0, 0]);
        assert_eq!(CmAccept::parse(accept.as_bytes()), Ok(accept));
        let reject = CmReject::new(CmStatus::NO_RESOURCES);
        assert_eq!(reject.as_bytes(), [0, 0, 6, 0]);
        assert_eq!(
            CmReject::parse(&[0, 0, 6, 0, 0, 0]).unwrap().status(),
            CmStatus::NO_RESOURCES
        );
    }

    #[test]
    fn each_wrong_field_has_its_code() {
        let good = request(|_| {});
        for short in [0, 1, 31] {
            let (what, status) = fault(&good[..short], 16);
            assert_eq!((what, status.0), (CmFault::Length(short as u8), 0x01));
        }
        assert!(CmRequest::parse(&good[..32], 16, MAX_QID).is_ok());

        let (what, status) = fault(&request(|r| r.recfmt = U16::new(1)), 16);
        assert_eq!((what, status.0), (CmFault::RecordFormat(1), 0x02));

        for qid in [MAX_QID + 1, u16::MAX] {
            let (what, status) = fault(&request(|r| r.qid = U16::new(qid)), 16);
            let limit = MAX_QID;
            assert_eq!((what, status.0), (CmFault::QueueId { qid, limit }, 0x03));
        }
        for hsqsize in [0, 1024, u16::MAX] {
            let (what, status) = fault(&request(|r| r.hsqsize = U16::new(hsqsize)), 16);
            let limit = MAX_QUEUE_DEPTH;
            assert_eq!(
                (what, status.0),
                (CmFault::HostSendQueue { hsqsize, limit }, 0x04)
            );
        }
        let (what, status) = fault(&request(|r| r.hrqsize = U16::ZERO), 16);
        assert_eq!((what, status.0), (CmFault::HostReceiveQueue, 0x05));

        let (what, status) = fault(&good, 0);
        assert_eq!((what, status.0), (CmFault::ReadDepth, 0x07));
    }

    #[test]
    fn answers_are_judged_too() {
        assert_eq!(CmAccept::parse(&[0; 31]), Err(CmFault::Length(31)));
        assert_eq!(
            CmAccept::parse(&[1; 32]),
            Err(CmFault::RecordFormat(0x0101))
        );
        assert_eq!(CmReject::parse(&[0; 3]), Err(CmFault::Length(3)));
        assert_eq!(
            CmReject::parse(&[2, 0, 1, 0]),
            Err(CmFault::RecordFormat(2))
        );
        assert_eq!(CmStatus(0x99).to_string(), "unknown (0x0099)");
        assert_eq!(CmStatus::INVALID_IRD.to_string(), "invalid IRD (07h)");
    }
}
