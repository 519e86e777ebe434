//! The queue half: the connections of a device, and the socket where new ones arrive.
//!
//! **Fence.** What a client asked for may still be on its way when its connection ends, and a client that connects anew, or
//! has another connection, may send the same write again, and then others to the same place. So while requests of an ended
//! connection are open, no connection starts a new one: a late write is never later than its successors.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nvmf_io::{Completion, Errno, Interest};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::SocketFlags;

use super::connection::{self, Connection, Context, Reply};
use super::replies::Limits;
use super::{Export, MAX_TRANSFER_BYTES};
use crate::block::commands::Commands;
use crate::block::{BlockDone, BlockLimits, FrontEnd, FrontEndIo, TokenSpace};

/// Connections that one device serves at once; more wait to be accepted.
pub(super) const MAX_CLIENTS: usize = 12;

/// Memory that the requests of one client may take: enough for the largest, and of all clients together less than the
/// 64 MiB that a device has.
const CLIENT_MEMORY_BYTES: u32 = MAX_TRANSFER_BYTES;

/// And those of the kernel's driver, which has all of it to itself.
const DRIVER_MEMORY_BYTES: u32 = 48 << 20;

/// Requests of one connection that are open at once: two segments each and some more, and the kernel takes 1024 in one send.
const MAX_DEPTH: u16 = 256;

/// Token of the listening socket; connections have theirs below.
const LISTENER: u32 = u32::MAX;

/// Who is connected: the processes of clients that have finished their negotiation, 0 for none. Shared with the device
/// half, and written only when a connection begins or ends.
pub(super) type Clients = [AtomicU32; MAX_CLIENTS];

/// Stands for a process of another container, which has no number here.
pub(super) const ELSEWHERE: u32 = u32::MAX;

/// Where connections come from.
pub(super) enum Source {
    /// Clients connect to this socket, which does not block.
    Listener {
        fd: Arc<OwnedFd>,
        clients: Arc<Clients>,
    },
    /// The other end is the kernel's driver, which begins with requests. The device ends with the connection.
    Driver(OwnedFd),
}

/// See the [module](self).
pub(super) struct NbdFrontEnd {
    export: Arc<Export>,
    commands: Commands<Reply>,
    depth: u16,
    /// Until it is started.
    source: Option<Source>,
    tokens: TokenSpace,
    listener: Option<Listener>,
    /// A slot for each connection that there can be.
    connections: Vec<Option<Connection>>,
    ended: bool,
}

struct Listener {
    fd: Arc<OwnedFd>,
    clients: Arc<Clients>,
    /// The ring watches it.
    watched: bool,
    /// Somebody may be waiting to be accepted.
    pending: bool,
    /// Accepting failed, and that was said.
    failing: bool,
    /// When each connection was accepted, for the order.
    accepted: [u64; MAX_CLIENTS],
    next: u64,
}

impl NbdFrontEnd {
    pub fn new(source: Source, export: Arc<Export>, limits: BlockLimits, depth: u16) -> Self {
        let slots = match source {
            Source::Listener { .. } => MAX_CLIENTS,
            Source::Driver(_) => 1,
        };
        let depth = depth.clamp(1, MAX_DEPTH);
        NbdFrontEnd {
            export,
            commands: Commands::new(limits, depth.into()),
            depth,
            source: Some(source),
            tokens: TokenSpace::new(0),
            listener: None,
            connections: (0..slots).map(|_| None).collect(),
            ended: false,
        }
    }

    /// Calls a connection.
    fn with_connection(
        &mut self,
        index: usize,
        io: &mut FrontEndIo<'_>,
        call: impl FnOnce(&mut Connection, &mut Context<'_, '_>),
    ) {
        let fenced = self
            .connections
            .iter()
            .flatten()
            .any(Connection::has_orphans);
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let was_serving = connection.is_serving();
        let context = &mut Context {
            export: &self.export,
            commands: &mut self.commands,
            fenced,
            io,
        };
        call(connection, context);
        if connection.is_serving()
            && !was_serving
            && let Some(listener) = &self.listener
        {
            let socket = context.io.ring.socket_fd(connection.socket());
            let pid = socket.and_then(nvmf_io::net::peer_pid);
            let pid = pid.ok().flatten().unwrap_or(ELSEWHERE);
            listener.clients[index].store(pid, Ordering::Release);
            tracing::info!(device = %self.export.geometry.name, pid, "an NBD client is connected");
        }
    }

