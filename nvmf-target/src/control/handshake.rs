//! A connection's first steps: ICReq, Connect, and then the way it goes: an admin queue stays here, an I/O queue goes to a shard.
//!
//! A socket that does not get through this in time is closed, so that silent ones cost nothing for long. A host whose Connect
//! was refused may try again on the same connection until then.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use nvme_proto::controller::{ConnectRequest, Fault};
use nvme_proto::queue::MAX_QUEUE_DEPTH;
use nvme_proto::tcp::{
    ConnectCapsule, ControllerHandshake, ControllerOffer, HandshakeEvent, Pda,
    TERMINATION_TIMEOUT_MS, TcpParams,
};
use nvme_proto::wire::Status;
use tokio::time::Instant;
use zerocopy::IntoBytes;

use super::accept::Counted;
use super::net::Stream;
use super::rdma::Greeted;
use super::target::Target;
use super::{admin, io_connect};
use crate::config::{Address, Carrier, Limits, TcpOptions};

/// One read. ICReq fits, and so does Connect with its data.
const READ_BYTES: usize = 4096;

/// A connection whose host has sent a whole Connect.
pub struct Connecting {
    /// The connection.
    pub carried: Carried,
    /// Counts it against the bound.
    pub counted: Counted,
    /// The command, checked.
    pub request: ConnectRequest,
}

/// What carries a connection.
pub enum Carried {
    /// TCP.
    Tcp {
        /// The socket.
        stream: Stream,
        /// What ICReq and ICResp agreed on.
        params: TcpParams,
        /// What came in behind Connect.
        rest: Vec<u8>,
    },
    /// RDMA.
    Rdma(Box<Greeted>),
}

impl Connecting {
    /// The transport and our address that the host connected to.
    pub fn local(&self) -> Address {
        Address {
            carrier: match self.carried {
                Carried::Tcp { .. } => Carrier::Tcp,
                Carried::Rdma(_) => Carrier::Rdma,
            },
            socket: self.addresses().0,
        }
    }

    /// Our address that the host connected to, and the host's.
    pub fn addresses(&self) -> (SocketAddr, SocketAddr) {
        match &self.carried {
            Carried::Tcp { stream, .. } => (stream.local(), stream.peer()),
            Carried::Rdma(greeted) => greeted.addresses(),
        }
    }
}

/// Why a Connect is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the host is told.
    pub status: Status,
    /// Dword 0 of the answer: the parameter at fault, for Connect Invalid Parameters.
    pub result: u64,
    /// What the log is told.
    pub reason: String,
}

impl Refusal {
    /// Refuses for now: the host may come again, so DNR stays clear.
    pub fn for_now(status: Status, reason: impl Into<String>) -> Self {
        Refusal {
            status,
            result: 0,
            reason: reason.into(),
        }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Refusal {
            status: fault.status(),
            result: fault.result(),
            reason: fault.to_string(),
        }
    }
}

/// A refused Connect and the connection it came in on.
pub type Refused = Box<(Refusal, Connecting)>;

/// Why a connection ended before its Connect succeeded.
enum Ended {
    /// The host closed it, or the socket failed.
    Closed(String),
    /// The time is up.
    TimedOut,
    /// The host broke a rule; it was told.
    Violation(String),
    /// The host sent a termination request.
    Terminated(String),
}

/// Serves a connection from its first byte on.
pub async fn serve(target: Rc<Target>, stream: Stream, counted: Counted) {
    let peer = stream.peer();
    let (limits, tcp) = {
        let config = target.config.borrow();
        (config.limits.clone(), config.tcp.clone())
    };
    let deadline = Instant::now() + Duration::from_millis(limits.handshake_ms.into());
    let mut exchange = Exchange {
        handshake: ControllerHandshake::new(offer(&limits, &tcp)),
        buffer: Vec::with_capacity(READ_BYTES),
        used: 0,
        deadline,
    };
    let mut parts = (stream, counted);
    loop {
        let (stream, counted) = parts;
        let capsule = match exchange.next_connect(&stream).await {
            Ok(capsule) => capsule,
            Err(ended) => return finish(&stream, ended, limits.handshake_ms).await,
        };
        let cid = capsule.sqe.cid();
        let refusal = match ConnectRequest::parse(
            &capsule.sqe,
            capsule.data.as_bytes(),
            MAX_QUEUE_DEPTH.into(),
        ) {
            Ok(request) => {
                let host = request.hostnqn.clone();
                let connecting = Connecting {
                    carried: Carried::Tcp {
                        stream,
                        params: capsule.params,
                        rest: exchange.take_rest(),
                    },
                    counted,
                    request,
                };
                let outcome = if connecting.request.qid.is_admin() {
                    admin::start(&target, connecting)
                } else {
                    io_connect::start(&target, connecting, deadline).await
                };
                let Err(refused) = outcome else {
                    return;
                };
                let (refusal, connecting) = *refused;
                let Carried::Tcp { stream, rest, .. } = connecting.carried else {
                    return;
                };
                exchange.put_back(rest);
                parts = (stream, connecting.counted);
                tracing::warn!(%peer, %host, status = %refusal.status, "Connect refused: {}", refusal.reason);
                refusal
            }
            Err(fault) => {
                let refusal = Refusal::from(fault);
                tracing::warn!(%peer, status = %refusal.status, "Connect refused: {}", refusal.reason);
                parts = (stream, counted);
                refusal
            }
        };
        exchange
            .handshake
            .refuse(cid, refusal.status, refusal.result);
    }
}

