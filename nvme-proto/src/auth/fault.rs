//! The rules of a transaction: one variant each, with what the other side is told.

use core::fmt;

use thiserror::Error;

/// Reason Code Explanation of AUTH_Failure1 and 2. The reason code itself is always 01h, authentication failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation(pub u8);

impl Explanation {
    /// Authentication failed.
    pub const FAILED: Self = Self(0x01);
    /// No authentication protocol in common.
    pub const PROTOCOL_NOT_USABLE: Self = Self(0x02);
    /// Secure channel concatenation was asked for in vain.
    pub const CONCATENATION_MISMATCH: Self = Self(0x03);
    /// No hash function in common.
    pub const HASH_NOT_USABLE: Self = Self(0x04);
    /// No Diffie-Hellman group in common.
    pub const DH_GROUP_NOT_USABLE: Self = Self(0x05);
    /// A message makes no sense.
    pub const INCORRECT_PAYLOAD: Self = Self(0x06);
    /// Not the message that was due.
    pub const INCORRECT_MESSAGE: Self = Self(0x07);
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match *self {
            Self::FAILED => "authentication failed",
            Self::PROTOCOL_NOT_USABLE => "no usable protocol",
            Self::CONCATENATION_MISMATCH => "secure channel concatenation mismatch",
            Self::HASH_NOT_USABLE => "no usable hash",
            Self::DH_GROUP_NOT_USABLE => "no usable Diffie-Hellman group",
            Self::INCORRECT_PAYLOAD => "incorrect payload",
            Self::INCORRECT_MESSAGE => "incorrect message",
            Self(other) => return write!(f, "explanation {other:02x}h"),
        };
        f.write_str(text)
    }
}

/// Why a transaction fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AuthFault {
    /// A message has all the bytes that its fields make.
    #[error("a message of {bytes} bytes that has {needed}")]
    Truncated {
        /// Bytes that there are.
        bytes: usize,
        /// Bytes that there must be, as far as the message says.
        needed: usize,
    },
    /// The message is one that there is.
    #[error("message {kind:02x}h/{id:02x}h is unknown")]
    UnknownMessage {
        /// AUTH_TYPE.
        kind: u8,
        /// AUTH_ID.
        id: u8,
    },
    /// The message is the one that is due.
    #[error("{got} instead of {due}")]
    OutOfOrder {
        /// What came.
        got: &'static str,
        /// What was due.
        due: &'static str,
    },
    /// All messages of a transaction carry its identifier.
    #[error("transaction {got:04x}h instead of {due:04x}h")]
    WrongTransaction {
        /// What came.
        got: u16,
        /// What was due.
        due: u16,
    },
    /// A list has no more entries than there is room for.
    #[error("a list of {entries} entries where 30 have room")]
    ListTooLong {
        /// How many it claims to have.
        entries: u8,
    },
    /// DH-HMAC-CHAP is among the protocols.
    #[error("the host offers no DH-HMAC-CHAP")]
    NoProtocol,
    /// No secure channel is asked for: there is no TLS.
    #[error("the host asks for secure channel concatenation, which there is not")]
    SecureChannel,
    /// A hash function of the host's is allowed here.
    #[error("none of the host's hash functions is allowed here")]
    NoCommonHash,
    /// A Diffie-Hellman group of the host's is allowed here.
    #[error("none of the host's Diffie-Hellman groups is allowed here")]
    NoCommonGroup,
    /// HL is the length of the hash that was agreed on.
    #[error("a hash length of {got} bytes instead of {due}")]
    HashLength {
        /// What came.
        got: u8,
        /// What was agreed on.
        due: u8,
    },
    /// There is a public value exactly where a group was agreed on, and no longer than the group's.
    #[error("a public value of {got} bytes where the group has {due}")]
    DhValueLength {
        /// What came.
        got: u16,
        /// What the group has.
        due: u16,
    },
    /// The public value is one of the group that hides anything.
    #[error("a public value that hides nothing")]
    WeakDhValue,
    /// The host's response proves that it has the secret.
    #[error("the host's response is not that of its secret")]
    WrongResponse,
    /// A challenge is not the one that it answers, sent back.
    #[error("the host sent our challenge back as its own")]
    ReflectedChallenge,
    /// A host that wants the controller to authenticate has one that can.
    #[error(
        "the host wants the controller to authenticate itself, and no controller key is configured for it"
    )]
    NoControllerKey,
    /// The host found the controller to be who it says.
    #[error("the host gave up: {0}")]
    HostFailed(Explanation),
}

impl AuthFault {
    /// What the host is told.
    pub const fn explanation(&self) -> Explanation {
        match self {
            Self::Truncated { .. }
            | Self::WrongTransaction { .. }
            | Self::ListTooLong { .. }
            | Self::HashLength { .. }
            | Self::DhValueLength { .. } => Explanation::INCORRECT_PAYLOAD,
            Self::UnknownMessage { .. } | Self::OutOfOrder { .. } => Explanation::INCORRECT_MESSAGE,
            Self::NoProtocol => Explanation::PROTOCOL_NOT_USABLE,
            Self::SecureChannel => Explanation::CONCATENATION_MISMATCH,
            Self::NoCommonHash => Explanation::HASH_NOT_USABLE,
            Self::NoCommonGroup | Self::WeakDhValue => Explanation::DH_GROUP_NOT_USABLE,
            Self::WrongResponse
            | Self::ReflectedChallenge
            | Self::NoControllerKey
            | Self::HostFailed(_) => Explanation::FAILED,
        }
    }
}
