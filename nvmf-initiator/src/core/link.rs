//! One queue's connection from nothing to the Connect response, on the control thread.
//!
//! Nothing here is on the I/O path: buffers are vectors, and time-outs are real ones.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use nvme_proto::digest::Crc;
use nvme_proto::queue::Transfer;
use nvme_proto::tcp::handshake::{HostHandshake, HostRequest, IC_BYTES};
use nvme_proto::tcp::host::{HostConn, HostLimits, HostReceived};
use nvme_proto::tcp::{Pda, TcpParams};
use nvme_proto::tcp::{TX_HEADER_BYTES, TxHeader, TxPdu};
use nvme_proto::violation::Violation;
use nvme_proto::wire::fabrics::{Cattr, ConnectData, ConnectResult, ConnectSqe, InvalidParameter};
use nvme_proto::wire::{Cntlid, Cqe, HostId, Nqn, Qid, Status};
use nvmf_io::net::SocketOptions;
use rustix::net::sockopt;
use tokio::time::timeout;
use zerocopy::IntoBytes;

use super::error::ConnectError;
use super::queue::TERMINATION_WAIT_MS;
use crate::host::HostIdentity;
use crate::options::Target;

/// Bytes taken from the socket at a time while a queue is set up.
const READ_BYTES: usize = 8192;
/// R2Ts that a controller may have open for one command. The Linux target ignores more, and the windows are its choice.
const MAX_R2T: u16 = 16;

/// Gives the target a termination request, then waits for it to close the connection, for a moment. It has broken the rules, so
/// whether it does is of no consequence.
pub(crate) async fn terminate(stream: &tokio_uring::net::TcpStream, request: Vec<u8>) {
    let goodbye = async {
        let (sent, _) = stream.write_all(request).await;
        let mut buf = vec![0; READ_BYTES];
        let mut open = sent.is_ok();
        while open {
            let (read, back) = stream.read(buf).await;
            buf = back;
            open = matches!(read, Ok(1..));
        }
    };
    let limit = Duration::from_millis(TERMINATION_WAIT_MS.into());
    // Nothing is done differently when it does not.
    let _ = timeout(limit, goodbye).await;
}

/// The termination request that a connection has to send, if any.
pub(crate) fn termination_request(conn: &mut HostConn) -> Option<Vec<u8>> {
    let mut header: TxHeader = [0; TX_HEADER_BYTES];
    let pdu = conn
        .is_terminating()
        .then(|| conn.poll_transmit(&mut header))??;
    Some(header[..pdu.header_bytes.into()].to_vec())
}

/// What a queue is connected with.
pub(crate) struct QueueSpec<'a> {
    pub target: &'a Target,
    pub host: &'a HostIdentity,
    pub qid: Qid,
    /// Entries of the submission queue.
    pub entries: u16,
    /// [`Cntlid::DYNAMIC`] on an admin queue, the controller's own on the others.
    pub cntlid: Cntlid,
    /// In-capsule data that the controller accepts on this queue.
    pub in_capsule_bytes: u32,
    /// Keep-alive time-out; 0 on I/O queues.
    pub kato_ms: u32,
}

impl QueueSpec<'_> {
    fn without_flow_control(&self) -> bool {
        self.target.options.disable_sqflow && !self.qid.is_admin()
    }
}

/// A connected queue.
pub(crate) struct Link {
    /// The socket, blocking.
    pub socket: TcpStream,
    /// The same socket for the control thread's ring.
    pub stream: tokio_uring::net::TcpStream,
    pub conn: HostConn,
    /// What came behind the Connect response.
    pub rest: Vec<u8>,
    pub cntlid: Cntlid,
}

