//! From our errors to gRPC's codes. The message stays as it is: it says what is wrong, where, and what to do.

use nvmf_rpc::error::code;
use nvmf_volume::{Error, Kind};
use tonic::Status;

use crate::controller::target::TargetError;

/// Of what a target's management API said.
pub fn of_target(error: &TargetError) -> Status {
    let message = error.to_string();
    match error.code() {
        Some(code::NOT_FOUND | code::NO_DEVICE) => Status::not_found(message),
        Some(code::EXISTS) => Status::already_exists(message),
        Some(code::BUSY | code::NOT_SUPPORTED) => Status::failed_precondition(message),
        Some(code::NO_SPACE) => Status::resource_exhausted(message),
        Some(code::INVALID | code::INVALID_PARAMS) => Status::invalid_argument(message),
        Some(code::NOT_PERMITTED | code::ACCESS) => Status::permission_denied(message),
        Some(_) => Status::internal(message),
        None => Status::unavailable(message),
    }
}

/// Of what the node's side said.
pub fn of_node(error: &Error) -> Status {
    let message = error.to_string();
    match error.kind() {
        Kind::Invalid => Status::invalid_argument(message),
        Kind::NotFound => Status::not_found(message),
        Kind::Precondition | Kind::Busy => Status::failed_precondition(message),
        Kind::Denied => Status::permission_denied(message),
        Kind::Unavailable => Status::unavailable(message),
        Kind::Internal => Status::internal(message),
    }
}
