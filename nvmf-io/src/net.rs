//! TCP sockets as the data path wants them.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Connections that the kernel completes before they are accepted.
const BACKLOG: i32 = 1024;

/// Options of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// Send and receive buffer in bytes; `None` leaves them to the kernel's tuning, which is limited by
    /// net.ipv4.tcp_wmem and tcp_rmem; a value is limited by net.core.wmem_max and rmem_max.
    pub buffer_bytes: Option<usize>,
    /// Probes of an idle connection: after this time, then every tenth of it.
    pub keepalive: Option<Duration>,
    /// How long sent bytes may stay unacknowledged before the connection fails.
    pub user_timeout: Option<Duration>,
    /// Network interface that the connection is bound to (SO_BINDTODEVICE).
    pub device: Option<String>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            buffer_bytes: None,
            keepalive: Some(Duration::from_secs(60)),
            user_timeout: None,
            device: None,
        }
    }
}

/// Applies `options`, and switches Nagle's delay off: a batch is already as much as there is to send.
pub fn configure(socket: impl AsFd, options: &SocketOptions) -> io::Result<()> {
    let socket = socket.as_fd();
    sockopt::set_tcp_nodelay(socket, true)?;
    if let Some(bytes) = options.buffer_bytes {
        sockopt::set_socket_send_buffer_size(socket, bytes)?;
        sockopt::set_socket_recv_buffer_size(socket, bytes)?;
    }
    if let Some(idle) = options.keepalive {
        let idle = idle.max(Duration::from_secs(1));
        sockopt::set_socket_keepalive(socket, true)?;
        sockopt::set_tcp_keepidle(socket, idle)?;
        sockopt::set_tcp_keepintvl(socket, (idle / 10).max(Duration::from_secs(1)))?;
    }
    if let Some(limit) = options.user_timeout {
        let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(socket, millis)?;
    }
    if let Some(device) = &options.device {
        bind_to_device(socket, device)?;
    }
    Ok(())
}

/// The error names the interface.
fn bind_to_device(socket: BorrowedFd<'_>, device: &str) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `device`, which outlives the call; the kernel copies at most so many
    // bytes and wants no NUL when the length is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            device.as_ptr().cast(),
            device.len() as libc::socklen_t,
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::new(
        error.kind(),
        format!("cannot bind to interface {device}: {error}"),
    ))
}

/// Listens on `address`; port 0 takes a free one. The error names the address.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let named = |what: &str, errno: Errno| {
        let hint = match errno {
            Errno::ADDRINUSE => ": another process listens there; choose another port",
            Errno::ADDRNOTAVAIL => ": no interface of this machine has that address",
            Errno::ACCESS => {
                ": ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE"
            }
            _ => "",
        };
        io::Error::new(
            io::Error::from(errno).kind(),
            format!("cannot {what} {address}: {errno}{hint}"),
        )
    };
    let socket = stream_socket(address).map_err(|errno| named("make a socket for", errno))?;
    sockopt::set_socket_reuseaddr(&socket, true).map_err(|errno| named("configure", errno))?;
    if address.is_ipv6() {
        // Each address is listened on for itself, whatever net.ipv6.bindv6only says.
        sockopt::set_ipv6_v6only(&socket, true).map_err(|errno| named("configure", errno))?;
    }
    rustix::net::bind(&socket, &address).map_err(|errno| named("bind to", errno))?;
    rustix::net::listen(&socket, BACKLOG).map_err(|errno| named("listen on", errno))?;
    Ok(TcpListener::from(socket))
}

/// Connects to `address` within `limit`, from `source` if given; the socket is blocking and configured.
pub fn connect(
    address: SocketAddr,
    source: Option<SocketAddr>,
    options: &SocketOptions,
    limit: Duration,
) -> io::Result<OwnedFd> {
    let failed = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("cannot connect to {address}: {error}"),
        )
    };
    let socket = stream_socket(address).map_err(|errno| failed(errno.into()))?;
    configure(&socket, options).map_err(failed)?;
    if let Some(source) = source {
        rustix::net::bind(&socket, &source).map_err(|errno| {
            io::Error::new(
                io::Error::from(errno).kind(),
                format!("cannot connect from {source}: {errno}"),
            )
        })?;
    }
    rustix::io::ioctl_fionbio(&socket, true).map_err(|errno| failed(errno.into()))?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => {}
        Err(Errno::INPROGRESS) => wait_connected(&socket, limit).map_err(failed)?,
        Err(errno) => return Err(failed(errno.into())),
    }
    rustix::io::ioctl_fionbio(&socket, false).map_err(|errno| failed(errno.into()))?;
    Ok(socket)
}

