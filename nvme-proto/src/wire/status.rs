//! Status of a completion: status code type, status code, and the bits about retrying.

use core::fmt;
use zerocopy::little_endian::U16;

/// The status field of a CQE without the phase tag: SC in bits 7:0, SCT in 10:8, CRD in 12:11, M in 13, DNR in 14.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Status(pub u16);

const SC: u16 = 0x00ff;
const SCT: u16 = 0x0700;
const CRD_SHIFT: u32 = 11;
const MORE: u16 = 1 << 13;
const DNR: u16 = 1 << 14;

impl Status {
    /// Status code type 0: generic command status.
    pub const SCT_GENERIC: u8 = 0;
    /// Status code type 1: command specific status.
    pub const SCT_COMMAND_SPECIFIC: u8 = 1;
    /// Status code type 2: media and data integrity errors.
    pub const SCT_MEDIA: u8 = 2;
    /// Status code type 3: path related status.
    pub const SCT_PATH: u8 = 3;
    /// Status code type 7: vendor specific.
    pub const SCT_VENDOR: u8 = 7;

    /// A status from its code type (3 bits) and code, without DNR.
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self(((sct & 7) as u16) << 8 | sc as u16)
    }

    /// From the CQE's field; the phase tag is dropped.
    pub fn from_wire(field: U16) -> Self {
        Self(field.get() >> 1)
    }

    /// As the CQE's field, phase tag 0.
    pub const fn to_wire(self) -> U16 {
        U16::new(self.0 << 1)
    }

    /// Status code.
    pub const fn sc(self) -> u8 {
        (self.0 & SC) as u8
    }

    /// Status code type.
    pub const fn sct(self) -> u8 {
        ((self.0 & SCT) >> 8) as u8
    }

    /// Code type and code alone, for comparison with a constant.
    pub const fn code(self) -> Self {
        Self(self.0 & (SC | SCT))
    }

    /// Whether `other` has the same code type and code; the bits about retrying do not count.
    pub const fn is(self, other: Self) -> bool {
        self.code().0 == other.code().0
    }

    /// Whether the command succeeded.
    pub const fn is_success(self) -> bool {
        self.code().0 == 0
    }

    /// The same with Do Not Retry set: the same command would fail again.
    pub const fn dnr(self) -> Self {
        Self(self.0 | DNR)
    }

    /// Whether Do Not Retry is set.
    pub const fn is_dnr(self) -> bool {
        self.0 & DNR != 0
    }

    /// The same with More set: the error information log has an entry about this.
    pub const fn more(self) -> Self {
        Self(self.0 | MORE)
    }

    /// Whether More is set.
    pub const fn is_more(self) -> bool {
        self.0 & MORE != 0
    }

    /// Command Retry Delay: 0 for none, else which of the three CRDT values of Identify Controller holds.
    pub const fn crd(self) -> u8 {
        (self.0 >> CRD_SHIFT) as u8 & 3
    }

    /// Whether the error is about the path (status code type 3), so that another path may do.
    pub const fn is_path_error(self) -> bool {
        self.sct() == Self::SCT_PATH
    }
}