    fn accept(&mut self, io: &mut FrontEndIo<'_>) {
        let Some(listener) = self.listener.as_mut().filter(|listener| listener.pending) else {
            return;
        };
        loop {
            let Some(index) = self.connections.iter().position(Option::is_none) else {
                listener.pending = somebody_waits(&listener.fd);
                if listener.pending {
                    let accepted = listener.accepted;
                    self.make_room(&accepted, io);
                }
                return;
            };
            match rustix::net::accept_with(&listener.fd, SocketFlags::CLOEXEC) {
                Ok(fd) => {
                    let limits = Limits {
                        depth: self.depth,
                        max_memory_bytes: CLIENT_MEMORY_BYTES,
                    };
                    let (fd, tokens) = (Arc::new(fd), self.tokens);
                    let connection = Connection::new(index, fd, false, &limits, tokens, io.ring);
                    self.connections[index] = Some(connection);
                    listener.accepted[index] = listener.next;
                    listener.next += 1;
                    listener.failing = false;
                }
                Err(Errno::AGAIN) => {
                    listener.pending = false;
                    return;
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => {
                    if !listener.failing {
                        tracing::warn!(device = %self.export.geometry.name, %errno, "cannot accept NBD clients");
                    }
                    listener.failing = true;
                    return;
                }
            }
        }
    }

    /// The client that has been thinking longest about what it wants makes room; one at a time.
    fn make_room(&mut self, accepted: &[u64; MAX_CLIENTS], io: &mut FrontEndIo<'_>) {
        let mut connections: Vec<_> = self.connections.iter_mut().zip(accepted).collect();
        if connections
            .iter()
            .any(|(slot, _)| slot.as_ref().is_some_and(Connection::is_broken))
        {
            return;
        }
        connections.retain(|(slot, _)| slot.as_ref().is_some_and(Connection::is_negotiating));
        if let Some((Some(connection), _)) = connections.into_iter().min_by_key(|(_, at)| **at) {
            connection.break_off(io.ring);
        }
    }

    /// Forgets connections of which nothing is open.
    fn bury(&mut self, io: &mut FrontEndIo<'_>) {
        for index in 0..self.connections.len() {
            if let Some(connection) = self.connections[index].take_if(|c| c.is_over()) {
                // The client shall see the end even if it has passed its socket on.
                let _ = io.ring.shutdown(connection.socket());
                io.ring.remove_socket(connection.socket());
                match &self.listener {
                    Some(listener) => listener.clients[index].store(0, Ordering::Release),
                    None => self.ended = true,
                }
            }
        }
    }

    fn watch(&mut self, io: &mut FrontEndIo<'_>) {
        if let Some(listener) = &mut self.listener
            && !listener.watched
            && !self.ended
        {
            listener.watched = true;
            let token = self.tokens.token(LISTENER);
            io.ring
                .poll_multishot(&listener.fd, Interest::Readable, token);
        }
    }
}

/// Whether a client waits to be accepted.
fn somebody_waits(listener: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

impl FrontEnd for NbdFrontEnd {
    fn start(&mut self, tokens: TokenSpace, io: &mut FrontEndIo<'_>) -> io::Result<()> {
        self.tokens = tokens;
        match self.source.take() {
            Some(Source::Listener { fd, clients }) => {
                self.listener = Some(Listener {
                    fd,
                    clients,
                    watched: false,
                    // Clients may have come before.
                    pending: true,
                    failing: false,
                    accepted: [0; MAX_CLIENTS],
                    next: 0,
                });
            }
            Some(Source::Driver(fd)) => {
                let limits = Limits {
                    depth: self.depth,
                    max_memory_bytes: DRIVER_MEMORY_BYTES,
                };
                let connection = Connection::new(0, Arc::new(fd), true, &limits, tokens, io.ring);
                self.connections[0] = Some(connection);
            }
            None => {}
        }
        Ok(())
    }

    fn on_completion(&mut self, completion: Completion, io: &mut FrontEndIo<'_>) {
        let local = TokenSpace::local_of(completion.token);
        if local != LISTENER {
            let index = connection::index_of(local);
            return self.with_connection(index, io, |connection, context| {
                connection.on_completion(completion, context);
            });
        }
        if let Some(listener) = &mut self.listener {
            listener.watched = completion.more;
            listener.pending = true;
        }
    }

    fn on_done(&mut self, done: BlockDone, io: &mut FrontEndIo<'_>) {
        if let Some(finished) = self.commands.done(done, io.requests) {
            let index = finished.reply.connection as usize;
            self.with_connection(index, io, |connection, context| {
                connection.finish(&finished, context);
            });
        }
    }

    fn end_turn(&mut self, io: &mut FrontEndIo<'_>) {
        self.bury(io);
        if !self.ended {
            self.watch(io);
            self.accept(io);
        }
        for index in 0..self.connections.len() {
            self.with_connection(index, io, Connection::end_turn);
        }
    }

    fn stop(&mut self, io: &mut FrontEndIo<'_>) {
        self.ended = true;
        if self
            .listener
            .as_ref()
            .is_some_and(|listener| listener.watched)
        {
            io.ring.cancel(self.tokens.token(LISTENER));
        }
        for connection in self.connections.iter_mut().flatten() {
            connection.break_off(io.ring);
        }
    }

    fn is_finished(&self) -> bool {
        self.ended
            && self.connections.iter().all(Option::is_none)
            && !self
                .listener
                .as_ref()
                .is_some_and(|listener| listener.watched)
    }
}

#[cfg(test)]
mod tests;
