//! The negotiation before the first request, in its fixed newstyle form: bytes in, bytes out, no I/O.
//!
//! A client may ask what it likes as often as it likes; each answer is bounded by [`MAX_ANSWER_BYTES`], and the driver asks
//! for the next only when there is room for it. A malformed option is answered with an error as long as the stream can
//! still be followed; where it cannot, or where the option has no error, the connection ends with a [`Violation`].

use zerocopy::{FromBytes, IntoBytes};

use super::wire::{
    EXPORT_NAME_PADDING_BYTES, Greeting, HandshakeFlags, INIT_MAGIC, InfoBlockSize, InfoExport,
    MAX_STRING_BYTES, OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionHeader, OptionReplyHeader, info,
    option, reply,
};
use super::{Export, MAX_TRANSFER_BYTES};

/// Longest data of an option that is looked at: a name with more requests for information than there are kinds. What is
/// longer is passed over and refused.
const MAX_OPTION_BYTES: u32 = 2 * MAX_STRING_BYTES;

/// Longest answer to one option: a name of 63 bytes, twice, among a few fixed structures.
pub(super) const MAX_ANSWER_BYTES: usize = 512;

/// What a client did that ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    /// A client sets only flags that the server offered or knows.
    #[error("the client sets unknown flags in its greeting: {0:#x}")]
    UnknownFlags(u32),
    /// Each option begins with the same eight bytes.
    #[error("an option begins with {0:#018x}: this is no NBD client, or it lost count")]
    OptionMagic(u64),
    /// Only the fixed form of the negotiation has answers to options, other than the one that ends it.
    #[error("the client sends option {0} without speaking the fixed newstyle negotiation")]
    NotFixed(u32),
    /// EXPORT_NAME has no way to say no.
    #[error("the client wants an export by another name than this one has")]
    UnknownExport,
}

/// What comes after what was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// More bytes are needed.
    NeedMore,
    /// Another option may follow.
    Option,
    /// Requests follow.
    Transmission,
    /// The client ends the connection, once it has the answer.
    End,
}

#[derive(Debug)]
enum State {
    ClientFlags,
    Options,
    /// Data of an option that is too long, and what is still to come of it.
    PassingOver {
        option: u32,
        rest_bytes: u32,
    },
}

/// One client's negotiation.
#[derive(Debug)]
pub(super) struct Negotiation {
    state: State,
    client: HandshakeFlags,
}

impl Negotiation {
    pub fn new() -> Self {
        Negotiation {
            state: State::ClientFlags,
            client: HandshakeFlags::empty(),
        }
    }

    /// What the server says before anything else.
    pub fn greeting() -> Greeting {
        Greeting {
            magic: INIT_MAGIC.into(),
            option_magic: OPTION_MAGIC.into(),
            flags: (HandshakeFlags::all().bits() as u16).into(),
        }
    }

    /// Takes at most one element from the start of `input` and appends the answer to `out`; returns how many bytes it
    /// took and what comes next.
    pub fn receive(
        &mut self,
        input: &[u8],
        export: &Export,
        out: &mut Vec<u8>,
    ) -> Result<(usize, Next), Violation> {
        match self.state {
            State::ClientFlags => {
                let Some(flags) = input.first_chunk() else {
                    return Ok((0, Next::NeedMore));
                };
                let flags = u32::from_be_bytes(*flags);
                self.client =
                    HandshakeFlags::from_bits(flags).ok_or(Violation::UnknownFlags(flags))?;
                self.state = State::Options;
                Ok((size_of::<u32>(), Next::Option))
            }
            State::PassingOver { option, rest_bytes } => {
                let taken = input.len().min(rest_bytes as usize);
                let rest_bytes = rest_bytes - taken as u32;
                if rest_bytes > 0 {
                    self.state = State::PassingOver { option, rest_bytes };
                    return Ok((taken, Next::NeedMore));
                }
                answer(out, option, reply::ERR_TOO_BIG, &[]);
                self.state = State::Options;
                Ok((taken, Next::Option))
            }
            State::Options => self.option(input, export, out),
        }
    }

