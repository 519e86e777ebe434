//! The listeners: opening and closing them while everything else goes on.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::task::{JoinHandle, spawn_local};

use super::accept::accept_loop;
use super::discovery::Port;
use super::handshake;
use super::net::{self, Listener, Stream};
use super::target::Target;
use crate::config::TcpAddress;

/// All listeners.
#[derive(Default)]
pub struct Listeners {
    open: RefCell<Vec<Open>>,
    last_id: Cell<u16>,
}

struct Open {
    configured: TcpAddress,
    port: Port,
    task: JoinHandle<()>,
}

impl Open {
    /// Ends when the socket is closed.
    async fn close(self) {
        self.task.abort();
        // Cancelled, which was the intention.
        let _ = self.task.await;
        tracing::info!("not listening on tcp://{} any more", self.port.address);
    }
}

impl Listeners {
    /// Starts to accept on a bound socket.
    pub fn start(&self, target: &Rc<Target>, configured: TcpAddress, listener: Listener) {
        self.last_id.set(self.last_id.get().wrapping_add(1));
        let port = Port {
            id: self.last_id.get(),
            address: listener.address,
        };
        tracing::info!("listening on tcp://{}", port.address);
        let target = Rc::clone(target);
        let task = spawn_local(async move {
            accept_loop(&listener, |stream| admit(&target, stream)).await;
        });
        self.open.borrow_mut().push(Open {
            configured,
            port,
            task,
        });
    }

    /// Stops to accept where `configured` says; connections that were accepted stay. Whether anybody listened there.
    pub async fn stop(&self, configured: TcpAddress) -> bool {
        let closed = {
            let mut open = self.open.borrow_mut();
            let index = open.iter().position(|open| open.configured == configured);
            index.map(|index| open.remove(index))
        };
        match closed {
            Some(open) => {
                open.close().await;
                true
            }
            None => false,
        }
    }

    /// Stops to accept everywhere.
    pub async fn stop_all(&self) {
        let all = self.open.take();
        for open in all {
            open.close().await;
        }
    }

    /// Where hosts can connect.
    pub fn ports(&self) -> Vec<Port> {
        self.open.borrow().iter().map(|open| open.port).collect()
    }

    /// The addresses that hosts can connect to.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.ports().iter().map(|port| port.address).collect()
    }
}

/// Binds listeners; none stays if one cannot be had.
pub fn bind(addresses: &[TcpAddress]) -> io::Result<Vec<(TcpAddress, Listener)>> {
    let bound = |address: &TcpAddress| Ok((*address, Listener::bind(address.0)?));
    addresses.iter().map(bound).collect()
}

/// Starts to serve an accepted connection, or says why not.
fn admit(target: &Rc<Target>, stream: Stream) -> Result<(), String> {
    let limit = target.config.borrow().limits.connections;
    let Some(counted) = target.connections.admit(limit) else {
        return Err(format!(
            "there are {limit} connections already; limits.connections allows no more"
        ));
    };
    net::spawn(handshake::serve(Rc::clone(target), stream, counted));
    Ok(())
}
