//! The rules that a command can break: one variant each, with the status it leads to, the byte of the
//! command that is wrong (for the error log) and, for Connect, the result that names the parameter.

use crate::wire::fabrics::InvalidParameter;
use crate::wire::feature::FeatureId;
use crate::wire::identify::{Cns, Csi};
use crate::wire::log::{LogId, ParameterLocation};
use crate::wire::nqn::NqnError;
use crate::wire::property::Property;
use crate::wire::{Cntlid, Lba, Nsid, Opcode, Qid, Status};
use thiserror::Error;

/// Why a command is refused. All of these are permanent: the same command fails again, so the status
/// carries DNR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Fault {
    // Any command.
    /// Not one of the commands that this queue of this kind of controller supports.
    #[error("opcode {0} is not supported here")]
    UnsupportedOpcode(Opcode),
    /// Not one of the fabrics commands that this queue supports.
    #[error("fabrics command type {0:02x}h is not supported here")]
    UnsupportedFctype(u8),
    /// FUSE is 00b: no fused operation is supported, as FUSES in Identify Controller says.
    #[error("fused operations are not supported")]
    Fused,
    /// PSDT is 01b: on fabrics data is described by an SGL.
    #[error("PSDT does not say SGL")]
    NotSgl,
    /// Admin and I/O commands other than fabrics ones need CC.EN = 1, CSTS.RDY = 1 and no shutdown.
    #[error("the controller is not ready")]
    NotReady,
    /// The SGL describes as many bytes as the command transfers.
    #[error("the SGL describes {described} bytes, the command transfers {expected}")]
    DataLength {
        /// Length in the SGL, in bytes.
        described: u32,
        /// Length that the other fields make, in bytes.
        expected: u64,
    },
    /// No command transfers more than MDTS.
    #[error("{bytes} bytes are more than the {limit} that MDTS allows")]
    TransferTooLong {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes allowed.
        limit: u32,
    },
    /// NSID names an existing namespace, or is within NN where an inactive one will do.
    #[error("NSID {0} is invalid or names no namespace that is attached")]
    InvalidNsid(Nsid),

    // Identify.
    /// CNS is one that this kind of controller supports.
    #[error("CNS {:02x}h is not supported", .0.0)]
    UnsupportedCns(Cns),
    /// CSI is one that the controller supports.
    #[error("command set {:02x}h is not supported", .0.0)]
    UnsupportedCsi(Csi),
    /// CNTID is FFFFh or this controller's.
    #[error("CNTID {0} is not this controller")]
    ForeignController(Cntlid),

    // Features.
    /// FID is one that this kind of controller supports.
    #[error("feature {:02x}h is not supported", .0.0)]
    UnsupportedFeature(FeatureId),
    /// SEL is 000b to 011b.
    #[error("SEL {0} is reserved")]
    ReservedSelect(u8),
    /// No feature can be saved.
    #[error("feature {:02x}h cannot be saved", .0.0)]
    NotSaveable(FeatureId),
    /// The feature can be changed.
    #[error("feature {:02x}h cannot be changed", .0.0)]
    NotChangeable(FeatureId),
    /// A feature of the controller is not set for one namespace.
    #[error("feature {:02x}h does not belong to a namespace", .0.0)]
    NotNamespaceSpecific(FeatureId),
    /// Dword 11 is a value that the feature can take.
    #[error("{value:08x}h is no value for feature {:02x}h", .fid.0)]
    FeatureValue {
        /// The feature.
        fid: FeatureId,
        /// Dword 11.
        value: u32,
    },
    /// Number of Queues is set before the first I/O queue is made.
    #[error("Number of Queues was set while I/O queues exist")]
    IoQueuesExist,
    /// The command set combination exists; there is one.
    #[error("I/O command set combination {0} does not exist")]
    CommandSetCombination(u32),
    /// The host identifier of a fabrics controller comes with Connect.
    #[error("the host identifier cannot change after Connect")]
    HostIdentifierFixed,

    // Log pages.
    /// LID is one that this kind of controller supports.
    #[error("log page {:02x}h is not supported", .0.0)]
    UnsupportedLog(LogId),
    /// LPO is a multiple of 4 and not past the end of the page.
    #[error("log page offset {0} is not dword aligned or past the end")]
    LogOffset(u64),
    /// OT is 0: no page takes an index.
    #[error("log pages have no index offset")]
    LogIndexOffset,

    // Events and aborts.
    /// At most AERL + 1 Asynchronous Event Requests are outstanding.
    #[error("too many Asynchronous Event Requests")]
    AerLimit,
    /// At most ACL + 1 Abort commands are outstanding.
    #[error("too many Abort commands")]
    AbortLimit,

    // Properties.
    /// The property exists and can be accessed so.
    #[error("there is no property at {:02x}h for this", .0.0)]
    UnsupportedProperty(Property),
    /// ATTRIB names the property's size.
    #[error("wrong size for the property at {:02x}h", .0.0)]
    PropertySize(Property),
    /// Only SHN (and EN) change while CC.EN is 1.
    #[error("CC cannot be changed to {0:08x}h while the controller is enabled")]
    CcWhileEnabled(u32),
    /// CC.EN is not set again before the reset has finished (CSTS.RDY = 0).
    #[error("CC.EN was set before the reset had finished")]
    EnableDuringReset,

    // Connect and Disconnect.
    /// RECFMT is 0.
    #[error("record format {0} is not supported")]
    RecordFormat(u16),
    /// SQSIZE, 0's based, is at least 1.
    #[error("a queue of one entry")]
    QueueTooSmall,
    /// SQSIZE is within MQES, or within what the admin queue takes.
    #[error("{entries} queue entries are more than {limit}")]
    QueueTooLarge {
        /// Entries asked for, 1's based.
        entries: u32,
        /// Entries allowed.
        limit: u32,
    },
    /// CNTLID is FFFFh on the admin queue (dynamic controller model).
    #[error("CNTLID {0} on the admin queue; controllers are dynamic")]
    CntlidNotDynamic(Cntlid),
    /// SUBNQN is a name.
    #[error("SUBNQN: {0}")]
    BadSubnqn(NqnError),
    /// HOSTNQN is a name.
    #[error("HOSTNQN: {0}")]
    BadHostnqn(NqnError),
    /// SUBNQN is a subsystem that can be reached here.
    #[error("there is no such subsystem here")]
    UnknownSubsystem,
    /// The host may use the subsystem.
    #[error("the host is not allowed to use the subsystem")]
    HostNotAllowed,
    /// CNTLID of an I/O queue is a controller of the subsystem.
    #[error("controller {0} does not exist")]
    UnknownController(Cntlid),
    /// HOSTNQN of an I/O queue is the one of the controller's admin queue.
    #[error("HOSTNQN differs from the controller's")]
    HostnqnMismatch,
    /// HOSTID of an I/O queue is the one of the controller's admin queue.
    #[error("HOSTID differs from the controller's")]
    HostidMismatch,
    /// SUBNQN of an I/O queue is the one of the controller's admin queue.
    #[error("SUBNQN differs from the controller's")]
    SubnqnMismatch,
    /// QID is within what Number of Queues allocated; a discovery controller has none.
    #[error("QID {0} is out of range")]
    QidOutOfRange(Qid),
    /// QID is not in use.
    #[error("QID {0} is in use")]
    QidInUse(Qid),
    /// I/O queues are made while the controller is enabled and ready.
    #[error("QID {0} before the controller is ready")]
    QueueBeforeReady(Qid),
    /// The first command of a connection is Connect, and there is one only.
    #[error("Connect on a queue that is connected")]
    AlreadyConnected,
    /// Disconnect ends I/O queues only.
    #[error("Disconnect on the admin queue")]
    DisconnectAdmin,

    // Authentication.
    /// A queue whose Connect asked for authentication takes no other command before.
    #[error("the host has not authenticated on this queue")]
    NotAuthenticated,
    /// SECP and SPSP name in-band authentication.
    #[error("security protocol {secp:02x}h with {:02x}{:02x}h is not supported", .spsp[1], .spsp[0])]
    SecurityProtocol {
        /// SECP.
        secp: u8,
        /// SPSP0 and SPSP1.
        spsp: [u8; 2],
    },
    /// TL and AL are not 0, TL is within what messages take, AL has room for the one that is due.
    #[error("an authentication message of {0} bytes, or room for so many")]
    MessageLength(u32),

    // I/O commands.
    /// SLBA and NLB lie within the namespace.
    #[error("{blocks} blocks from {slba} are not within the namespace")]
    LbaOutOfRange {
        /// First block.
        slba: Lba,
        /// Number of blocks.
        blocks: u32,
    },
    /// PRINFO is 0: there is no metadata.
    #[error("PRINFO without protection information")]
    ProtectionInformation,
    /// DTYPE is 0: there are no directives.
    #[error("directive type {0} is not supported")]
    Directive(u8),
    /// A read-only namespace is not written.
    #[error("the namespace is write protected")]
    WriteProtected,
    /// Write Zeroes is within WZSL.
    #[error("{bytes} bytes are more than the {limit} that WZSL allows")]
    WriteZeroesTooLong {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes allowed.
        limit: u32,
    },
}

