//! Opcodes of the admin, NVM and fabrics command sets.
//!
//! One open newtype: which set a value belongs to follows from the queue it arrived on, and fabrics commands share one opcode
//! (7Fh) on both and are told apart by [`FabricsType`].

use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Opcode: byte 0 of a submission queue entry.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(transparent)]
pub struct Opcode(pub u8);

impl Opcode {
    /// The one opcode of all fabrics commands.
    pub const FABRICS: Self = Self(0x7f);

    /// Bits 1:0 = 01b: data goes from host to controller. Fabrics commands carry the direction in FCTYPE instead, see
    /// [`FctypeCode::is_host_to_controller`].
    pub const fn is_host_to_controller(self) -> bool {
        self.0 & 0b11 == 0b01
    }

    /// Bits 1:0 = 10b: data goes from controller to host.
    pub const fn is_controller_to_host(self) -> bool {
        self.0 & 0b11 == 0b10
    }

    /// Whether this is a vendor-specific opcode: C0h and above on the admin queue, 80h and above on I/O queues.
    pub const fn is_vendor_specific(self, admin: bool) -> bool {
        self.0 >= if admin { 0xc0 } else { 0x80 }
    }
}

macro_rules! opcodes {
    ($(#[$doc:meta])* $set:ident : $newtype:ident { $($(#[$cdoc:meta])* $name:ident = $value:literal, $text:literal;)* }) => {
        $(#[$doc])*
        pub enum $set {}

        impl $set {
            $($(#[$cdoc])* #[doc = concat!($text, ".")] pub const $name: $newtype = $newtype($value);)*

            /// The specification's name of this value, where it is one that is known here.
            pub const fn name(value: $newtype) -> Option<&'static str> {
                match value.0 {
                    $($value => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

opcodes! {
    /// Opcodes on the admin queue.
    AdminOpcode: Opcode {
        DELETE_IO_SQ = 0x00, "Delete I/O Submission Queue";
        CREATE_IO_SQ = 0x01, "Create I/O Submission Queue";
        GET_LOG_PAGE = 0x02, "Get Log Page";
        DELETE_IO_CQ = 0x04, "Delete I/O Completion Queue";
        CREATE_IO_CQ = 0x05, "Create I/O Completion Queue";
        IDENTIFY = 0x06, "Identify";
        ABORT = 0x08, "Abort";
        SET_FEATURES = 0x09, "Set Features";
        GET_FEATURES = 0x0a, "Get Features";
        ASYNC_EVENT_REQUEST = 0x0c, "Asynchronous Event Request";
        NAMESPACE_MANAGEMENT = 0x0d, "Namespace Management";
        FIRMWARE_COMMIT = 0x10, "Firmware Commit";
        FIRMWARE_IMAGE_DOWNLOAD = 0x11, "Firmware Image Download";
        DEVICE_SELF_TEST = 0x14, "Device Self-test";
        NAMESPACE_ATTACHMENT = 0x15, "Namespace Attachment";
        KEEP_ALIVE = 0x18, "Keep Alive";
        DIRECTIVE_SEND = 0x19, "Directive Send";
        DIRECTIVE_RECEIVE = 0x1a, "Directive Receive";
        VIRTUALIZATION_MANAGEMENT = 0x1c, "Virtualization Management";
        NVME_MI_SEND = 0x1d, "NVMe-MI Send";
        NVME_MI_RECEIVE = 0x1e, "NVMe-MI Receive";
        CAPACITY_MANAGEMENT = 0x20, "Capacity Management";
        LOCKDOWN = 0x24, "Lockdown";
        DOORBELL_BUFFER_CONFIG = 0x7c, "Doorbell Buffer Config";
        FABRICS = 0x7f, "Fabrics";
        FORMAT_NVM = 0x80, "Format NVM";
        SECURITY_SEND = 0x81, "Security Send";
        SECURITY_RECEIVE = 0x82, "Security Receive";
        SANITIZE = 0x84, "Sanitize";
        GET_LBA_STATUS = 0x86, "Get LBA Status";
    }
}

opcodes! {
    /// Opcodes of the NVM command set on I/O queues.
    IoOpcode: Opcode {
        FLUSH = 0x00, "Flush";
        WRITE = 0x01, "Write";
        READ = 0x02, "Read";
        WRITE_UNCORRECTABLE = 0x04, "Write Uncorrectable";
        COMPARE = 0x05, "Compare";
        WRITE_ZEROES = 0x08, "Write Zeroes";
        DATASET_MANAGEMENT = 0x09, "Dataset Management";
        VERIFY = 0x0c, "Verify";
        RESERVATION_REGISTER = 0x0d, "Reservation Register";
        RESERVATION_REPORT = 0x0e, "Reservation Report";
        RESERVATION_ACQUIRE = 0x11, "Reservation Acquire";
        RESERVATION_RELEASE = 0x15, "Reservation Release";
        COPY = 0x19, "Copy";
        FABRICS = 0x7f, "Fabrics";
    }
}

/// Fabrics command type (FCTYPE): byte 4 of a fabrics command.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(transparent)]
pub struct FctypeCode(pub u8);

impl FctypeCode {
    /// Bits 1:0 = 01b: data goes from host to controller.
    pub const fn is_host_to_controller(self) -> bool {
        self.0 & 0b11 == 0b01
    }

    /// Bits 1:0 = 10b: data goes from controller to host.
    pub const fn is_controller_to_host(self) -> bool {
        self.0 & 0b11 == 0b10
    }
}

opcodes! {
    /// Fabrics command types.
    FabricsType: FctypeCode {
        PROPERTY_SET = 0x00, "Property Set";
        CONNECT = 0x01, "Connect";
        PROPERTY_GET = 0x04, "Property Get";
        AUTHENTICATION_SEND = 0x05, "Authentication Send";
        AUTHENTICATION_RECEIVE = 0x06, "Authentication Receive";
        DISCONNECT = 0x08, "Disconnect";
    }
}

impl fmt::Debug for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}h", self.0)
    }
}

impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}h", self.0)
    }
}

impl fmt::Debug for FctypeCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}h", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_direction_is_in_the_low_bits() {
        assert!(IoOpcode::WRITE.is_host_to_controller());
        assert!(IoOpcode::READ.is_controller_to_host());
        assert!(IoOpcode::COMPARE.is_host_to_controller());
        assert!(IoOpcode::DATASET_MANAGEMENT.is_host_to_controller());
        assert!(AdminOpcode::IDENTIFY.is_controller_to_host());
        assert!(AdminOpcode::SET_FEATURES.is_host_to_controller());
        for none in [
            IoOpcode::FLUSH,
            IoOpcode::WRITE_ZEROES,
            IoOpcode::VERIFY,
            AdminOpcode::KEEP_ALIVE,
        ] {
            assert!(
                !none.is_host_to_controller() && !none.is_controller_to_host(),
                "{none}"
            );
        }
        assert!(FabricsType::CONNECT.is_host_to_controller());
        assert!(FabricsType::AUTHENTICATION_RECEIVE.is_controller_to_host());
    }
}
