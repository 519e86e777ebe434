//! The management API of `nvmf-target` as both sides see it: JSON-RPC 2.0 on a unix socket, or over TCP with mutual
//! TLS.
//!
//! - [`types`]: parameters and results of the pool methods, and [`types::Method`], which ties a method's name to them.
//! - [`error`]: error codes and the error object.
//! - [`stream`]: cutting a stream of JSON values, which has no framing, into values of bounded size.
//! - [`message`]: requests and responses.
//! - [`endpoint`]: where the API is, as a user writes it.
//! - [`tls`]: certificates and keys.
//! - [`client`]: a client, async and blocking.
//! - [`reach`]: the address at which a host finds a volume.
//!
//! Methods that SPDK has too keep SPDK's names, parameters and results; they have no types here and are called by
//! name with [`Client::call`].

pub mod client;
pub mod endpoint;
pub mod error;
pub mod message;
pub mod reach;
pub mod stream;
pub mod tls;
pub mod types;

pub use client::{BlockingClient, Client, ClientError};
pub use endpoint::{Endpoint, EndpointError, TlsArgs};
pub use error::RpcError;
pub use types::Method;

/// Where the target listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/nvmf-target/rpc.sock";
