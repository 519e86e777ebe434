//! Generic netlink, as far as the kernel's nbd driver needs it: requests with attributes, an answer, an
//! acknowledgement. Bytes only; the socket calls are rustix's.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::GENERIC;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const NLMSG_HEADER_BYTES: usize = 16;
const GENL_HEADER_BYTES: usize = 4;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

const CONTROLLER: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// The largest answer expected: a few attributes.
const ANSWER_BYTES: usize = 16 << 10;

/// Attributes under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = ATTRIBUTE_HEADER_BYTES + value.len();
        let len_field = u16::try_from(len).expect("attributes are short");
        self.0.extend_from_slice(&len_field.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(crate) fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(crate) fn nested(&mut self, kind: u16, inner: &Attributes) -> &mut Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }
}

/// Walks over attributes: kind (without flags) and value. Ends at the first that does not fit.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_HEADER_BYTES..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A connection to one family of the kernel.
#[derive(Debug)]
pub(crate) struct Family {
    socket: OwnedFd,
    id: u16,
    version: u8,
    sequence: u32,
}

impl Family {
    /// Looks the family up; NotFound when the kernel has none of that name.
    pub(crate) fn open(name: &str, version: u8) -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(GENERIC),
        )?;
        let mut family = Self {
            socket,
            id: CONTROLLER,
            version: 1,
            sequence: 0,
        };
        let mut name_z = name.as_bytes().to_vec();
        name_z.push(0);
        let mut request = Attributes::default();
        request.bytes(CTRL_ATTR_FAMILY_NAME, &name_z);
        let answer = family.call(CTRL_CMD_GETFAMILY, &request)?;
        let id = attributes(&answer)
            .find(|&(kind, _)| kind == CTRL_ATTR_FAMILY_ID)
            .and_then(|(_, value)| u16_at(value, 0))
            .ok_or_else(|| malformed("no family id"))?;
        family.id = id;
        family.version = version;
        Ok(family)
    }

    /// Sends one command and waits for its acknowledgement; returns the attributes of the answer, empty if there
    /// was none.
    pub(crate) fn call(&mut self, command: u8, request: &Attributes) -> io::Result<Vec<u8>> {
        self.sequence += 1;
        let message = self.encode(command, request);
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        let mut answer = Vec::new();
        let mut buffer = vec![0u8; ANSWER_BYTES];
        loop {
            let (received, total) =
                rustix::net::recv(&self.socket, buffer.as_mut_slice(), RecvFlags::TRUNC)?;
            if total > received {
                return Err(malformed("answer too long"));
            }
            let mut rest = &buffer[..received];
            while let Some(len) = u32_at(rest, 0) {
                let message = rest
                    .get(..len as usize)
                    .filter(|message| message.len() >= NLMSG_HEADER_BYTES)
                    .ok_or_else(|| malformed("message cut short"))?;
                rest = rest
                    .get((len as usize).next_multiple_of(4)..)
                    .unwrap_or_default();
                if u32_at(message, 8) != Some(self.sequence) {
                    continue;
                }
                let body = &message[NLMSG_HEADER_BYTES..];
                if u16_at(message, 4) == Some(NLMSG_ERROR) {
                    let code = u32_at(body, 0).ok_or_else(|| malformed("no error code"))?;
                    return match code.cast_signed() {
                        0 => Ok(answer),
                        code => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                    };
                }
                answer = body.get(GENL_HEADER_BYTES..).unwrap_or_default().to_vec();
            }
        }
    }

    fn encode(&self, command: u8, request: &Attributes) -> Vec<u8> {
        let len = NLMSG_HEADER_BYTES + GENL_HEADER_BYTES + request.0.len();
        let mut message = Vec::with_capacity(len);
        message.extend_from_slice(&(len as u32).to_ne_bytes());
        message.extend_from_slice(&self.id.to_ne_bytes());
        message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(&[command, self.version, 0, 0]);
        message.extend_from_slice(&request.0);
        message
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("netlink: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_controller_knows_itself() {
        let family = Family::open("nlctrl", 1).unwrap();
        assert_eq!(family.id, CONTROLLER);
        let error = Family::open("no-such-family", 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
    }

    #[test]
    fn attributes_are_padded_and_walked() {
        let mut inner = Attributes::default();
        inner.u32(1, 7);
        let mut outer = Attributes::default();
        outer.bytes(2, b"abc").u64(3, 1 << 40).nested(4, &inner);
        assert_eq!(outer.0.len(), 8 + 12 + 12);
        let walked: Vec<_> = attributes(&outer.0).collect();
        assert_eq!(walked[0], (2, &b"abc"[..]));
        assert_eq!(walked[1], (3, &(1u64 << 40).to_ne_bytes()[..]));
        assert_eq!(walked[2].0, 4);
        assert_eq!(
            attributes(walked[2].1).next(),
            Some((1, &7u32.to_ne_bytes()[..]))
        );
        for cut in 0..outer.0.len() {
            assert!(attributes(&outer.0[..cut]).count() <= 3);
        }
        assert_eq!(
            attributes(&[0, 0, 1, 0, 9, 9]).count(),
            0,
            "a length below the header's ends the walk"
        );
    }
}
