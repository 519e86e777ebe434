//! Clients that come over TCP: each shows a certificate before anything that it says is looked at.
//!
//! Who has not shown one yet shares a bounded number of places with others like it, for a bounded time and with TLS's bounded
//! buffers; it cannot take a place from a client that has, nor from one of the unix socket.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nvmf_io::net::SocketOptions;
use nvmf_rpc::RpcError;
use nvmf_rpc::error::code;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::server::TlsStream;

use super::connection::{self, Peer};
use super::places::{Place, Room};
use super::tls::fingerprint;
use super::{Methods, server};
use crate::control::net;
use crate::control::target::Target;

/// Connections without a certificate at one time. A handshake takes milliseconds, so that this many wait only where somebody stalls.
pub const MAX_HANDSHAKES: usize = 32;
/// How long a handshake may take, and the farewell after one that failed.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How much a client may still send after a handshake that failed, while it is told why.
const MAX_DISCARDED_BYTES: usize = 64 << 10;
/// After this time of silence TCP asks whether the client's machine is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Takes connections for as long as it is polled.
pub async fn accept(target: Rc<Target>, methods: Rc<Methods>, listener: TcpListener) {
    let (handshakes, open) = (
        Room::new(MAX_HANDSHAKES),
        Room::new(server::MAX_CONNECTIONS),
    );
    loop {
        let Some((socket, peer)) = server::accepted(listener.accept().await).await else {
            continue;
        };
        let Some(place) = handshakes.take() else {
            tracing::warn!(%peer, "management API: connection refused: {MAX_HANDSHAKES} others have not shown a certificate yet");
            continue;
        };
        let (target, methods, open) = (Rc::clone(&target), Rc::clone(&methods), open.clone());
        net::spawn(async move {
            if let Err(error) = serve(&target, &methods, socket, peer, place, open).await {
                tracing::debug!(%peer, "management API: a connection ended: {error}");
            }
        });
    }
}

async fn serve(
    target: &Rc<Target>,
    methods: &Methods,
    socket: TcpStream,
    address: SocketAddr,
    handshaking: Place,
    open: Room,
) -> io::Result<()> {
    let Some(tls) = target.api_tls.borrow().clone() else {
        return Ok(());
    };
    let options = SocketOptions {
        keepalive: Some(KEEPALIVE),
        ..SocketOptions::default()
    };
    nvmf_io::net::configure(&socket, &options)?;
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
    let shaken = timeout(HANDSHAKE, handshake(acceptor, socket)).await;
    let (stream, certificate) = match shaken.map_err(io::Error::from).flatten() {
        Ok(done) => done,
        Err(error) => {
            tracing::warn!(peer = %address, "management API: connection refused: {error}");
            return Ok(());
        }
    };
    let client = fingerprint(&certificate);
    let peer = Peer::Remote(certificate);
    if let Err(error) = peer.rights(target) {
        tracing::warn!(peer = %address, %client, "management API: connection refused: {error}");
        return connection::refuse(stream, error).await;
    }
    let Some(_place) = open.take() else {
        let message = format!(
            "there are {} connections already, which is the most; close some",
            server::MAX_CONNECTIONS
        );
        tracing::warn!(peer = %address, %client, "management API: connection refused: {message}");
        return connection::refuse(stream, RpcError::new(code::BUSY, message)).await;
    };
    drop(handshaking);
    tracing::debug!(peer = %address, %client, "management API: connected");
    connection::serve(target, methods, stream, &peer).await
}

/// A connection with a client that has shown a certificate, and that.
async fn handshake(
    acceptor: TlsAcceptor,
    socket: TcpStream,
) -> io::Result<(TlsStream<TcpStream>, CertificateDer<'static>)> {
    match acceptor.accept(socket).into_fallible().await {
        Ok(stream) => {
            let certificates = stream.get_ref().1.peer_certificates();
            let own = certificates.and_then(|chain| chain.first()).cloned();
            let own = own.ok_or_else(|| io::Error::other("it showed no certificate"))?;
            Ok((stream, own))
        }
        Err((error, mut socket)) => {
            // A socket that is closed with unread bytes takes the alert with it. Failures here are the client's.
            let _ = farewell(&mut socket).await;
            Err(error)
        }
    }
}

async fn farewell(socket: &mut TcpStream) -> io::Result<()> {
    socket.shutdown().await?;
    let mut buffer = [0; 4096];
    let mut left = MAX_DISCARDED_BYTES;
    while left > 0 {
        match socket.read(&mut buffer).await? {
            0 => break,
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}
