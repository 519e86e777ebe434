//! Requests: which are carried out, which are refused with an error, and which end the connection.

use nvmf_io::Errno;
use nvmf_io::sys::nbd::ServerFlags;
use zerocopy::FromBytes;

use super::wire::{CommandFlags, NbdError, REQUEST_MAGIC, RequestHeader, command};
use super::{Export, MAX_TRANSFER_BYTES};

/// The payload of a refused write is passed over up to this length, the largest that the protocol lets a client send
/// without having been told a smaller one.
const MAX_PASSED_OVER_BYTES: u32 = 32 << 20;

/// What a client did that ends its connection: what follows in the stream cannot be told any more, or is not worth it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    /// Each request begins with the same four bytes.
    #[error("a request begins with {0:#010x}: the client lost count")]
    RequestMagic(u32),
    /// No payload is longer than the protocol allows.
    #[error("a write of {0} bytes; no client may send more than 32 MiB at once")]
    PayloadTooLong(u32),
}

/// A request that is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Read,
    Write {
        fua: bool,
    },
    Flush,
    Trim {
        fua: bool,
    },
    WriteZeroes {
        unmap: bool,
        fua: bool,
    },
    /// No reply; the connection ends when the requests before it are done.
    Disconnect,
}

/// A request as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub cookie: u64,
    pub offset_bytes: u64,
    pub len_bytes: u32,
    /// What to do, or what to answer.
    pub action: Result<Action, NbdError>,
    /// Bytes that follow the header in the stream, whether the request is refused or not.
    pub payload_bytes: u32,
}

impl Request {
    /// The request at the start of `input`, if all of its header is there.
    pub fn parse(input: &[u8], export: &Export) -> Result<Option<Request>, Violation> {
        let Ok((header, _)) = RequestHeader::read_from_prefix(input) else {
            return Ok(None);
        };
        if header.magic.get() != REQUEST_MAGIC {
            return Err(Violation::RequestMagic(header.magic.get()));
        }
        let action = check(&header, export);
        let is_write = header.command.get() == command::WRITE;
        let payload_bytes = if is_write { header.len_bytes.get() } else { 0 };
        if action.is_err() && payload_bytes > MAX_PASSED_OVER_BYTES {
            return Err(Violation::PayloadTooLong(payload_bytes));
        }
        Ok(Some(Request {
            cookie: header.cookie.get(),
            offset_bytes: header.offset_bytes.get(),
            len_bytes: header.len_bytes.get(),
            action,
            payload_bytes,
        }))
    }
}

fn check(header: &RequestHeader, export: &Export) -> Result<Action, NbdError> {
    // A flag that is not known may change the meaning of the request.
    let flags = CommandFlags::from_bits(header.flags.get()).ok_or(NbdError::INVAL)?;
    let fua = flags.contains(CommandFlags::FUA);
    let command = header.command.get();
    if flags.contains(CommandFlags::NO_HOLE) && command != command::WRITE_ZEROES {
        return Err(NbdError::INVAL);
    }
    let offered = |flag| {
        if export.flags.contains(flag) {
            Ok(())
        } else {
            Err(NbdError::INVAL)
        }
    };
    let action = match command {
        command::READ => Action::Read,
        command::WRITE => Action::Write { fua },
        // Offset and length mean nothing.
        command::FLUSH => return Ok(Action::Flush),
        command::DISC => return Ok(Action::Disconnect),
        command::TRIM => {
            offered(ServerFlags::SEND_TRIM)?;
            Action::Trim { fua }
        }
        command::WRITE_ZEROES => {
            offered(ServerFlags::SEND_WRITE_ZEROES)?;
            let unmap = !flags.contains(CommandFlags::NO_HOLE);
            Action::WriteZeroes { unmap, fua }
        }
        _ => return Err(NbdError::INVAL),
    };
    if action != Action::Read && export.flags.contains(ServerFlags::READ_ONLY) {
        return Err(NbdError::PERM);
    }
    let (offset_bytes, len_bytes) = (header.offset_bytes.get(), header.len_bytes.get());
    let has_payload = matches!(action, Action::Read | Action::Write { .. });
    if has_payload && len_bytes > MAX_TRANSFER_BYTES {
        return Err(NbdError::INVAL);
    }
    let geometry = &export.geometry;
    let end = offset_bytes.checked_add(len_bytes.into());
    if end.is_none_or(|end| end > geometry.size_bytes()) {
        return Err(match action {
            Action::Write { .. } | Action::WriteZeroes { .. } => NbdError::NOSPC,
            _ => NbdError::INVAL,
        });
    }
    if !geometry.contains(offset_bytes, len_bytes.into()) {
        return Err(NbdError::INVAL);
    }
    Ok(action)
}

/// What a client is told of an error of the backing.
pub(super) fn error_of(errno: Errno) -> NbdError {
    match errno {
        Errno::PERM | Errno::ROFS | Errno::ACCESS => NbdError::PERM,
        Errno::NOMEM => NbdError::NOMEM,
        Errno::INVAL => NbdError::INVAL,
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => NbdError::NOSPC,
        Errno::OPNOTSUPP => NbdError::NOTSUP,
        Errno::SHUTDOWN => NbdError::SHUTDOWN,
        _ => NbdError::IO,
    }
}

#[cfg(test)]
mod tests;