macro_rules! statuses {
    ($($name:ident = $sct:literal / $sc:literal, $text:literal;)*) => {
        impl Status {
            $(#[doc = concat!($text, ".")] pub const $name: Self = Self::new($sct, $sc);)*

            /// The specification's name of the code. Where the NVM and the fabrics commands use one code for two things, both.
            pub const fn name(self) -> Option<&'static str> {
                match (self.sct(), self.sc()) {
                    $(($sct, $sc) => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    SUCCESS = 0 / 0x00, "Successful Completion";
    INVALID_OPCODE = 0 / 0x01, "Invalid Command Opcode";
    INVALID_FIELD = 0 / 0x02, "Invalid Field in Command";
    COMMAND_ID_CONFLICT = 0 / 0x03, "Command ID Conflict";
    DATA_TRANSFER_ERROR = 0 / 0x04, "Data Transfer Error";
    ABORTED_POWER_LOSS = 0 / 0x05, "Commands Aborted due to Power Loss Notification";
    INTERNAL_ERROR = 0 / 0x06, "Internal Error";
    ABORT_REQUESTED = 0 / 0x07, "Command Abort Requested";
    ABORTED_SQ_DELETION = 0 / 0x08, "Command Aborted due to SQ Deletion";
    ABORTED_FAILED_FUSED = 0 / 0x09, "Command Aborted due to Failed Fused Command";
    ABORTED_MISSING_FUSED = 0 / 0x0a, "Command Aborted due to Missing Fused Command";
    INVALID_NAMESPACE = 0 / 0x0b, "Invalid Namespace or Format";
    COMMAND_SEQUENCE_ERROR = 0 / 0x0c, "Command Sequence Error";
    INVALID_SGL_SEGMENT_DESCRIPTOR = 0 / 0x0d, "Invalid SGL Segment Descriptor";
    INVALID_SGL_DESCRIPTOR_COUNT = 0 / 0x0e, "Invalid Number of SGL Descriptors";
    DATA_SGL_LENGTH_INVALID = 0 / 0x0f, "Data SGL Length Invalid";
    METADATA_SGL_LENGTH_INVALID = 0 / 0x10, "Metadata SGL Length Invalid";
    SGL_DESCRIPTOR_TYPE_INVALID = 0 / 0x11, "SGL Descriptor Type Invalid";
    INVALID_CMB_USE = 0 / 0x12, "Invalid Use of Controller Memory Buffer";
    PRP_OFFSET_INVALID = 0 / 0x13, "PRP Offset Invalid";
    ATOMIC_WRITE_UNIT_EXCEEDED = 0 / 0x14, "Atomic Write Unit Exceeded";
    OPERATION_DENIED = 0 / 0x15, "Operation Denied";
    SGL_OFFSET_INVALID = 0 / 0x16, "SGL Offset Invalid";
    HOST_ID_INCONSISTENT_FORMAT = 0 / 0x18, "Host Identifier Inconsistent Format";
    KEEP_ALIVE_TIMER_EXPIRED = 0 / 0x19, "Keep Alive Timer Expired";
    KEEP_ALIVE_TIMEOUT_INVALID = 0 / 0x1a, "Keep Alive Timeout Invalid";
    ABORTED_PREEMPT_AND_ABORT = 0 / 0x1b, "Command Aborted due to Preempt and Abort";
    SANITIZE_FAILED = 0 / 0x1c, "Sanitize Failed";
    SANITIZE_IN_PROGRESS = 0 / 0x1d, "Sanitize In Progress";
    SGL_GRANULARITY_INVALID = 0 / 0x1e, "SGL Data Block Granularity Invalid";
    NOT_SUPPORTED_IN_CMB = 0 / 0x1f, "Command Not Supported for Queue in CMB";
    NAMESPACE_WRITE_PROTECTED = 0 / 0x20, "Namespace is Write Protected";
    COMMAND_INTERRUPTED = 0 / 0x21, "Command Interrupted";
    TRANSIENT_TRANSPORT_ERROR = 0 / 0x22, "Transient Transport Error";
    PROHIBITED_BY_LOCKDOWN = 0 / 0x23, "Command Prohibited by Command and Feature Lockdown";
    ADMIN_COMMAND_MEDIA_NOT_READY = 0 / 0x24, "Admin Command Media Not Ready";
    LBA_OUT_OF_RANGE = 0 / 0x80, "LBA Out of Range";
    CAPACITY_EXCEEDED = 0 / 0x81, "Capacity Exceeded";
    NAMESPACE_NOT_READY = 0 / 0x82, "Namespace Not Ready";
    RESERVATION_CONFLICT = 0 / 0x83, "Reservation Conflict";
    FORMAT_IN_PROGRESS = 0 / 0x84, "Format In Progress";

    COMPLETION_QUEUE_INVALID = 1 / 0x00, "Completion Queue Invalid";
    INVALID_QUEUE_IDENTIFIER = 1 / 0x01, "Invalid Queue Identifier";
    INVALID_QUEUE_SIZE = 1 / 0x02, "Invalid Queue Size";
    ABORT_LIMIT_EXCEEDED = 1 / 0x03, "Abort Command Limit Exceeded";
    AER_LIMIT_EXCEEDED = 1 / 0x05, "Asynchronous Event Request Limit Exceeded";
    INVALID_FIRMWARE_SLOT = 1 / 0x06, "Invalid Firmware Slot";
    INVALID_FIRMWARE_IMAGE = 1 / 0x07, "Invalid Firmware Image";
    INVALID_INTERRUPT_VECTOR = 1 / 0x08, "Invalid Interrupt Vector";
    INVALID_LOG_PAGE = 1 / 0x09, "Invalid Log Page";
    INVALID_FORMAT = 1 / 0x0a, "Invalid Format";
    INVALID_QUEUE_DELETION = 1 / 0x0c, "Invalid Queue Deletion";
    FEATURE_NOT_SAVEABLE = 1 / 0x0d, "Feature Identifier Not Saveable";
    FEATURE_NOT_CHANGEABLE = 1 / 0x0e, "Feature Not Changeable";
    FEATURE_NOT_NAMESPACE_SPECIFIC = 1 / 0x0f, "Feature Not Namespace Specific";
    OVERLAPPING_RANGE = 1 / 0x14, "Overlapping Range";
    NAMESPACE_INSUFFICIENT_CAPACITY = 1 / 0x15, "Namespace Insufficient Capacity";
    NAMESPACE_IDENTIFIER_UNAVAILABLE = 1 / 0x16, "Namespace Identifier Unavailable";
    NAMESPACE_ALREADY_ATTACHED = 1 / 0x18, "Namespace Already Attached";
    NAMESPACE_IS_PRIVATE = 1 / 0x19, "Namespace Is Private";
    NAMESPACE_NOT_ATTACHED = 1 / 0x1a, "Namespace Not Attached";
    THIN_PROVISIONING_NOT_SUPPORTED = 1 / 0x1b, "Thin Provisioning Not Supported";
    CONTROLLER_LIST_INVALID = 1 / 0x1c, "Controller List Invalid";
    INVALID_CONTROLLER_IDENTIFIER = 1 / 0x1f, "Invalid Controller Identifier";
    ANA_GROUP_IDENTIFIER_INVALID = 1 / 0x24, "ANA Group Identifier Invalid";
    ANA_ATTACH_FAILED = 1 / 0x25, "ANA Attach Failed";
    IO_COMMAND_SET_NOT_SUPPORTED = 1 / 0x29, "I/O Command Set Not Supported";
    IO_COMMAND_SET_NOT_ENABLED = 1 / 0x2a, "I/O Command Set Not Enabled";
    IO_COMMAND_SET_COMBINATION_REJECTED = 1 / 0x2b, "I/O Command Set Combination Rejected";
    INVALID_IO_COMMAND_SET = 1 / 0x2c, "Invalid I/O Command Set";

    CONFLICTING_ATTRIBUTES = 1 / 0x80, "Conflicting Attributes, or Connect Incompatible Format";
    INVALID_PROTECTION_INFORMATION = 1 / 0x81, "Invalid Protection Information, or Connect Controller Busy";
    WRITE_TO_READ_ONLY_RANGE = 1 / 0x82, "Attempted Write to Read Only Range, or Connect Invalid Parameters";
    COMMAND_SIZE_LIMIT_EXCEEDED = 1 / 0x83, "Command Size Limit Exceeded, or Connect Restart Discovery";
    CONNECT_INVALID_HOST = 1 / 0x84, "Connect Invalid Host";
    DISCOVERY_RESTART = 1 / 0x90, "Discover Restart";
    AUTHENTICATION_REQUIRED = 1 / 0x91, "Authentication Required";

    WRITE_FAULT = 2 / 0x80, "Write Fault";
    UNRECOVERED_READ_ERROR = 2 / 0x81, "Unrecovered Read Error";
    GUARD_CHECK_ERROR = 2 / 0x82, "End-to-end Guard Check Error";
    APPLICATION_TAG_CHECK_ERROR = 2 / 0x83, "End-to-end Application Tag Check Error";
    REFERENCE_TAG_CHECK_ERROR = 2 / 0x84, "End-to-end Reference Tag Check Error";
    COMPARE_FAILURE = 2 / 0x85, "Compare Failure";
    ACCESS_DENIED = 2 / 0x86, "Access Denied";
    DEALLOCATED_OR_UNWRITTEN_BLOCK = 2 / 0x87, "Deallocated or Unwritten Logical Block";

    INTERNAL_PATH_ERROR = 3 / 0x00, "Internal Path Error";
    ANA_PERSISTENT_LOSS = 3 / 0x01, "Asymmetric Access Persistent Loss";
    ANA_INACCESSIBLE = 3 / 0x02, "Asymmetric Access Inaccessible";
    ANA_TRANSITION = 3 / 0x03, "Asymmetric Access Transition";
    CONTROLLER_PATHING_ERROR = 3 / 0x60, "Controller Pathing Error";
    HOST_PATHING_ERROR = 3 / 0x70, "Host Pathing Error";
    ABORTED_BY_HOST = 3 / 0x71, "Command Aborted By Host";
}

/// Fabrics command specific codes that share their value with one of the NVM command set's.
impl Status {
    /// Connect: the record format is not supported, or the SQE and the data disagree with it.
    pub const CONNECT_INCOMPATIBLE_FORMAT: Self = Self::CONFLICTING_ATTRIBUTES;
    /// Connect: the controller is in use by another host; trying again may work.
    pub const CONNECT_CONTROLLER_BUSY: Self = Self::INVALID_PROTECTION_INFORMATION;
    /// Connect: a parameter is wrong; the result says which.
    pub const CONNECT_INVALID_PARAMETERS: Self = Self::WRITE_TO_READ_ONLY_RANGE;
    /// Connect: discovery has to be done again.
    pub const CONNECT_RESTART_DISCOVERY: Self = Self::COMMAND_SIZE_LIMIT_EXCEEDED;
    /// Disconnect: the queue is not one that can be disconnected (the admin queue).
    pub const INVALID_QUEUE_TYPE: Self = Self::new(1, 0x85);
}

impl Status {
    /// The status as that of a Connect command: where a code has two names, that of the fabrics commands alone.
    pub fn of_connect(self) -> impl fmt::Display {
        OfConnect(self)
    }

    fn write_as(self, name: Option<&str>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}/{:02x}h", self.sct(), self.sc())?;
        match name {
            Some(name) => write!(f, " {name}")?,
            None if self == Self::INVALID_QUEUE_TYPE => write!(f, " Invalid Queue Type")?,
            None => {}
        }
        if self.is_dnr() {
            f.write_str(" (DNR)")?;
        }
        Ok(())
    }
}

struct OfConnect(Status);

impl fmt::Display for OfConnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.name().map(|name| match name.split_once(", or ") {
            Some((_, of_fabrics)) => of_fabrics,
            None => name,
        });
        self.0.write_as(name, f)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_as(self.name(), f)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_and_names() {
        let s = Status::CONNECT_INVALID_PARAMETERS.dnr();
        assert_eq!(s.0, 0x4182);
        assert_eq!(s.to_wire().get(), 0x8304);
        assert_eq!(
            Status::from_wire(U16::new(0x8305)),
            s,
            "the phase tag is not part of the status"
        );
        assert!(s.is(Status::CONNECT_INVALID_PARAMETERS) && s.is_dnr() && !s.is_success());
        assert_eq!(
            Status::INVALID_FIELD.dnr().to_string(),
            "00/02h Invalid Field in Command (DNR)"
        );
        assert_eq!(Status::new(7, 0xfe).to_string(), "07/feh");
        assert_eq!(
            s.of_connect().to_string(),
            "01/82h Connect Invalid Parameters (DNR)"
        );
        assert_eq!(
            Status::KEEP_ALIVE_TIMEOUT_INVALID.of_connect().to_string(),
            "00/1ah Keep Alive Timeout Invalid"
        );
        assert!(Status::ANA_INACCESSIBLE.is_path_error());
        assert_eq!(Status(0b10 << 11).crd(), 2);
    }
}
