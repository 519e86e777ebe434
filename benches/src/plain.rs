//! The ceiling: bare system calls on a socket.

use std::io::{ErrorKind, IoSlice, Read, Result, Write};
use std::net::TcpStream;

use crate::shape::{Mode, Shape};

/// Where messages are sent from: headers of 64 bytes in the first part, data behind it.
const ARENA_BYTES: usize = 4 << 20;
const HEADER_STRIDE: usize = 64;
const DATA_START: usize = 64 << 10;
const DATA_STRIDE: usize = 8 << 10;
/// Messages in one send: with a header segment each, and without.
const SPLIT_BATCH: usize = 32;
const WHOLE_BATCH: usize = 64;

/// A receive of messages: of some size, or of more data than a header.
fn receive_bytes(message: usize, large: usize) -> usize {
    if message > 4096 { large } else { 36 << 10 }
}

/// Bytes to send and to receive into.
///
/// What is sent is never written, so that it is the kernel's zero page and costs the sender no memory traffic: a
/// ceiling that no server of data can reach quite, and the same for all.
pub struct Memory {
    send: Vec<u8>,
    receive: Vec<u8>,
}

impl Memory {
    /// The pages to receive into are touched, so that the first messages are like the later ones.
    #[expect(clippy::new_without_default, reason = "it is no small thing")]
    pub fn new() -> Self {
        Self {
            send: vec![0; ARENA_BYTES],
            receive: vec![1; ARENA_BYTES],
        }
    }

    /// Sends `count` messages of `bytes`, of which the first `header` come from another place.
    pub fn send(
        &self,
        socket: &mut TcpStream,
        mut count: usize,
        bytes: usize,
        header: usize,
    ) -> Result<()> {
        let arena = &self.send;
        while count > 0 {
            let batch = count.min(if header > 0 { SPLIT_BATCH } else { WHOLE_BATCH });
            let mut segments = [IoSlice::new(&[]); 2 * WHOLE_BATCH];
            let mut used = 0;
            for index in 0..batch {
                if header > 0 {
                    let data = DATA_START + index * DATA_STRIDE;
                    segments[used] = IoSlice::new(&arena[index * HEADER_STRIDE..][..header]);
                    segments[used + 1] = IoSlice::new(&arena[data..][..bytes - header]);
                    used += 2;
                } else {
                    segments[used] = IoSlice::new(&arena[index * 2 * HEADER_STRIDE..][..bytes]);
                    used += 1;
                }
            }
            let mut rest = &mut segments[..used];
            while !rest.is_empty() {
                match socket.write_vectored(rest) {
                    Ok(sent) => IoSlice::advance_slices(&mut rest, sent),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            count -= batch;
        }
        Ok(())
    }

    /// Where up to `bytes` are received into.
    pub fn landing(&mut self, bytes: usize) -> &mut [u8] {
        &mut self.receive[..bytes]
    }

    /// Receives what is there, up to the size for messages of `message` bytes; 0 at the end of the stream. Spins on
    /// a non-blocking socket.
    pub fn receive(
        &mut self,
        socket: &mut TcpStream,
        message: usize,
        large: usize,
    ) -> Result<usize> {
        let len = receive_bytes(message, large);
        loop {
            match socket.read(&mut self.receive[..len]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    /// Receives exactly `bytes`; false at the end of the stream.
    pub fn receive_exactly(&mut self, socket: &mut TcpStream, bytes: usize) -> Result<bool> {
        let mut done = 0;
        while done < bytes {
            match socket.read(&mut self.receive[done..bytes]) {
                Ok(0) => return Ok(false),
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Answers requests until the peer closes.
pub fn serve(mut socket: TcpStream, shape: &Shape) -> Result<()> {
    let mut memory = Memory::new();
    let header = shape.response_header();
    match shape.mode {
        Mode::Block | Mode::Spin => {
            while memory.receive_exactly(&mut socket, shape.request)? {
                memory.send(&mut socket, 1, shape.response, header)?;
            }
        }
        Mode::Pipe | Mode::Many => {
            let mut have = 0;
            loop {
                match memory.receive(&mut socket, shape.request, 256 << 10)? {
                    0 => break,
                    count => have += count,
                }
                memory.send(&mut socket, have / shape.request, shape.response, header)?;
                have %= shape.request;
            }
        }
        Mode::Bulk | Mode::Bulkspin => {
            while memory.receive(&mut socket, usize::MAX, shape.response.min(ARENA_BYTES))? > 0 {}
        }
    }
    Ok(())
}
