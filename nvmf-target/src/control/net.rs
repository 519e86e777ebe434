//! Sockets of the control thread: the one file that knows tokio-uring.
//!
//! A [`Stream`] holds its socket twice, as the ring's stream and as a standard one, because the ring's cannot be turned back into
//! a descriptor that could go to a shard. Reads own their buffer until the kernel is done with it; a read that is
//! abandoned would eat bytes of the stream, so nothing here drops one before it has ended: to stop a read, the socket is shut down.

use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;

use tokio::net::TcpListener;
use tokio::time::{Instant, timeout_at};

/// Entries of the control thread's submission queue: more operations than this in one turn of the loop only cost another
/// system call.
const RING_ENTRIES: u32 = 256;

/// The runtime of the control thread.
pub fn runtime() -> io::Result<tokio_uring::Runtime> {
    tokio_uring::Runtime::new(tokio_uring::builder().entries(RING_ENTRIES))
}

/// Runs `task` on the control thread beside everything else.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    drop(tokio_uring::spawn(task));
}

/// A listening socket. Accepting waits for readiness instead of posting an accept to the ring, so that it can be given up at any
/// time without losing a connection.
pub struct Listener {
    socket: TcpListener,
    /// The address it really has.
    pub address: SocketAddr,
}

impl Listener {
    /// Listens on `address`; port 0 takes a free one.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = nvmf_io::net::listen(address)?;
        let address = socket.local_addr()?;
        socket.set_nonblocking(true)?;
        Ok(Listener {
            socket: TcpListener::from_std(socket)?,
            address,
        })
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (socket, peer) = self.socket.accept().await?;
        let socket = socket.into_std()?;
        // The ring waits by itself; a non-blocking socket would make it fail instead.
        socket.set_nonblocking(false)?;
        Ok((socket, peer))
    }
}

/// A connection. Clones are the same connection.
#[derive(Clone)]
pub struct Stream(Rc<Inner>);

struct Inner {
    ring: tokio_uring::net::TcpStream,
    socket: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
}

impl Stream {
    /// Takes over an accepted socket.
    pub fn new(socket: TcpStream, peer: SocketAddr) -> io::Result<Self> {
        let local = socket.local_addr()?;
        let ring = tokio_uring::net::TcpStream::from_std(socket.try_clone()?);
        Ok(Stream(Rc::new(Inner {
            ring,
            socket,
            peer,
            local,
        })))
    }

    /// The host's address.
    pub fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    /// The address that the host connected to.
    pub fn local(&self) -> SocketAddr {
        self.0.local
    }

    /// Receives into the spare capacity of `buffer`, which must be empty; 0 bytes mean that the host has closed. Must be awaited to its end.
    pub async fn read(&self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        self.0.ring.read(buffer).await
    }

    /// Like [`Stream::read`]; at the deadline the connection is shut down, and the read fails.
    pub async fn read_until(
        &self,
        buffer: Vec<u8>,
        deadline: Instant,
    ) -> (io::Result<usize>, Vec<u8>) {
        let mut read = pin!(self.read(buffer));
        if let Ok(done) = timeout_at(deadline, &mut read).await {
            return done;
        }
        self.shutdown();
        let (_, buffer) = read.await;
        (Err(io::ErrorKind::TimedOut.into()), buffer)
    }

    /// Sends all of `bytes`. Must be awaited to its end.
    pub async fn write_all(&self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        self.0.ring.write_all(bytes).await
    }

    /// Like [`Stream::write_all`]; at the deadline the connection is shut down, and the write fails.
    pub async fn write_until(&self, bytes: Vec<u8>, deadline: Instant) -> io::Result<()> {
        let mut write = pin!(self.write_all(bytes));
        if let Ok((result, _)) = timeout_at(deadline, &mut write).await {
            return result;
        }
        self.shutdown();
        write.await.0
    }

    /// Ends the connection; reads in progress end.
    pub fn shutdown(&self) {
        // It fails only when the host was faster.
        let _ = self.0.socket.shutdown(Shutdown::Both);
    }

    /// Says that nothing more will be sent, and goes on receiving.
    pub fn shutdown_write(&self) {
        let _ = self.0.socket.shutdown(Shutdown::Write);
    }

    /// A descriptor of the connection for a shard. The control thread's own are closed with the last clone of this.
    pub fn to_owned_fd(&self) -> io::Result<OwnedFd> {
        Ok(self.0.socket.try_clone()?.into())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}
