//! Handing a device over: [`Kept`] as one message with file descriptors over a unix socket.
//!
//! The keeper needs no understanding of what it holds; it stores the message and sends it to the next server.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::Kept;

/// The kernel passes at most this many descriptors in one message; a device has a few more than it has queues.
const MAX_FDS: usize = 253;

/// Room for the data of a message, many times its size.
const MAX_STATE_BYTES: usize = 4096;

/// Sends what is kept of a device.
pub fn send(socket: &UnixStream, kept: &Kept) -> io::Result<()> {
    let state = serde_json::to_vec(&kept.state).map_err(io::Error::other)?;
    let fds: Vec<_> = kept.fds.iter().map(AsFd::as_fd).collect();
    send_message(socket, &state, &fds)
}

/// Receives what [`send`] sent.
pub fn receive(socket: &UnixStream) -> io::Result<Kept> {
    let (state, fds) = receive_message(socket, MAX_STATE_BYTES)?;
    let state = serde_json::from_slice(&state).map_err(|e| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("not the state of a device: {e}"),
        )
    })?;
    Ok(Kept { state, fds })
}

/// Sends `data` and descriptors as one message.
pub(crate) fn send_message(
    socket: impl AsFd,
    data: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if fds.len() > MAX_FDS {
        let error = format!(
            "{} descriptors do not fit into a message of at most {MAX_FDS}",
            fds.len()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    let sent = rustix::net::sendmsg(
        socket,
        &[IoSlice::new(data)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    if sent == data.len() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::WriteZero,
        "the peer took only a part of the message",
    ))
}

/// Receives a message of at most `max_bytes` with its descriptors; a closed socket is [`io::ErrorKind::UnexpectedEof`].
pub(crate) fn receive_message(
    socket: impl AsFd,
    max_bytes: usize,
) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut data = vec![0; max_bytes];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut data)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the socket was closed before the hand-over",
        ));
    }
    // Descriptors are missing when this process may have no more; those that came are closed.
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the hand-over is cut: a message or its descriptors did not fit; raise the limit on open files (ulimit -n)",
        ));
    }
    data.truncate(received.bytes);
    Ok((data, fds))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;
    use crate::block::DeviceState;

    #[test]
    fn state_and_descriptors_arrive_together() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let kept = Kept {
            state: DeviceState::Ublk { id: 3 },
            fds: vec![reader, writer],
        };
        send(&ours, &kept).unwrap();
        drop(kept);
        let kept = receive(&theirs).unwrap();
        assert_eq!(kept.state, DeviceState::Ublk { id: 3 });
        let [reader, writer]: [OwnedFd; 2] = kept.fds.try_into().unwrap();
        File::from(writer).write_all(b"alive").unwrap();
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "alive");
    }

    #[test]
    fn a_message_that_is_cut_is_an_error() {
        let (ours, theirs) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        send_message(&ours, &[0; 100], &[]).unwrap();
        send_message(&ours, b"whole", &[]).unwrap();
        let error = receive_message(&theirs, 99).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(receive_message(&theirs, 99).unwrap().0, b"whole");
    }

    #[test]
    fn a_closed_socket_and_rubbish_are_errors() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"{").unwrap();
        assert_eq!(
            receive(&theirs).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        drop(ours);
        assert_eq!(
            receive(&theirs).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
