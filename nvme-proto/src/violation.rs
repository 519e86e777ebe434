//! The rules that a peer can break, one variant each, and the one table from a breach to what follows.
//!
//! A breach either fails one command, ends the connection with a termination request, or, where not even that can be sent, closes it.
//! It never reaches another connection. The rule stands in our own words at the variant; the check stands in the module that parses
//! the thing.

use crate::controller::Fault;
use crate::rdma::{CmFault, CmStatus};
use crate::tcp::pdu::{Fes, PduType, TermReqHeader, field};
use crate::wire::{Cid, Status};
use thiserror::Error;

/// A rule that the peer broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Violation {
    /// A rule about what a command says, apart from how it is sent.
    #[error(transparent)]
    Command(#[from] Fault),

    // --- framing of TCP PDUs -------------------------------------------------------------------------------------------------
    /// A PDU type that does not exist or that only the other side may send.
    #[error("{0} is not a PDU that this side receives")]
    UnexpectedPdu(PduType),
    /// ICReq and ICResp come first and once; nothing else comes before them.
    #[error("{0} came out of order: ICReq and ICResp come first and once")]
    PduOutOfSequence(PduType),
    /// HLEN is fixed for each PDU type.
    #[error("HLEN {hlen} is wrong for {pdu_type}")]
    HeaderLength {
        /// Type of the PDU.
        pdu_type: PduType,
        /// HLEN as received.
        hlen: u8,
    },
    /// HDGSTF is set on every PDU where header digests are agreed and on none where they are not.
    #[error("HDGSTF of {pdu_type} (flags {flags:02x}h) does not match what was agreed")]
    HeaderDigestFlag {
        /// Type of the PDU.
        pdu_type: PduType,
        /// FLAGS as received.
        flags: u8,
    },
    /// DDGSTF is set on every PDU with data where data digests are agreed and on none where they are not.
    #[error("DDGSTF of {pdu_type} (flags {flags:02x}h) does not match what was agreed")]
    DataDigestFlag {
        /// Type of the PDU.
        pdu_type: PduType,
        /// FLAGS as received.
        flags: u8,
    },
    /// PLEN covers header, digests, padding and data, no more and no less.
    #[error("PLEN {plen} is impossible for this {pdu_type}")]
    PduLength {
        /// Type of the PDU.
        pdu_type: PduType,
        /// PLEN as received.
        plen: u32,
    },
    /// PDO lies behind header and header digest and is a multiple of the alignment that we asked for.
    #[error("PDO {pdo} of {pdu_type} lies in the header or is not aligned as agreed")]
    DataOffset {
        /// Type of the PDU.
        pdu_type: PduType,
        /// PDO as received.
        pdo: u8,
    },
    /// The data that PLEN and PDO leave room for is as long as DATAL says.
    #[error("{pdu_type} carries {carried} bytes but its DATAL says {datal}")]
    DataLength {
        /// Type of the PDU.
        pdu_type: PduType,
        /// Bytes between PDO and the end of the data.
        carried: u32,
        /// DATAL as received.
        datal: u32,
    },
    /// The header digest is the CRC32C of the header. A wrong one means that no field, PLEN included, can be trusted.
    #[error("header digest {received:08x}h received, {computed:08x}h computed")]
    HeaderDigest {
        /// The digest in the PDU.
        received: u32,
        /// The digest of the header as it arrived.
        computed: u32,
    },
    /// A termination request is 24 to 152 bytes long. It is not answered.
    #[error(
        "a termination request with PLEN {plen}, outside 24..={}",
        TermReqHeader::MAX_PLEN_BYTES
    )]
    TermReqLength {
        /// PLEN as received.
        plen: u32,
    },

    // --- ICReq and ICResp ----------------------------------------------------------------------------------------------------
    /// The only version of the PDU format is 0.
    #[error("PDU format version {0} is not known, only 0 is")]
    PduFormatVersion(u16),
    /// HPDA and CPDA are 0's based counts of dwords from 0 to 31.
    #[error("data alignment {0} is above 31")]
    DataAlignment(u8),
    /// MAXH2CDATA is a multiple of 4 and at least 4096.
    #[error("MAXH2CDATA {0} is not a multiple of 4 or below 4096")]
    MaxH2cData(u32),
    /// The controller enables the digests that the host asked for, no others. (Declining one is what the standard leaves to it;
    /// Linux's host refuses that as we do, since it would silently run without the protection that the user asked for.)
    #[error("ICResp enables digests {enabled:02x}h, asked for were {asked:02x}h")]
    DigestMismatch {
        /// DGST that we sent.
        asked: u8,
        /// DGST that came back.
        enabled: u8,
    },
    /// The first command on a queue is Connect.
    #[error("command {0} before Connect")]
    ConnectExpected(Cid),

    // --- command capsules ----------------------------------------------------------------------------------------------------
    /// A capsule carries no more data than the controller announced (8192 bytes for admin and fabrics commands).
    #[error("{bytes} bytes of in-capsule data, at most {limit} are allowed")]
    InCapsuleLimit {
        /// Bytes in the capsule.
        bytes: u32,
        /// Bytes allowed.
        limit: u32,
    },
    /// A host has no more commands open than its submission queue has entries.
    #[error("more than {depth} commands are open on the queue")]
    QueueOverrun {
        /// Entries of the queue.
        depth: u16,
    },
    /// The CIDs of a queue's open commands differ.
    #[error("CID {0} is still in use by another command")]
    CidInUse(Cid),
    /// Fabrics commands describe their data with SGLs: PSDT is 01b or 10b.
    #[error("PSDT of command {0} asks for PRPs")]
    NotSgl(Cid),
    /// Data is described by an in-capsule descriptor (01h) or by the transport's own: 5Ah on TCP, 40h or 4Fh on RDMA. Data towards the
    /// host only by the latter.
    #[error("SGL identifier {kind:02x}h is not allowed here")]
    SglType {
        /// SGL identifier as received.
        kind: u8,
    },
    /// In-capsule data starts at offset 0 (ICDOFF is 0).
    #[error("in-capsule data at offset {offset}, only 0 is allowed")]
    SglOffset {
        /// Address field of the descriptor.
        offset: u64,
    },
    /// The descriptor's length equals what the capsule carries, which is nothing where the descriptor is not an in-capsule one. An RDMA
    /// capsule may carry more.
    #[error("the SGL says {sgl_bytes} bytes in the capsule, it carries {capsule_bytes}")]
    SglLength {
        /// In-capsule bytes that the descriptor stands for.
        sgl_bytes: u32,
        /// Bytes that the capsule carries.
        capsule_bytes: u32,
    },
    /// A command moves no more data than MDTS allows.
    #[error("a transfer of {bytes} bytes, at most {limit} are allowed")]
    TransferTooLong {
        /// Length in the descriptor.
        bytes: u32,
        /// What MDTS allows.
        limit: u32,
    },
    /// A data digest is the CRC32C of the data. The command fails, the queue lives.
    #[error("data digest of command {0} is wrong")]
    DataDigest(Cid),

    // --- H2CData -------------------------------------------------------------------------------------------------------------
    /// TTAG of H2CData is that of an R2T whose data have not all come.
    #[error("TTAG {0} belongs to no open R2T")]
    TransferTag(u16),
    /// CCCID of H2CData is that of the command that the R2T was sent for.
    #[error("CCCID {cccid} with TTAG {ttag}, which belongs to {expected}")]
    TransferCid {
        /// TTAG as received.
        ttag: u16,
        /// CCCID as received.
        cccid: Cid,
        /// CID of the command with that tag.
        expected: Cid,
    },
    /// The data of a transfer come in order, without gaps and once.
    #[error("data at offset {offset}, expected {expected}")]
    TransferOffset {
        /// DATAO as received.
        offset: u32,
        /// Next offset of the transfer.
        expected: u32,
    },
    /// A data PDU stays inside what was asked for.
    #[error("{length} bytes at offset {offset} go beyond {end}")]
    TransferRange {
        /// DATAO as received.
        offset: u32,
        /// DATAL as received.
        length: u32,
        /// End of the R2T window or of the command's data.
        end: u32,
    },
    /// H2CData carries at most MAXH2CDATA bytes.
    #[error("{length} bytes in one H2CData, MAXH2CDATA is {limit}")]
    TransferLimit {
        /// DATAL as received.
        length: u32,
        /// MAXH2CDATA as announced.
        limit: u32,
    },
    /// A data PDU carries data, and an R2T asks for some.
    #[error("{0} of no bytes")]
    EmptyTransfer(PduType),
    /// LAST_PDU is set on the H2CData that completes its R2T and on no other.
    #[error("LAST_PDU does not match the end of the R2T")]
    LastFlag,

    // --- what a controller may send ------------------------------------------------------------------------------------------
    /// A response capsule answers a command that is open.
    #[error("response for CID {0}, which is not open")]
    ResponseCid(Cid),
    /// C2HData and R2T belong to a command that is open.
    #[error("{pdu_type} for CID {cccid}, which is not open")]
    DataCid {
        /// Type of the PDU.
        pdu_type: PduType,
        /// CCCID as received.
        cccid: Cid,
    },
    /// C2HData belongs to a command that reads, an R2T to one that writes outside its capsule.
    #[error("{pdu_type} for CID {cccid}, which moves no data in that direction")]
    DataDirection {
        /// Type of the PDU.
        pdu_type: PduType,
        /// CCCID as received.
        cccid: Cid,
    },
    /// SUCCESS is set only together with LAST_PDU.
    #[error("C2HData with SUCCESS but without LAST_PDU")]
    SuccessWithoutLast,
    /// No C2HData follows the one with LAST_PDU.
    #[error("C2HData for CID {0} after the one with LAST_PDU")]
    DataAfterLast(Cid),
    /// No more R2Ts are open for a command than MAXR2T allows.
    #[error("more than {limit} R2Ts open for CID {cccid}")]
    R2tLimit {
        /// CCCID as received.
        cccid: Cid,
        /// MAXR2T, 1's based.
        limit: u32,
    },

    // --- RDMA ----------------------------------------------------------------------------------------------------------------
    /// Private data of the connection manager follows its rules.
    #[error(transparent)]
    Cm(#[from] CmFault),
    /// A message is at least as long as the queue entry that it begins with.
    #[error("a message of {bytes} bytes, a capsule has at least {least}")]
    CapsuleLength {
        /// Its length.
        bytes: u32,
        /// Length of the entry.
        least: u32,
    },
    /// A response makes no key invalid but its own command's, and that only when asked to.
    #[error("the response for CID {cid} invalidated key {key:08x}h, which it was not asked to")]
    ForeignKey {
        /// CID as received.
        cid: Cid,
        /// The key.
        key: u32,
    },
}