/// Makes TCP ask the peer for a sign of life, about once a second from now on. A peer that still has the connection acknowledges, see
/// [`since_last_acknowledgement`]; one that has given it up resets it, see [`is_closed_by_peer`]. [`configure`] goes back to
/// normal.
pub fn ask_for_sign_of_life(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    let second = Duration::from_secs(1);
    sockopt::set_tcp_keepintvl(socket, second)?;
    sockopt::set_tcp_keepidle(socket, second)?;
    sockopt::set_socket_keepalive(socket, true)?;
    Ok(())
}

/// Time since the peer's TCP last acknowledged anything, with a resolution of a few milliseconds.
pub fn since_last_acknowledgement(socket: impl AsFd) -> io::Result<Duration> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as `socket` lives, and the kernel writes at most `len` bytes to `info`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &mut len,
        )
    };
    if result == 0 {
        Ok(Duration::from_millis(info.tcpi_last_ack_recv.into()))
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether the peer has closed or reset the connection, even where bytes that it sent before are still unread.
pub fn is_closed_by_peer(socket: impl AsFd) -> bool {
    let closed = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let zero = rustix::event::Timespec::default();
    let mut fds = [PollFd::new(&socket, PollFlags::RDHUP)];
    match poll(&mut fds, Some(&zero)) {
        Ok(_) => fds[0].revents().intersects(closed),
        // Only a descriptor that is none could make it fail otherwise.
        Err(errno) => errno != Errno::INTR,
    }
}

fn wait_connected(socket: &OwnedFd, limit: Duration) -> io::Result<()> {
    let deadline = std::time::Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = rustix::event::Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&timeout)) {
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer within {} ms", limit.as_millis()),
                ));
            }
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    sockopt::socket_error(socket)?.map_err(io::Error::from)
}

fn stream_socket(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

/// The process at the other end of a unix socket, as it was when it connected; `None` when it is in a container whose
/// processes have no number here.
pub fn peer_pid(socket: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    // Not rustix's: its type for a process has no zero, which is what the kernel says of such a process.
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which is the size of `peer`, and any bytes make a valid one.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    crate::sys::ioctl::check(result)?;
    Ok(u32::try_from(peer.pid).ok().filter(|&pid| pid != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;
    use std::time::Instant;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Polls `condition`, for which there is nothing to wait on, until it holds.
    fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < LIMIT, "{what} within {LIMIT:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_living_peer_acknowledges_and_a_closed_one_is_seen() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let asked = Instant::now();
        ask_for_sign_of_life(&socket).unwrap();
        eventually("an acknowledgement younger than the question", || {
            since_last_acknowledgement(&socket).unwrap() + Duration::from_millis(50)
                < asked.elapsed()
        });
        assert!(!is_closed_by_peer(&socket));
        configure(&socket, &SocketOptions::default()).unwrap();
        drop(peer);
        eventually("the end of the stream is seen unread", || {
            is_closed_by_peer(&socket)
        });
    }

    #[test]
    fn the_interface_is_bound_to_and_an_unknown_one_is_named() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let options = |device: &str| SocketOptions {
            device: Some(device.to_owned()),
            ..SocketOptions::default()
        };
        let address = listener.local_addr().unwrap();
        connect(address, None, &options("lo"), LIMIT).unwrap();
        let error = connect(address, None, &options("none0"), LIMIT).unwrap_err();
        assert!(error.to_string().contains("interface none0"), "{error}");
    }

    #[test]
    fn an_address_in_use_is_named_with_a_remedy() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let error = listen(address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let text = error.to_string();
        assert!(
            text.contains(&address.to_string()) && text.contains("choose another port"),
            "{text}"
        );
    }

    #[test]
    fn connecting_from_an_address_and_to_nobody() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let source = "127.0.0.2:0".parse().unwrap();
        let options = SocketOptions {
            buffer_bytes: Some(1 << 20),
            keepalive: Some(Duration::from_secs(20)),
            user_timeout: Some(Duration::from_secs(10)),
            ..SocketOptions::default()
        };
        let socket = connect(address, Some(source), &options, LIMIT).unwrap();
        let (_peer, from) = listener.accept().unwrap();
        assert_eq!(from.ip(), source.ip());
        assert!(sockopt::tcp_nodelay(&socket).unwrap());
        assert_eq!(sockopt::tcp_user_timeout(&socket).unwrap(), 10_000);
        assert_eq!(
            sockopt::tcp_keepidle(&socket).unwrap(),
            Duration::from_secs(20)
        );
        let flags = rustix::fs::fcntl_getfl(&socket).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK), "blocking");

        drop(listener);
        let error = connect(address, None, &options, LIMIT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        let foreign = Some("192.0.2.1:0".parse().unwrap());
        let error = connect(address, foreign, &options, LIMIT).unwrap_err();
        assert!(error.to_string().contains("192.0.2.1"), "{error}");
    }

    #[test]
    fn the_peer_of_a_unix_socket_has_a_number() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(peer_pid(ours.as_fd()).unwrap(), Some(std::process::id()));
        drop(theirs);
    }
}
