//! One connection to the API, whatever carries it: a stream of JSON values, answered in order.
//!
//! What a client can do to us is bounded: requests have a greatest length, half a message and an answer that nobody takes a
//! time. After something that is no JSON the connection ends, since nobody can say where the next request begins.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use nvmf_rpc::RpcError;
use nvmf_rpc::error::code;
use nvmf_rpc::stream::{StreamError, ValueStream};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::yield_now;
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::{Methods, Rights, refusal};
use crate::control::target::Target;

/// The longest request or batch. The longest that makes sense names a few hundred hosts.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;
/// How long a message may stay unfinished, and an answer untaken. Clients send and take them at once.
const STALL: Duration = Duration::from_secs(30);
/// How much of what follows a message that was refused is read and thrown away, so that the client gets to read why. A client that sends more is
/// cut off.
const MAX_DISCARDED_BYTES: usize = 256 << 20;
/// How long that may take.
const DISCARD: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 16 << 10;

/// What carries a connection.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// Who is at the other end.
pub enum Peer {
    /// Root or the target's own user, over the unix socket.
    Local,
    /// Whoever has the key of this certificate, which was verified.
    Remote(CertificateDer<'static>),
}

impl Peer {
    /// What the client may do as things are now.
    pub fn rights(&self, target: &Target) -> Result<Rights, RpcError> {
        match self {
            Peer::Local => Ok(Rights::All),
            Peer::Remote(certificate) => match &*target.api_tls.borrow() {
                Some(tls) => tls.rights(certificate),
                None => Err(RpcError::new(
                    code::ACCESS,
                    "the API is served over TCP no more",
                )),
            },
        }
    }
}

/// Serves one connection to its end.
pub async fn serve(
    target: &Rc<Target>,
    methods: &Methods,
    mut stream: impl Stream,
    peer: &Peer,
) -> io::Result<()> {
    let mut values = ValueStream::new(MAX_REQUEST_BYTES);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        loop {
            match values.next_value() {
                Ok(Some(value)) => {
                    // Asked each time: a reload may have taken them away.
                    let rights = match peer.rights(target) {
                        Ok(rights) => rights,
                        Err(error) => return refuse(stream, error).await,
                    };
                    if let Some(answer) = methods.answer(target, rights, value).await {
                        send(&mut stream, &answer).await?;
                    }
                    // Requests that come without a pause must not keep the thread from everything else.
                    yield_now().await;
                }
                Ok(None) => break,
                Err(error) => return refuse(stream, unreadable(&error)).await,
            }
        }
        let reading = stream.read(&mut buffer);
        let count = if values.is_inside() {
            timeout(STALL, reading).await??
        } else {
            reading.await?
        };
        if count == 0 {
            return Ok(());
        }
        values.push(&buffer[..count]);
    }
}

async fn send(stream: &mut impl Stream, answer: &Value) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(answer)?;
    bytes.push(b'\n');
    timeout(STALL, async {
        stream.write_all(&bytes).await?;
        // What TLS holds back goes out too.
        stream.flush().await
    })
    .await?
}

fn unreadable(why: &StreamError) -> RpcError {
    let code = match why {
        StreamError::TooLong { .. } => code::INVALID_REQUEST,
        StreamError::NoValue(_) | StreamError::NoJson { .. } => code::PARSE_ERROR,
    };
    RpcError::new(code, why.to_string())
}

/// Says why the connection ends. What the client still sends is thrown away meanwhile: a socket that is closed with unread bytes
/// takes the answer with it.
pub async fn refuse(mut stream: impl Stream, why: RpcError) -> io::Result<()> {
    let answer = refusal(Value::Null, why);
    send(&mut stream, &answer).await?;
    // TLS says that it ends, for which a client that reads nothing may leave no room.
    timeout(STALL, stream.shutdown()).await??;
    let mut buffer = vec![0; READ_BYTES];
    let mut left = MAX_DISCARDED_BYTES;
    timeout(DISCARD, async {
        while left > 0 {
            match stream.read(&mut buffer).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        Ok(())
    })
    .await?
}