impl Fault {
    /// The status that the command completes with.
    pub const fn status(&self) -> Status {
        let status = match self {
            Self::UnsupportedOpcode(_) | Self::UnsupportedFctype(_) => Status::INVALID_OPCODE,
            Self::NotReady
            | Self::IoQueuesExist
            | Self::HostIdentifierFixed
            | Self::EnableDuringReset
            | Self::QidInUse(_)
            | Self::AlreadyConnected => Status::COMMAND_SEQUENCE_ERROR,
            Self::DataLength { .. } => Status::DATA_SGL_LENGTH_INVALID,
            Self::InvalidNsid(_) => Status::INVALID_NAMESPACE,
            Self::NotSaveable(_) => Status::FEATURE_NOT_SAVEABLE,
            Self::NotChangeable(_) => Status::FEATURE_NOT_CHANGEABLE,
            Self::NotNamespaceSpecific(_) => Status::FEATURE_NOT_NAMESPACE_SPECIFIC,
            Self::CommandSetCombination(_) => Status::IO_COMMAND_SET_COMBINATION_REJECTED,
            Self::UnsupportedLog(_) => Status::INVALID_LOG_PAGE,
            Self::AerLimit => Status::AER_LIMIT_EXCEEDED,
            Self::AbortLimit => Status::ABORT_LIMIT_EXCEEDED,
            Self::RecordFormat(_) => Status::CONNECT_INCOMPATIBLE_FORMAT,
            Self::NotAuthenticated => Status::AUTHENTICATION_REQUIRED,
            Self::HostNotAllowed => Status::CONNECT_INVALID_HOST,
            Self::DisconnectAdmin => Status::INVALID_QUEUE_TYPE,
            Self::LbaOutOfRange { .. } => Status::LBA_OUT_OF_RANGE,
            Self::ProtectionInformation => Status::INVALID_PROTECTION_INFORMATION,
            Self::WriteProtected => Status::NAMESPACE_WRITE_PROTECTED,
            _ if self.invalid_parameter().is_some() => Status::CONNECT_INVALID_PARAMETERS,
            _ => Status::INVALID_FIELD,
        };
        status.dnr()
    }

