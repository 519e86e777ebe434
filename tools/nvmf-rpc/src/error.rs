//! Errors as they travel: a code, a message, and data where a method says so.

use std::io::ErrorKind;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Codes. Those of JSON-RPC are as it defines them; what a method refuses has a negative errno, as in SPDK.
pub mod code {
    /// What was sent is no JSON, or longer than allowed.
    pub const PARSE_ERROR: i32 = -32700;
    /// It is JSON but no request.
    pub const INVALID_REQUEST: i32 = -32600;
    /// There is no such method.
    pub const METHOD_NOT_FOUND: i32 = -32601;
    /// The parameters are not those of the method.
    pub const INVALID_PARAMS: i32 = -32602;
    /// Something failed that is nobody's mistake.
    pub const INTERNAL_ERROR: i32 = -32603;
    /// EPERM: not the API's to change, such as what the configuration file declares.
    pub const NOT_PERMITTED: i32 = -1;
    /// ENOENT: what was named does not exist.
    pub const NOT_FOUND: i32 = -2;
    /// EIO: storage failed.
    pub const IO: i32 = -5;
    /// EACCES: the target may not do that.
    pub const ACCESS: i32 = -13;
    /// EBUSY: in use.
    pub const BUSY: i32 = -16;
    /// EEXIST: there is one of that name already.
    pub const EXISTS: i32 = -17;
    /// ENODEV: a block device that does not exist, as SPDK has it.
    pub const NO_DEVICE: i32 = -19;
    /// EINVAL: a value that cannot be.
    pub const INVALID: i32 = -22;
    /// ENOSPC: no room.
    pub const NO_SPACE: i32 = -28;
    /// EADDRINUSE: somebody else listens there.
    pub const ADDRESS_IN_USE: i32 = -98;
    /// EADDRNOTAVAIL: no address of this machine.
    pub const ADDRESS_NOT_AVAILABLE: i32 = -99;
    /// EOPNOTSUPP: understood, but not possible here.
    pub const NOT_SUPPORTED: i32 = -95;
}

/// What a method answers when it does not do what was asked. The message says what is wrong, where, and what to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} (code {code})")]
pub struct RpcError {
    /// One of [`code`].
    pub code: i32,
    /// For a person.
    pub message: String,
    /// For a program, where the method says so: such as the object that exists already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl RpcError {
    /// An error with one of the codes of [`code`].
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        RpcError {
            code,
            message: message.into(),
            data: None,
        }
    }

    /// The same error with data for a program.
    pub fn with_data(self, data: Value) -> Self {
        RpcError {
            data: Some(data),
            ..self
        }
    }

    /// What was named does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(code::NOT_FOUND, message)
    }

    /// There is one already; `existing` is it.
    pub fn exists(message: impl Into<String>, existing: Value) -> Self {
        Self::new(code::EXISTS, message).with_data(existing)
    }

    /// In use.
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(code::BUSY, message)
    }

    /// A value that cannot be.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(code::INVALID, message)
    }

    /// Parameters that are not those of the method.
    pub fn params(message: impl Into<String>) -> Self {
        Self::new(code::INVALID_PARAMS, message)
    }

    /// Not the API's to change.
    pub fn not_permitted(message: impl Into<String>) -> Self {
        Self::new(code::NOT_PERMITTED, message)
    }

    /// Understood, but not possible here.
    pub fn not_supported(message: impl Into<String>) -> Self {
        Self::new(code::NOT_SUPPORTED, message)
    }

    /// No room.
    pub fn no_space(message: impl Into<String>) -> Self {
        Self::new(code::NO_SPACE, message)
    }

    /// Something failed that is nobody's mistake.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(code::INTERNAL_ERROR, message)
    }

    /// A system call failed while doing `what`: the code is its errno.
    pub fn system(what: &str, error: &std::io::Error) -> Self {
        // An error that was given more words has lost its number, but not its kind.
        let code = match error.raw_os_error() {
            Some(errno) => -errno,
            None => match error.kind() {
                ErrorKind::AddrInUse => code::ADDRESS_IN_USE,
                ErrorKind::AddrNotAvailable => code::ADDRESS_NOT_AVAILABLE,
                ErrorKind::PermissionDenied => code::ACCESS,
                _ => code::IO,
            },
        };
        Self::new(code, format!("{what}: {error}"))
    }
}
