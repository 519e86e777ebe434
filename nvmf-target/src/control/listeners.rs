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
use super::ports::covers;
use super::rdma::{Rdma, RdmaListener, Waiting};
use super::target::Target;
use crate::config::{Address, Carrier};

/// A listener that is bound, or will be once its RDMA device is there.
pub enum Bound {
    /// NVMe/TCP.
    Tcp(Listener),
    /// NVMe/RDMA.
    Rdma(RdmaListener),
}

impl Bound {
    fn address(&self) -> (Carrier, SocketAddr) {
        match self {
            Bound::Tcp(listener) => (Carrier::Tcp, listener.address),
            Bound::Rdma(listener) => (Carrier::Rdma, listener.address),
        }
    }

    fn waiting(&self) -> Waiting {
        match self {
            Bound::Tcp(_) => Waiting::default(),
            Bound::Rdma(listener) => Rc::clone(&listener.waiting),
        }
    }
}

/// All listeners.
#[derive(Default)]
pub struct Listeners {
    open: RefCell<Vec<Open>>,
    last_id: Cell<u16>,
}

struct Open {
    configured: Address,
    port: Port,
    waiting: Waiting,
    task: JoinHandle<()>,
}

impl Open {
    /// Ends when the socket is closed.
    async fn close(self) {
        self.task.abort();
        // Cancelled, which was the intention.
        let _ = self.task.await;
        let Port {
            carrier, address, ..
        } = self.port;
        tracing::info!("not listening on {carrier}://{address} any more");
    }
}

impl Listeners {
    /// Starts to accept.
    pub fn start(&self, target: &Rc<Target>, configured: Address, bound: Bound, declared: bool) {
        self.last_id.set(self.last_id.get().wrapping_add(1));
        let (carrier, address) = bound.address();
        let port = Port {
            id: self.last_id.get(),
            carrier,
            address,
            declared,
        };
        let waiting = bound.waiting();
        match &*waiting.borrow() {
            None => tracing::info!("listening on {carrier}://{address}"),
            Some(why) => tracing::error!("{why}; tried again each second"),
        }
        let target = Rc::clone(target);
        let task = spawn_local(async move {
            match bound {
                Bound::Tcp(listener) => {
                    accept_loop(&listener, |stream| admit(&target, stream)).await;
                }
                Bound::Rdma(listener) => listener.serve(&target).await,
            }
        });
        self.open.borrow_mut().push(Open {
            configured,
            port,
            waiting,
            task,
        });
    }

    /// Whether somebody listens on the address, or on a wildcard that covers it.
    pub fn covers(&self, address: Address) -> bool {
        let open = self.open.borrow();
        open.iter().any(|open| covers(open.port.at(), address))
    }

    /// Whether there is a listener on this very address that the configuration does not have.
    pub fn has_undeclared(&self, address: Address) -> bool {
        let open = self.open.borrow();
        open.iter()
            .any(|open| open.configured == address && !open.port.declared)
    }

    /// Takes the undeclared listener on this very address over into the configuration, if there is one.
    pub fn declare(&self, address: Address) {
        for open in self.open.borrow_mut().iter_mut() {
            open.port.declared |= open.configured == address;
        }
    }

    /// Listens on what subsystems name and nobody listens on, and stops where nobody asks for it any more. Failures are logged; an RDMA
    /// device that is not there is waited for.
    pub async fn settle(&self, target: &Rc<Target>) {
        let mut named = Vec::new();
        for served in target.subsystems() {
            named.extend(served.ports.borrow().named());
        }
        let unwanted: Vec<Open> = {
            let mut open = self.open.borrow_mut();
            let unwanted =
                |open: &mut Open| !open.port.declared && !named.contains(&open.configured);
            open.extract_if(.., unwanted).collect()
        };
        for open in unwanted {
            open.close().await;
        }
        for address in named {
            if self.covers(address) {
                continue;
            }
            match bind_one(&target.rdma, address) {
                Ok(bound) => self.start(target, address, bound, false),
                Err(error) if address.carrier == Carrier::Rdma => {
                    let later = RdmaListener::later(address.socket, error.to_string());
                    self.start(target, address, Bound::Rdma(later), false);
                }
                Err(error) => tracing::error!("{error}"),
            }
        }
    }

    /// Stops to accept where `configured` says; connections that were accepted stay. Whether anybody listened there.
    pub async fn stop(&self, configured: Address) -> bool {
        let closed = {
            let mut open = self.open.borrow_mut();
            let index = open
                .iter()
                .position(|open| open.configured == configured && open.port.declared);
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

    /// Why nobody can connect at a port: its RDMA device is not there.
    pub fn waits_for(&self, id: u16) -> Option<String> {
        let open = self.open.borrow();
        let port = open.iter().find(|open| open.port.id == id)?;
        port.waiting.borrow().clone()
    }

    /// Where hosts can connect, or could if the devices were there.
    pub fn ports(&self) -> Vec<Port> {
        self.open.borrow().iter().map(|open| open.port).collect()
    }

    /// The addresses of the configuration's listeners.
    pub fn addresses(&self) -> Vec<Address> {
        let ports = self.ports().into_iter();
        let declared = ports.filter(|port| port.declared);
        declared.map(|port| port.at()).collect()
    }
}

/// Binds listeners; none stays if one cannot be had.
pub fn bind(rdma: &Rdma, addresses: &[Address]) -> io::Result<Vec<(Address, Bound)>> {
    let bound = |address: &Address| Ok((*address, bind_one(rdma, *address)?));
    addresses.iter().map(bound).collect()
}

/// Binds a listener.
pub fn bind_one(rdma: &Rdma, address: Address) -> io::Result<Bound> {
    Ok(match address.carrier {
        Carrier::Tcp => Bound::Tcp(Listener::bind(address.socket)?),
        Carrier::Rdma => Bound::Rdma(rdma.bind(address.socket)?),
    })
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
