//! The API's connections. Each is a stream of JSON values, answered in order; no connection waits for another.
//!
//! What a client can do to us is bounded: requests have a greatest length, connections a greatest number, half a message and an
//! answer that nobody takes a time. After something that is no JSON the connection ends, since nobody can say where the next request begins.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use nvmf_rpc::RpcError;
use nvmf_rpc::error::code;
use nvmf_rpc::stream::{StreamError, ValueStream};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, spawn_local, yield_now};
use tokio::time::{sleep, timeout};

use super::open::Places;
use super::{Methods, refusal};
use crate::control::net;
use crate::control::target::Target;

/// The longest request or batch. The longest that makes sense names a few hundred hosts.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;
/// Connections at one time: a client or two for each plugin and person.
pub const MAX_CONNECTIONS: usize = 128;
/// How long a message may stay unfinished, and an answer untaken. Clients send and take them at once.
const STALL: Duration = Duration::from_secs(30);
/// How much of what follows a message that was refused is read and thrown away, so that the client gets to read why. A client that sends more is
/// cut off.
const MAX_DISCARDED_BYTES: usize = 256 << 20;
/// How long that may take.
const DISCARD: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 16 << 10;
/// Pause after a failed accept: the causes (no descriptors, no memory) last for a while.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// The open API.
pub struct Server {
    accepting: JoinHandle<()>,
}

impl Server {
    /// Starts to serve `methods` in the places that were taken.
    pub fn start(target: &Rc<Target>, methods: Methods, places: Places) -> io::Result<Self> {
        let bound = places.bound;
        let listener = UnixListener::from_std(bound.listener.try_clone()?)?;
        tracing::info!("management API on {}", bound.path.display());
        let target = Rc::clone(target);
        let methods = Rc::new(methods);
        let accepting = spawn_local(async move {
            // The file goes when accepting ends.
            let _bound = bound;
            accept(target, methods, listener).await;
        });
        Ok(Server { accepting })
    }

    /// Takes no more connections, and removes the socket.
    pub async fn stop(self) {
        self.accepting.abort();
        // Cancelled, which was the intention.
        let _ = self.accepting.await;
    }
}

async fn accept(target: Rc<Target>, methods: Rc<Methods>, listener: UnixListener) {
    let open = Rc::new(Cell::new(0));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!("management API: cannot accept a connection: {error}");
                sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        if let Err(reason) = admit(&stream, open.get()) {
            tracing::warn!("management API: connection refused: {reason}");
            continue;
        }
        open.set(open.get() + 1);
        let counted = Counted(Rc::clone(&open));
        let (target, methods) = (Rc::clone(&target), Rc::clone(&methods));
        net::spawn(async move {
            let _counted = counted;
            if let Err(error) = serve(&target, &methods, stream).await {
                tracing::debug!("management API: a connection ended: {error}");
            }
        });
    }
}

/// One open connection, as long as it lives.
struct Counted(Rc<Cell<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Whether this client may talk to us: the socket's mode says so too, but modes can be changed and descriptors passed on.
fn admit(stream: &UnixStream, open: usize) -> Result<(), String> {
    let peer = stream
        .peer_cred()
        .map_err(|error| format!("nobody can say whose it is: {error}"))?
        .uid();
    let own = rustix::process::geteuid().as_raw();
    if peer != 0 && peer != own {
        return Err(format!(
            "it comes from user {peer}; only root and user {own}, as whom the target runs, may use the API"
        ));
    }
    if open >= MAX_CONNECTIONS {
        return Err(format!(
            "there are {open} already, which is the most; close some"
        ));
    }
    Ok(())
}

/// Serves one connection to its end.
async fn serve(target: &Rc<Target>, methods: &Methods, mut stream: UnixStream) -> io::Result<()> {
    let mut values = ValueStream::new(MAX_REQUEST_BYTES);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        loop {
            match values.next_value() {
                Ok(Some(value)) => {
                    if let Some(answer) = methods.answer(target, value).await {
                        send(&mut stream, &answer).await?;
                    }
                    // Requests that come without a pause must not keep the thread from everything else.
                    yield_now().await;
                }
                Ok(None) => break,
                Err(error) => return refuse(stream, error).await,
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

async fn send(stream: &mut UnixStream, answer: &Value) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(answer)?;
    bytes.push(b'\n');
    timeout(STALL, stream.write_all(&bytes)).await?
}

/// Says why the connection ends. What the client still sends is thrown away meanwhile: a socket that is closed with unread bytes
/// takes the answer with it.
async fn refuse(mut stream: UnixStream, why: StreamError) -> io::Result<()> {
    let code = match why {
        StreamError::TooLong { .. } => code::INVALID_REQUEST,
        StreamError::NoValue(_) | StreamError::NoJson { .. } => code::PARSE_ERROR,
    };
    let answer = refusal(Value::Null, RpcError::new(code, why.to_string()));
    send(&mut stream, &answer).await?;
    stream.shutdown().await?;
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
