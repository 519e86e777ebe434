//! The beginning of a connection on the controller's side: Connect.
//!
//! Only Connect says how deep the queue is and whether it has flow control, so a [`ControllerConn`](super::ControllerConn) is built after
//! it. The first capsule is judged here; its data, always the same length, are in it or in the host's memory.

use super::{COMMAND_BYTES, RESPONSE_BYTES, RemoteMemory};
use crate::violation::Violation;
use crate::wire::fabrics::ConnectData;
use crate::wire::{Cid, Cqe, FabricsType, Sqe, Status};
use zerocopy::{FromBytes, IntoBytes};

/// Where the data of a Connect are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectSource {
    /// In the capsule, behind the command.
    InCapsule,
    /// In the host's memory: fetch [`ConnectData::SIZE`] bytes.
    Host(RemoteMemory),
}

/// A Connect command, without its data.
#[derive(Clone, Copy, Debug)]
pub struct ConnectCommand {
    /// The command.
    pub sqe: Sqe,
    /// Where its data are.
    pub source: ConnectSource,
}

impl ConnectCommand {
    /// Judges the first message on a connection, `bytes` long, that begins with `header`.
    pub fn parse(header: &[u8], bytes: u32) -> Result<Self, Violation> {
        let sqe = command(header, bytes)?;
        if !sqe.is_fabrics() || sqe.fctype() != FabricsType::CONNECT {
            return Err(Violation::ConnectExpected(sqe.cid()));
        }
        let sgl = &sqe.dptr;
        let length = sgl.length_bytes();
        let source = if sgl.is_keyed() {
            ConnectSource::Host(RemoteMemory::of(sgl))
        } else if sgl.is_in_capsule() {
            if sgl.address.get() != 0 {
                return Err(Violation::SglOffset {
                    offset: sgl.address.get(),
                });
            }
            ConnectSource::InCapsule
        } else {
            return Err(Violation::SglType { kind: sgl.kind });
        };
        let carried = bytes - COMMAND_BYTES;
        let all_there = source != ConnectSource::InCapsule || carried >= length;
        if length as usize != ConnectData::SIZE || !all_there {
            return Err(Violation::SglLength {
                sgl_bytes: length,
                capsule_bytes: carried,
            });
        }
        Ok(Self { sqe, source })
    }
}

/// The command that a message of `bytes` begins with.
pub(super) fn command(header: &[u8], bytes: u32) -> Result<Sqe, Violation> {
    match Sqe::read_from_prefix(header) {
        Ok((sqe, _)) if bytes >= COMMAND_BYTES => Ok(sqe),
        _ => Err(Violation::CapsuleLength {
            bytes,
            least: COMMAND_BYTES,
        }),
    }
}

/// The response capsule that refuses the command `cid` before there is a queue, and so without a head.
pub fn refusal(cid: Cid, status: Status, result: u64) -> [u8; RESPONSE_BYTES as usize] {
    let mut capsule = [0; RESPONSE_BYTES as usize];
    capsule.copy_from_slice(Cqe::new(cid, 0, status, result).as_bytes());
    capsule
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{IoOpcode, Opcode, SglDescriptor};
    use zerocopy::little_endian::U64;

    fn connect(dptr: SglDescriptor) -> Sqe {
        let mut sqe = Sqe {
            dptr,
            ..Sqe::new(Opcode::FABRICS)
        };
        sqe.as_mut_bytes()[4] = FabricsType::CONNECT.0;
        sqe
    }

    fn parse(sqe: &Sqe, bytes: u32) -> Result<ConnectSource, Violation> {
        ConnectCommand::parse(sqe.as_bytes(), bytes).map(|connect| connect.source)
    }

    #[test]
    fn data_in_the_capsule_or_in_memory() {
        let in_capsule = connect(SglDescriptor::in_capsule(1024));
        assert_eq!(parse(&in_capsule, 64 + 1024), Ok(ConnectSource::InCapsule));
        for invalidate in [false, true] {
            let keyed = connect(SglDescriptor::keyed(0x5000, 1024, 9, invalidate).unwrap());
            let memory = RemoteMemory {
                address: 0x5000,
                key: 9,
            };
            assert_eq!(parse(&keyed, 64), Ok(ConnectSource::Host(memory)));
        }
    }

    #[test]
    fn what_is_no_connect_is_refused() {
        let keyed = SglDescriptor::keyed(0, 1024, 9, false).unwrap();
        for bytes in [0, 63] {
            let least = COMMAND_BYTES;
            let short = ConnectCommand::parse(&[0; 64], bytes);
            assert_eq!(
                short.unwrap_err(),
                Violation::CapsuleLength { bytes, least }
            );
        }
        let read = Sqe {
            dptr: keyed,
            ..Sqe::new(IoOpcode::READ)
        };
        let violation = parse(&read, 64).unwrap_err();
        assert_eq!(
            violation.status(),
            Some(Status::COMMAND_SEQUENCE_ERROR.dnr())
        );
        for (dptr, bytes) in [
            (SglDescriptor::keyed(0, 1023, 9, false).unwrap(), 64),
            (SglDescriptor::in_capsule(1025), 64 + 1025),
            (SglDescriptor::in_capsule(1024), 64 + 1023),
        ] {
            let status = parse(&connect(dptr), bytes).unwrap_err().status();
            assert_eq!(status, Some(Status::DATA_SGL_LENGTH_INVALID.dnr()));
        }
        let offset = SglDescriptor {
            address: U64::new(4),
            ..SglDescriptor::in_capsule(1024)
        };
        assert!(matches!(
            parse(&connect(offset), 2048),
            Err(Violation::SglOffset { offset: 4 })
        ));
        let transport = connect(SglDescriptor::transport(1024));
        assert!(matches!(
            parse(&transport, 64),
            Err(Violation::SglType { kind: 0x5a })
        ));
    }

    #[test]
    fn a_refusal_is_a_completion() {
        let capsule = refusal(Cid(0x0201), Status::INVALID_FIELD.dnr(), 5);
        let cqe = Cqe::read_from_bytes(&capsule).unwrap();
        assert_eq!(
            (cqe.cid(), cqe.status(), cqe.result()),
            (Cid(0x0201), Status::INVALID_FIELD.dnr(), 5)
        );
    }
}
