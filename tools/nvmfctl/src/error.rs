//! What can go wrong, and the exit code of each.

use nvmf_rpc::error::code;
use nvmf_rpc::{ClientError, EndpointError};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API.
    #[error(transparent)]
    Api(#[from] ClientError),
    /// No place where a target could be.
    #[error("--socket: {0}")]
    Endpoint(#[from] EndpointError),
    /// What was asked for cannot be asked in this way.
    #[error("{0}")]
    Usage(String),
    /// The output could not be written.
    #[error("writing the output: {0}")]
    Output(#[from] std::io::Error),
}

impl Error {
    /// See `--help`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Output(_) => 1,
            Error::Usage(_) | Error::Endpoint(_) => 2,
            Error::Api(ClientError::Connect { .. }) => 3,
            Error::Api(
                ClientError::Lost { .. }
                | ClientError::Timeout { .. }
                | ClientError::Protocol { .. },
            ) => 7,
            Error::Api(ClientError::Refused { error, .. }) => match error.code {
                code::NOT_FOUND | code::NO_DEVICE => 4,
                code::EXISTS => 5,
                code::BUSY => 6,
                code::NOT_PERMITTED => 8,
                _ => 1,
            },
        }
    }
}
