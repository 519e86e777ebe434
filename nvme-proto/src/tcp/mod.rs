//! The TCP transport: PDUs, the handshake, and one state machine per queue connection on either side.
//!
//! - [`pdu`]: the structures; [`decoder`]: bytes to PDUs; `encoder`: the headers that we send;
//! - `params`: what was agreed on; [`handshake`]: ICReq and ICResp; [`controller_handshake`]: these and Connect on the controller's side;
//! - [`controller::ControllerConn`] and [`host::HostConn`]: a queue over a connection. Bytes come in through `receive`, what to send
//!   is asked for with `poll_transmit`; payload stays with the caller throughout, who knows which buffer belongs to which
//!   [`SlotId`].
//!
//! Nothing allocates after construction.

pub mod controller;
pub mod controller_handshake;
mod data_pointer;
pub mod decoder;
mod encoder;
pub mod handshake;
pub mod host;
mod params;
pub mod pdu;
mod termination;

use crate::digest::Crc;
use crate::queue::SlotId;

pub use controller::ControllerConn;
pub use controller_handshake::{ConnectCapsule, ControllerHandshake, HandshakeEvent};
pub use handshake::{ControllerOffer, HostHandshake, HostRequest};
pub use host::HostConn;
pub use params::{Pda, TcpParams};

/// Room for the longest header that is ever sent: a termination request, which is longer than a command capsule's header padded to
/// the largest alignment (128 bytes).
pub const TX_HEADER_BYTES: usize = 152;

/// Where `poll_transmit` writes a header.
pub type TxHeader = [u8; TX_HEADER_BYTES];

/// In-capsule data that admin and fabrics commands may carry whatever IOCCSZ says.
pub const ADMIN_IN_CAPSULE_BYTES: u32 = 8192;

/// How long whoever sent a termination request waits for the peer to close the connection before it does so itself.
pub const TERMINATION_TIMEOUT_MS: u64 = 30_000;

/// A PDU to send: the header that was written, then the payload, then its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxPdu {
    /// Bytes written to the header buffer: PDU header, header digest, padding up to the data.
    pub header_bytes: u8,
    /// Data that follows.
    pub payload: Option<TxPayload>,
    /// The slot that ends with this PDU. Once it is sent, its buffer is no longer needed here.
    pub finishes: Option<SlotId>,
}

/// The payload of a PDU to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxPayload {
    /// Whose buffer.
    pub slot: SlotId,
    /// Where in it, in bytes.
    pub offset: u32,
    /// How many bytes; never 0.
    pub len: u32,
    /// Append the [`Crc`] of these bytes ([`Crc::to_wire`]).
    pub digest: bool,
}

/// Where the next bytes of the stream belong, for receiving them straight into place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Whose buffer.
    pub slot: SlotId,
    /// Where in it, in bytes.
    pub offset: u32,
    /// Payload bytes that this PDU still has; never 0.
    pub len: u32,
    /// With data digests on: what `payload_received` wants extended by the received bytes ([`Crc::and`]).
    pub crc: Option<Crc>,
}