    /// Dwords 0 and 1 of the completion: for Connect Invalid Parameters, which parameter.
    pub const fn result(&self) -> u64 {
        match self.invalid_parameter() {
            Some(parameter) => parameter.to_result(),
            None => 0,
        }
    }

    /// The parameter of Connect that is wrong.
    pub const fn invalid_parameter(&self) -> Option<InvalidParameter> {
        Some(match self {
            Self::QueueTooSmall | Self::QueueTooLarge { .. } => InvalidParameter::SQSIZE,
            Self::QidOutOfRange(_) | Self::QueueBeforeReady(_) => InvalidParameter::QID,
            Self::CntlidNotDynamic(_) | Self::UnknownController(_) => InvalidParameter::CNTLID,
            Self::BadSubnqn(_) | Self::UnknownSubsystem | Self::SubnqnMismatch => {
                InvalidParameter::SUBNQN
            }
            Self::BadHostnqn(_) | Self::HostnqnMismatch => InvalidParameter::HOSTNQN,
            Self::HostidMismatch => InvalidParameter::HOSTID,
            _ => return None,
        })
    }

    /// The byte of the command that is wrong, where it is one byte or one field.
    pub const fn location(&self) -> Option<ParameterLocation> {
        let byte = match self {
            Self::UnsupportedOpcode(_) => 0,
            Self::Fused => 1,
            Self::NotSgl => return Some(ParameterLocation { byte: 1, bit: 6 }),
            Self::UnsupportedFctype(_) | Self::InvalidNsid(_) => 4,
            Self::DataLength { .. } => 32,
            Self::UnsupportedCns(_)
            | Self::UnsupportedFeature(_)
            | Self::NotChangeable(_)
            | Self::NotNamespaceSpecific(_)
            | Self::UnsupportedLog(_)
            | Self::PropertySize(_)
            | Self::RecordFormat(_)
            | Self::LbaOutOfRange { .. } => 40,
            Self::ReservedSelect(_) => 41,
            Self::ForeignController(_) => 42,
            Self::NotSaveable(_) => return Some(ParameterLocation { byte: 43, bit: 7 }),
            Self::FeatureValue { .. }
            | Self::CommandSetCombination(_)
            | Self::UnsupportedProperty(_) => 44,
            Self::UnsupportedCsi(_) => 47,
            Self::SecurityProtocol { .. } => 41,
            Self::MessageLength(_) => 44,
            Self::LogOffset(_)
            | Self::CcWhileEnabled(_)
            | Self::EnableDuringReset
            | Self::WriteZeroesTooLong { .. } => 48,
            Self::Directive(_) => return Some(ParameterLocation { byte: 50, bit: 4 }),
            Self::ProtectionInformation => return Some(ParameterLocation { byte: 51, bit: 2 }),
            Self::LogIndexOffset => return Some(ParameterLocation { byte: 58, bit: 7 }),
            _ => match self.invalid_parameter() {
                Some(parameter) if !parameter.in_data => parameter.offset_bytes as u8,
                _ => return None,
            },
        };
        Some(ParameterLocation::byte(byte))
    }
}
