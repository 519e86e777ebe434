//! A TCP connection's first steps: ICReq, Connect, and then the way it goes.
//!
//! A socket that does not get through this in time is closed, so that silent ones cost nothing for long. A host whose Connect
//! was refused may try again on the same connection until then.

use std::rc::Rc;
use std::time::Duration;

use nvme_proto::controller::ConnectRequest;
use nvme_proto::queue::MAX_QUEUE_DEPTH;
use nvme_proto::tcp::{
    ConnectCapsule, ControllerHandshake, ControllerOffer, HandshakeEvent, Pda,
    TERMINATION_TIMEOUT_MS,
};
use tokio::time::Instant;
use zerocopy::IntoBytes;

use super::accept::Counted;
use super::connecting::{Carried, Ended, place};
use super::net::Stream;
use super::target::Target;
use crate::config::{Limits, TcpOptions};

/// One read. ICReq fits, and so does Connect with its data.
const READ_BYTES: usize = 4096;

/// Serves a connection from its first byte on.
pub async fn serve(target: Rc<Target>, mut stream: Stream, mut counted: Counted) {
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
    loop {
        let capsule = match exchange.next_connect(&stream).await {
            Ok(capsule) => capsule,
            Err(ended) => return finish(&stream, ended, limits.handshake_ms).await,
        };
        let most = MAX_QUEUE_DEPTH.into();
        let request = ConnectRequest::parse(&capsule.sqe, capsule.data.as_bytes(), most);
        let carried = Carried::Tcp {
            stream,
            params: capsule.params,
            rest: exchange.take_rest(),
        };
        let back = place(&target, carried, counted, request, deadline).await;
        let Some((
            Carried::Tcp {
                stream: same, rest, ..
            },
            still,
            refusal,
        )) = back
        else {
            return;
        };
        (stream, counted) = (same, still);
        exchange.put_back(rest);
        let cid = capsule.sqe.cid();
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
    ended.tell(stream.peer(), limit_ms);
    if matches!(ended, Ended::Violation(_)) {
        linger(stream).await;
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