    fn option(
        &mut self,
        input: &[u8],
        export: &Export,
        out: &mut Vec<u8>,
    ) -> Result<(usize, Next), Violation> {
        let Ok((header, data)) = OptionHeader::read_from_prefix(input) else {
            return Ok((0, Next::NeedMore));
        };
        let (option, len_bytes) = (header.option.get(), header.len.get());
        if header.magic.get() != OPTION_MAGIC {
            return Err(Violation::OptionMagic(header.magic.get()));
        }
        if !self.client.contains(HandshakeFlags::FIXED_NEWSTYLE) && option != option::EXPORT_NAME {
            return Err(Violation::NotFixed(option));
        }
        if len_bytes > MAX_OPTION_BYTES {
            if option == option::EXPORT_NAME {
                return Err(Violation::UnknownExport);
            }
            self.state = State::PassingOver {
                option,
                rest_bytes: len_bytes,
            };
            return Ok((size_of::<OptionHeader>(), Next::Option));
        }
        let Some(data) = data.get(..len_bytes as usize) else {
            return Ok((0, Next::NeedMore));
        };
        let taken = size_of::<OptionHeader>() + data.len();
        let next = match option {
            option::EXPORT_NAME => self.export_name(data, export, out)?,
            option::ABORT => {
                answer(out, option, reply::ACK, &[]);
                Next::End
            }
            option::LIST => list(data, export, out),
            option::INFO | option::GO => info(option, data, export, out),
            _ => {
                answer(out, option, reply::ERR_UNSUP, &[]);
                Next::Option
            }
        };
        Ok((taken, next))
    }

    fn export_name(
        &self,
        name: &[u8],
        export: &Export,
        out: &mut Vec<u8>,
    ) -> Result<Next, Violation> {
        if !export.is_called(name) {
            return Err(Violation::UnknownExport);
        }
        out.extend(&export.info().as_bytes()[size_of::<u16>()..]);
        if !self.client.contains(HandshakeFlags::NO_ZEROES) {
            out.extend([0; EXPORT_NAME_PADDING_BYTES]);
        }
        Ok(Next::Transmission)
    }
}

impl Export {
    /// By its name, or by none, which means the only one.
    fn is_called(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.geometry.name.as_bytes()
    }

    fn info(&self) -> InfoExport {
        InfoExport {
            kind: info::EXPORT.into(),
            size_bytes: self.geometry.size_bytes().into(),
            flags: (self.flags.bits() as u16).into(),
        }
    }

    fn block_size(&self) -> InfoBlockSize {
        const PAGE_BYTES: u32 = 4096;
        let block = self.geometry.block_size_bytes;
        InfoBlockSize {
            kind: info::BLOCK_SIZE.into(),
            minimum_bytes: block.into(),
            preferred_bytes: block.max(PAGE_BYTES).into(),
            maximum_bytes: MAX_TRANSFER_BYTES.into(),
        }
    }
}

fn answer(out: &mut Vec<u8>, option: u32, kind: u32, data: &[&[u8]]) {
    let len: usize = data.iter().map(|part| part.len()).sum();
    let header = OptionReplyHeader {
        magic: OPTION_REPLY_MAGIC.into(),
        option: option.into(),
        kind: kind.into(),
        len: (len as u32).into(),
    };
    out.extend(header.as_bytes());
    for part in data {
        out.extend(*part);
    }
}

fn list(data: &[u8], export: &Export, out: &mut Vec<u8>) -> Next {
    if !data.is_empty() {
        answer(out, option::LIST, reply::ERR_INVALID, &[]);
        return Next::Option;
    }
    let name = export.geometry.name.as_bytes();
    let len = (name.len() as u32).to_be_bytes();
    answer(out, option::LIST, reply::SERVER, &[&len, name]);
    answer(out, option::LIST, reply::ACK, &[]);
    Next::Option
}

/// The name, and the kinds of information that are asked for. `None` when the lengths within do not add up.
fn parse_info(data: &[u8]) -> Option<(&[u8], impl Iterator<Item = u16>)> {
    let (len, rest) = data.split_first_chunk()?;
    let (name, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    let (count, rest) = rest.split_first_chunk()?;
    let (kinds, odd) = rest.as_chunks();
    if !odd.is_empty() || kinds.len() != usize::from(u16::from_be_bytes(*count)) {
        return None;
    }
    Some((name, kinds.iter().map(|kind| u16::from_be_bytes(*kind))))
}

fn info(option: u32, data: &[u8], export: &Export, out: &mut Vec<u8>) -> Next {
    let Some((name, mut asked)) = parse_info(data) else {
        answer(out, option, reply::ERR_INVALID, &[]);
        return Next::Option;
    };
    if !export.is_called(name) {
        answer(out, option, reply::ERR_UNKNOWN, &[]);
        return Next::Option;
    }
    answer(out, option, reply::INFO, &[export.info().as_bytes()]);
    // Whether they asked or not: requests that break these sizes are refused.
    answer(out, option, reply::INFO, &[export.block_size().as_bytes()]);
    if asked.any(|kind| kind == info::NAME) {
        let name = export.geometry.name.as_bytes();
        let kind = info::NAME.to_be_bytes();
        answer(out, option, reply::INFO, &[&kind, name]);
    }
    answer(out, option, reply::ACK, &[]);
    match option {
        option::GO => Next::Transmission,
        _ => Next::Option,
    }
}

#[cfg(test)]
mod tests;
