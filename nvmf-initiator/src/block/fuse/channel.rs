//! One channel of `/dev/fuse` in the shard's ring, and the way of replies back to the kernel.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nvmf_io::{Buf, Completion, Errno, FileId, Token, TxBatch};
use zerocopy::IntoBytes;

use super::wire::{self, OutHeader};
use crate::block::{FrontEndIo, TokenSpace};

/// Token of replies.
pub(super) const REPLY: u32 = u32::MAX;
/// Header and the largest body, which is that of a LOOKUP.
const REPLY_HEADER_BYTES: usize = size_of::<OutHeader>() + size_of::<wire::EntryOut>();
/// Header with body, and payload.
const REPLY_SEGMENTS: usize = 2;

/// The way back to the kernel.
pub(super) struct Channel {
    /// Until [`Channel::open`].
    fd: Option<Arc<OwnedFd>>,
    file: Option<FileId>,
    tokens: TokenSpace,
    #[expect(clippy::vec_box, reason = "the ring takes and returns boxes")]
    batches: Vec<Box<TxBatch>>,
    replies_in_flight: usize,
}

impl Channel {
    pub fn new(fd: Arc<OwnedFd>) -> Self {
        Channel {
            fd: Some(fd),
            file: None,
            tokens: TokenSpace::new(0),
            batches: Vec::new(),
            replies_in_flight: 0,
        }
    }

    /// Registers with the ring.
    pub fn open(&mut self, tokens: TokenSpace, io: &mut FrontEndIo<'_>) {
        self.tokens = tokens;
        self.file = self.fd.take().map(|fd| io.ring.add_file(fd));
    }

    /// Takes it out of the ring; nothing is in flight on it.
    pub fn close(&mut self, io: &mut FrontEndIo<'_>) {
        if let Some(file) = self.file.take() {
            io.ring.remove_file(file);
        }
    }

    /// Where to read from, while it is open.
    pub fn file(&self) -> Option<FileId> {
        self.file
    }

    /// The token of whatever else is done on the channel.
    pub fn token(&self, local: u32) -> Token {
        self.tokens.token(local)
    }

    /// Whether replies are on their way.
    pub fn is_replying(&self) -> bool {
        self.replies_in_flight > 0
    }

    pub fn reply_error(&mut self, unique: u64, errno: Errno, io: &mut FrontEndIo<'_>) {
        self.send(unique, -errno.raw_os_error(), &[], None, io);
    }

    pub fn reply(&mut self, unique: u64, body: &[u8], io: &mut FrontEndIo<'_>) {
        self.send(unique, 0, body, None, io);
    }

    pub fn reply_data(&mut self, unique: u64, buf: &Buf, len_bytes: u32, io: &mut FrontEndIo<'_>) {
        self.send(unique, 0, &[], Some((buf, len_bytes)), io);
    }

    fn send(
        &mut self,
        unique: u64,
        error: i32,
        body: &[u8],
        payload: Option<(&Buf, u32)>,
        io: &mut FrontEndIo<'_>,
    ) {
        let Some(file) = self.file else { return };
        let payload_bytes = payload.map_or(0, |(_, len)| len);
        let header = OutHeader {
            len: (size_of::<OutHeader>() + body.len()) as u32 + payload_bytes,
            error,
            unique,
        };
        let mut batch = self
            .batches
            .pop()
            .unwrap_or_else(|| TxBatch::new(REPLY_HEADER_BYTES, REPLY_SEGMENTS));
        let pushed = batch
            .push_header(header.as_bytes())
            .and_then(|()| batch.push_header(body))
            .and_then(|()| payload.map_or(Ok(()), |(buf, len)| batch.push_payload(buf, 0..len)));
        debug_assert!(pushed.is_ok(), "the largest reply fits into an empty batch");
        self.replies_in_flight += 1;
        io.ring
            .write_vectored(file, 0, batch, self.tokens.token(REPLY));
    }

    /// A reply is out, or did not go.
    pub fn replied(&mut self, completion: Completion) {
        self.replies_in_flight -= 1;
        match completion.result {
            // NOENT: the request was withdrawn meanwhile. The others: the file system is gone, which readers report.
            Ok(_)
            | Err(
                Errno::NOENT | Errno::NODEV | Errno::CONNABORTED | Errno::PERM | Errno::CANCELED,
            ) => {}
            Err(errno) => tracing::error!(%errno, "the kernel refused a FUSE reply"),
        }
        if let Some(mut batch) = completion.batch {
            batch.clear();
            self.batches.push(batch);
        }
    }
}