impl Link {
    /// Connects the socket, exchanges ICReq and ICResp, and sends Connect. Each step is bounded by `connect_timeout`.
    pub async fn connect(spec: &QueueSpec<'_>) -> Result<Link, ConnectError> {
        let socket = open_socket(spec.target).await?;
        let unreachable = |source| ConnectError::Unreachable {
            address: spec.target.address.clone(),
            source,
        };
        let stream =
            tokio_uring::net::TcpStream::from_std(socket.try_clone().map_err(unreachable)?);
        let limit = spec.target.options.connect_timeout();
        let params = bounded(spec, "ICReq", limit, exchange_ic(spec, &stream)).await?;
        let limits = HostLimits {
            depth: spec.entries,
            in_capsule_bytes: spec.in_capsule_bytes,
            // A controller may decline, but then nothing changes: a command holds its entry until it completes, and
            // there are no more commands than entries, so its submission queue cannot overflow.
            flow_control: !spec.without_flow_control(),
            admin: spec.qid.is_admin(),
        };
        let conn = HostConn::new(params, limits);
        let mut link = Link {
            socket,
            stream,
            conn,
            rest: Vec::new(),
            cntlid: spec.cntlid,
        };
        bounded(spec, "Connect", limit, link.fabrics_connect(spec)).await?;
        Ok(link)
    }

    async fn fabrics_connect(&mut self, spec: &QueueSpec<'_>) -> Result<(), ConnectError> {
        let cattr = if spec.without_flow_control() {
            Cattr::DISABLE_SQ_FLOW_CONTROL
        } else {
            Cattr::empty()
        };
        let sqe = ConnectSqe::new(spec.qid, spec.entries, cattr, spec.kato_ms).into_sqe();
        let nqn = |text: &str| {
            text.parse::<Nqn>()
                .map_err(|error| ConnectError::Unusable(error.to_string()))
        };
        let data = ConnectData::new(
            HostId(*spec.host.hostid.as_bytes()),
            spec.cntlid,
            &nqn(&spec.target.subnqn)?,
            &nqn(&spec.host.hostnqn)?,
        );
        self.conn
            .submit(&sqe, Transfer::InCapsule(ConnectData::SIZE as u32))
            .map_err(|error| ConnectError::Unusable(error.to_string()))?;
        let mut bytes = Vec::with_capacity(2048);
        let mut header: TxHeader = [0; TX_HEADER_BYTES];
        while let Some(pdu) = self.conn.poll_transmit(&mut header) {
            push_pdu(&mut bytes, &header, &pdu, data.as_bytes());
        }
        let ended = |cause: String| ended(spec, "Connect", cause);
        let (sent, _) = self.stream.write_all(bytes).await;
        sent.map_err(|error| ended(error.to_string()))?;
        let mut buf = vec![0; READ_BYTES];
        loop {
            let (read, back) = self.stream.read(buf).await;
            buf = back;
            let read = read.map_err(|error| ended(error.to_string()))?;
            if read == 0 {
                return Err(ended("closed by the target".to_owned()));
            }
            let mut input = &buf[..read];
            loop {
                let (used, received) = match self.conn.receive(input) {
                    Ok(received) => received,
                    Err(violation) => {
                        if let Some(request) = termination_request(&mut self.conn) {
                            terminate(&self.stream, request).await;
                        }
                        return Err(violated(spec, violation));
                    }
                };
                input = &input[used..];
                match received {
                    HostReceived::NeedMore => break,
                    HostReceived::Complete { cqe, .. } => {
                        self.rest = input.to_vec();
                        return self.connected(spec, &cqe);
                    }
                    HostReceived::TermReq { fes, fei } => {
                        return Err(ended(format!(
                            "termination request: {fes}, information {fei:08x}h"
                        )));
                    }
                    HostReceived::Payload { .. } => {}
                }
            }
        }
    }

    fn connected(&mut self, spec: &QueueSpec<'_>, cqe: &Cqe) -> Result<(), ConnectError> {
        let status = cqe.status();
        if !status.is_success() {
            return Err(ConnectError::Refused {
                subnqn: spec.target.subnqn.clone(),
                hostnqn: spec.host.hostnqn.clone(),
                status,
                parameter: Some(InvalidParameter::from_result(cqe.result()))
                    .filter(|_| status.is(Status::CONNECT_INVALID_PARAMETERS)),
            });
        }
        let result = ConnectResult::from_result(cqe.result());
        if result.authentication_required || result.secure_channel_required {
            return Err(ConnectError::AuthenticationRequired(
                spec.target.subnqn.clone(),
            ));
        }
        self.cntlid = result.cntlid;
        Ok(())
    }
}