/// What a violation leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command completes with this status; the connection lives.
    Status(Status),
    /// A termination request with this FES and FEI is sent, then the connection ends.
    TermReq {
        /// Fatal Error Status.
        fes: Fes,
        /// Fatal Error Information.
        fei: u32,
    },
    /// The connection request is rejected with this status.
    Reject(CmStatus),
    /// The connection is closed without a word. Over RDMA, which has no termination request, that is what becomes of one, too.
    Close,
}

impl Violation {
    /// What this breach leads to.
    pub const fn outcome(&self) -> Outcome {
        use Violation::*;
        match *self {
            Command(fault) => Outcome::Status(fault.status()),

            UnexpectedPdu(_) => bad_field(field::PDU_TYPE),
            PduOutOfSequence(_) => fatal(Fes::PDU_SEQUENCE_ERROR),
            HeaderLength { .. } => bad_field(field::HLEN),
            HeaderDigestFlag { .. } | DataDigestFlag { .. } => bad_field(field::FLAGS),
            PduLength { .. } => bad_field(field::PLEN),
            DataOffset { .. } => bad_field(field::PDO),
            DataLength { .. } | EmptyTransfer(_) => bad_field(field::LENGTH),
            HeaderDigest { received, .. } => Outcome::TermReq {
                fes: Fes::HEADER_DIGEST_ERROR,
                fei: received,
            },
            TermReqLength { .. } => Outcome::Close,

            PduFormatVersion(_) => bad_field(field::PFV),
            DataAlignment(_) => bad_field(field::PDA),
            MaxH2cData(_) => bad_field(field::MAXH2CDATA),
            DigestMismatch { .. } => bad_field(field::DGST),
            ConnectExpected(_) => Outcome::Status(Status::COMMAND_SEQUENCE_ERROR.dnr()),

            InCapsuleLimit { .. } => fatal(Fes::LIMIT_EXCEEDED),
            QueueOverrun { .. } => fatal(Fes::PDU_SEQUENCE_ERROR),
            CidInUse(_) => Outcome::Status(Status::COMMAND_ID_CONFLICT),
            NotSgl(_) => Outcome::Status(Status::INVALID_FIELD.dnr()),
            SglType { .. } => Outcome::Status(Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr()),
            SglOffset { .. } => Outcome::Status(Status::SGL_OFFSET_INVALID.dnr()),
            SglLength { .. } => Outcome::Status(Status::DATA_SGL_LENGTH_INVALID.dnr()),
            TransferTooLong { .. } => Outcome::Status(Status::INVALID_FIELD.dnr()),
            DataDigest(_) => Outcome::Status(Status::TRANSIENT_TRANSPORT_ERROR),

            TransferTag(_) => bad_field(field::TTAG),
            TransferCid { .. } | DataCid { .. } => bad_field(field::CCCID),
            TransferOffset { .. } | TransferRange { .. } => fatal(Fes::DATA_TRANSFER_OUT_OF_RANGE),
            TransferLimit { .. } | R2tLimit { .. } => fatal(Fes::LIMIT_EXCEEDED),
            LastFlag | SuccessWithoutLast => bad_field(field::FLAGS),

            ResponseCid(_) => bad_field(field::CQE_CID),
            DataDirection { .. } | DataAfterLast(_) => fatal(Fes::PDU_SEQUENCE_ERROR),

            Cm(fault) => Outcome::Reject(fault.status()),
            CapsuleLength { .. } | ForeignKey { .. } => Outcome::Close,
        }
    }

    /// The status that a command completes with, where that is what the breach leads to.
    pub const fn status(&self) -> Option<Status> {
        match self.outcome() {
            Outcome::Status(status) => Some(status),
            _ => None,
        }
    }
}

/// Termination because of the header field at `offset`.
const fn bad_field(offset: u32) -> Outcome {
    Outcome::TermReq {
        fes: Fes::INVALID_HEADER_FIELD,
        fei: offset,
    }
}

/// Termination with an FES that has no further information.
const fn fatal(fes: Fes) -> Outcome {
    Outcome::TermReq { fes, fei: 0 }
}

// It travels in the result of every call on the receive path.
const _: () = assert!(size_of::<Violation>() <= 16);
