//! Where the API is served: the unix socket, and TCP with mutual TLS. No connection waits for another; connections have a greatest
//! number, on either way by itself, so that nobody over the network keeps root out.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::sleep;

use super::connection::{self, Peer};
use super::open::Places;
use super::places::{Place, Room};
use super::{Methods, remote};
use crate::control::net;
use crate::control::target::Target;

/// Connections at one time: a client or two for each plugin and person.
pub const MAX_CONNECTIONS: usize = 128;
/// Pause after a failed accept: the causes (no descriptors, no memory) last for a while.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// The open API.
pub struct Server {
    accepting: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts to serve `methods` in the places that were taken.
    pub fn start(target: &Rc<Target>, methods: Methods, places: Places) -> io::Result<Self> {
        let methods = Rc::new(methods);
        let mut accepting = Vec::new();
        if let Some(bound) = places.socket {
            let listener = UnixListener::from_std(bound.listener.try_clone()?)?;
            tracing::info!("management API on {}", bound.path.display());
            let accept = accept(Rc::clone(target), Rc::clone(&methods), listener);
            accepting.push(spawn_local(async move {
                // The file goes when accepting ends.
                let _bound = bound;
                accept.await;
            }));
        }
        if let Some((tls, listener)) = places.tls {
            let listener = TcpListener::from_std(listener)?;
            tracing::info!("management API on tls://{}", listener.local_addr()?);
            target.api_tls.replace(Some(Rc::new(tls)));
            let accept = remote::accept(Rc::clone(target), methods, listener);
            accepting.push(spawn_local(accept));
        }
        Ok(Server { accepting })
    }

    /// Takes no more connections, and removes the socket.
    pub async fn stop(self) {
        for accepting in self.accepting {
            accepting.abort();
            // Cancelled, which was the intention.
            let _ = accepting.await;
        }
    }
}

/// What came of accepting; after a failure, once it makes sense to try again.
pub async fn accepted<T>(result: io::Result<T>) -> Option<T> {
    match result {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            tracing::error!("management API: cannot accept a connection: {error}");
            sleep(ERROR_PAUSE).await;
            None
        }
    }
}

async fn accept(target: Rc<Target>, methods: Rc<Methods>, listener: UnixListener) {
    let open = Room::new(MAX_CONNECTIONS);
    loop {
        let Some((stream, _)) = accepted(listener.accept().await).await else {
            continue;
        };
        let place = match admit(&stream, &open) {
            Ok(place) => place,
            Err(reason) => {
                tracing::warn!("management API: connection refused: {reason}");
                continue;
            }
        };
        let (target, methods) = (Rc::clone(&target), Rc::clone(&methods));
        net::spawn(async move {
            let _place = place;
            if let Err(error) = connection::serve(&target, &methods, stream, &Peer::Local).await {
                tracing::debug!("management API: a connection ended: {error}");
            }
        });
    }
}

/// A place for this client if it may talk to us: the socket's mode says so too, but modes can be changed and descriptors passed on.
fn admit(stream: &UnixStream, open: &Room) -> Result<Place, String> {
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
    open.take().ok_or_else(|| {
        format!("there are {MAX_CONNECTIONS} already, which is the most; close some")
    })
}
