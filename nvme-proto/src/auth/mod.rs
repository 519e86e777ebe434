//! NVMe in-band authentication with DH-HMAC-CHAP: secrets, the messages, and the controller's side of a transaction.
//!
//! A host sends messages with Authentication Send and fetches the controller's with Authentication Receive, on every queue of an
//! association, after Connect and before anything else. Randomness comes in as an argument, as time does elsewhere: nothing here has any of
//! its own. What is secret is wiped when it is dropped and never shown.

mod command;
mod controller;
mod dh;
mod fault;
mod hash;
mod message;
mod secret;
#[cfg(test)]
mod tests;

pub use command::{AuthSqe, MAX_MESSAGE_BYTES, SECP_NVME, SPSP_DH_HMAC_CHAP};
pub use controller::{Answer, ControllerAuth, DhChapKeys, DhChapPolicy, Outcome};
pub use dh::{DhGroup, DhKeyPair, EXPONENT_BYTES};
pub use fault::{AuthFault, Explanation};
pub use hash::{HashId, MAX_HASH_BYTES, Proof};
pub use message::{Challenge, Message, Negotiate, Reply};
pub use secret::{Secret, SecretError};