/// Appends a PDU to what is sent next.
pub(crate) fn push_pdu(bytes: &mut Vec<u8>, header: &TxHeader, pdu: &TxPdu, data: &[u8]) {
    bytes.extend_from_slice(&header[..pdu.header_bytes.into()]);
    let Some(payload) = pdu.payload else { return };
    let range = payload.offset as usize..(payload.offset + payload.len) as usize;
    let data = &data[range];
    bytes.extend_from_slice(data);
    if payload.digest {
        bytes.extend_from_slice(&Crc::of(data).to_wire());
    }
}

async fn exchange_ic(
    spec: &QueueSpec<'_>,
    stream: &tokio_uring::net::TcpStream,
) -> Result<TcpParams, ConnectError> {
    let options = &spec.target.options;
    let mut handshake = HostHandshake::new(HostRequest {
        header_digest: options.hdr_digest,
        data_digest: options.data_digest,
        // The Linux target refuses any other.
        hpda: Pda::DWORD,
        max_r2t: MAX_R2T,
    });
    let ended = |cause: String| ended(spec, "ICReq", cause);
    let (sent, _) = stream.write_all(handshake.request().to_vec()).await;
    sent.map_err(|error| ended(error.to_string()))?;
    loop {
        let (read, buf) = stream.read(Vec::with_capacity(IC_BYTES)).await;
        let read = read.map_err(|error| ended(error.to_string()))?;
        if read == 0 {
            return Err(ended("closed by the target".to_owned()));
        }
        // Behind ICResp nothing can come: the target speaks only when asked.
        match handshake.receive(&buf[..read]) {
            Ok((_, Some(params))) => return Ok(params),
            Ok((_, None)) => {}
            Err(violation) => {
                if let Some(request) = handshake.termination(&violation) {
                    terminate(stream, request).await;
                }
                return Err(violated(spec, violation));
            }
        }
    }
}

async fn open_socket(target: &Target) -> Result<TcpStream, ConnectError> {
    let (address, tos, limit) = (
        target.address.clone(),
        target.options.tos,
        target.options.connect_timeout(),
    );
    let connecting = tokio::task::spawn_blocking(move || -> io::Result<TcpStream> {
        let mut last = None;
        for to in address.resolve()? {
            let options = SocketOptions {
                device: address.host_iface.clone(),
                ..SocketOptions::default()
            };
            let source = address.host_traddr.map(|ip| SocketAddr::new(ip, 0));
            match nvmf_io::net::connect(to, source, &options, limit) {
                Ok(socket) => {
                    let socket = TcpStream::from(socket);
                    finish_socket(&socket, tos)?;
                    return Ok(socket);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
    });
    let result = match connecting.await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    };
    result.map_err(|source| ConnectError::Unreachable {
        address: target.address.clone(),
        source,
    })
}

fn finish_socket(socket: &TcpStream, tos: Option<u8>) -> io::Result<()> {
    // Close with a reset and nothing left in the send buffer: a command that is held to be sent again on the next
    // association must not reach the target through this one any more.
    sockopt::set_socket_linger(socket, Some(Duration::ZERO))?;
    if let Some(tos) = tos {
        match socket.peer_addr()?.ip() {
            IpAddr::V4(_) => sockopt::set_ip_tos(socket, tos)?,
            IpAddr::V6(_) => sockopt::set_ipv6_tclass(socket, tos.into())?,
        }
    }
    Ok(())
}

async fn bounded<T>(
    spec: &QueueSpec<'_>,
    to: &'static str,
    limit: Duration,
    step: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    timeout(limit, step).await.unwrap_or_else(|_| {
        Err(ConnectError::Timeout {
            address: spec.target.address.clone(),
            to,
            after_ms: spec.target.options.connect_timeout_ms,
        })
    })
}

fn ended(spec: &QueueSpec<'_>, during: &'static str, cause: String) -> ConnectError {
    ConnectError::Ended {
        address: spec.target.address.clone(),
        during,
        cause,
    }
}

fn violated(spec: &QueueSpec<'_>, violation: Violation) -> ConnectError {
    ConnectError::Violation {
        address: spec.target.address.clone(),
        violation,
    }
}
