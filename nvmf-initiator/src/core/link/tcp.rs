//! A queue's connection over TCP.

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use nvme_proto::digest::Crc;
use nvme_proto::queue::Transfer;
use nvme_proto::tcp::handshake::{HostHandshake, HostRequest, IC_BYTES};
use nvme_proto::tcp::host::{HostConn, HostLimits, HostReceived};
use nvme_proto::tcp::{Pda, TX_HEADER_BYTES, TcpParams, TxHeader, TxPdu};
use nvme_proto::wire::fabrics::ConnectData;
use nvme_proto::wire::{Cntlid, Cqe};
use nvmf_io::net::SocketOptions;
use rustix::net::sockopt;
use tokio::time::timeout;
use zerocopy::IntoBytes;

use super::super::error::ConnectError;
use super::super::message::NewWire;
use super::super::queue::TERMINATION_WAIT_MS;
use super::{QueueSpec, bounded, ended, violated};
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

/// A connection that ends when this is dropped, unless it was [`Connected::keep`]ed. To drop the socket is not enough: a receive that was
/// given up, as one that took too long is, has it open for as long as the target leaves it so.
pub(crate) struct Connected(Option<TcpStream>);

impl Connected {
    /// The socket, blocking, for whoever serves it from here on.
    pub fn keep(mut self) -> TcpStream {
        self.0.take().expect("taken only here")
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            // An error means that the connection is down already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// See the module's text.
pub(crate) struct TcpLink {
    pub socket: Connected,
    /// The same socket for the control thread's ring.
    pub stream: tokio_uring::net::TcpStream,
    pub conn: HostConn,
    /// What came behind the Connect response.
    pub rest: Vec<u8>,
}

impl TcpLink {
    /// Connects the socket, exchanges ICReq and ICResp, and sends Connect.
    pub(super) async fn connect(spec: &QueueSpec<'_>) -> Result<(Self, Cntlid), ConnectError> {
        let socket = open_socket(spec.target).await?;
        let unreachable = |source| ConnectError::Unreachable {
            address: spec.target.address.clone(),
            source,
        };
        let stream =
            tokio_uring::net::TcpStream::from_std(socket.try_clone().map_err(unreachable)?);
        let socket = Connected(Some(socket));
        let params = bounded(spec, "ICReq", exchange_ic(spec, &stream)).await?;
        let limits = HostLimits {
            depth: spec.entries,
            in_capsule_bytes: spec.in_capsule_bytes,
            // A controller may decline, but then nothing changes: a command holds its entry until it completes, and
            // there are no more commands than entries, so its submission queue cannot overflow.
            flow_control: !spec.without_flow_control(),
            admin: spec.qid.is_admin(),
        };
        let mut link = TcpLink {
            socket,
            stream,
            conn: HostConn::new(params, limits),
            rest: Vec::new(),
        };
        let answer = bounded(spec, "Connect", link.fabrics_connect(spec)).await?;
        let cntlid = spec.connected(&answer)?;
        Ok((link, cntlid))
    }

    pub(super) fn into_wire(self) -> NewWire {
        NewWire::Tcp {
            socket: self.socket.keep(),
            conn: self.conn,
            bytes: self.rest,
        }
    }

    async fn fabrics_connect(&mut self, spec: &QueueSpec<'_>) -> Result<Cqe, ConnectError> {
        let (sqe, data) = spec.connect_command(spec.entries)?;
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
                        return Ok(cqe);
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