/// What ICResp offers.
fn offer(limits: &Limits, tcp: &TcpOptions) -> ControllerOffer {
    ControllerOffer {
        header_digest: tcp.header_digest,
        data_digest: tcp.data_digest,
        cpda: Pda::from_wire(tcp.cpda).unwrap_or_default(),
        max_h2c_data_bytes: limits.r2t_window_bytes,
    }
}

/// The bytes of a connection before its Connect succeeded.
struct Exchange {
    handshake: ControllerHandshake,
    /// What was read; the first `used` bytes are done with.
    buffer: Vec<u8>,
    used: usize,
    deadline: Instant,
}

impl Exchange {
    /// Reads until a Connect is complete, and sends whatever the handshake has to say meanwhile.
    async fn next_connect(&mut self, stream: &Stream) -> Result<Box<ConnectCapsule>, Ended> {
        loop {
            let outcome = self.handshake.receive(&self.buffer[self.used..]);
            let output = self.handshake.take_output();
            if !output.is_empty() {
                send(stream, output, self.deadline).await?;
            }
            let (taken, event) =
                outcome.map_err(|violation| Ended::Violation(violation.to_string()))?;
            self.used += taken;
            match event {
                HandshakeEvent::NeedMore => self.read_more(stream).await?,
                HandshakeEvent::Connect(capsule) => return Ok(capsule),
                HandshakeEvent::Refused { violation, .. } => {
                    tracing::warn!(peer = %stream.peer(), "command before Connect refused: {violation}");
                }
                HandshakeEvent::TermReq { fes, fei } => {
                    return Err(Ended::Terminated(format!("{fes:?}, information {fei:#x}")));
                }
            }
        }
    }

    async fn read_more(&mut self, stream: &Stream) -> Result<(), Ended> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.reserve(READ_BYTES);
        self.used = 0;
        let result;
        (result, self.buffer) = stream.read_until(buffer, self.deadline).await;
        match result {
            Ok(0) => Err(Ended::Closed("the host closed the connection".into())),
            Ok(_) => Ok(()),
            Err(_) if Instant::now() >= self.deadline => Err(Ended::TimedOut),
            Err(error) => Err(Ended::Closed(error.to_string())),
        }
    }

    /// The bytes behind the Connect.
    fn take_rest(&mut self) -> Vec<u8> {
        let rest = self.buffer.split_off(self.used);
        self.buffer.clear();
        self.used = 0;
        rest
    }

    fn put_back(&mut self, rest: Vec<u8>) {
        self.buffer = rest;
        self.used = 0;
    }
}

async fn send(stream: &Stream, bytes: Vec<u8>, deadline: Instant) -> Result<(), Ended> {
    match stream.write_until(bytes, deadline).await {
        Ok(()) => Ok(()),
        Err(_) if Instant::now() >= deadline => Err(Ended::TimedOut),
        Err(error) => Err(Ended::Closed(error.to_string())),
    }
}

/// Says why a connection ends, and ends it.
async fn finish(stream: &Stream, ended: Ended, limit_ms: u32) {
    let peer = stream.peer();
    match ended {
        Ended::Closed(reason) => tracing::debug!(%peer, "closed before Connect: {reason}"),
        Ended::Terminated(reason) => {
            tracing::warn!(%peer, "ended by the host before Connect: {reason}");
        }
        Ended::TimedOut => {
            tracing::warn!(%peer, "closed: no Connect within {limit_ms} ms");
        }
        Ended::Violation(reason) => {
            tracing::warn!(%peer, "protocol error before Connect: {reason}");
            linger(stream).await;
        }
    }
    stream.shutdown();
}

/// Waits for the host to close after a termination request, so that a reset does not overtake it.
pub async fn linger(stream: &Stream) {
    stream.shutdown_write();
    let deadline = Instant::now() + Duration::from_millis(TERMINATION_TIMEOUT_MS);
    let mut buffer = Vec::with_capacity(READ_BYTES);
    loop {
        buffer.clear();
        let result;
        (result, buffer) = stream.read_until(buffer, deadline).await;
        if !matches!(result, Ok(1..)) {
            return;
        }
    }
}
