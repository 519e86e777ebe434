//! Which data a command moves, from its opcode, its SGL descriptor and what its capsule carries.
//!
//! RDMA knows two descriptors: in-capsule (type 0h, sub type 1h: an offset into the capsule's data, which must be 0) and keyed (type 4h: the
//! host's memory, sub type Fh with the wish to have the key invalidated). A command that fails here completes with a status. A capsule may
//! be longer than what its descriptor needs: hosts exist that always send the same length.

use super::COMMAND_BYTES;
use crate::queue::{QueueLimits, Transfer, has_sgl};
use crate::violation::Violation;
use crate::wire::Sqe;

/// The transfer of a command whose message is `bytes` long.
#[inline]
pub(super) fn transfer(sqe: &Sqe, bytes: u32, limits: &QueueLimits) -> Result<Transfer, Violation> {
    if !has_sgl(sqe) {
        return Err(Violation::NotSgl(sqe.cid()));
    }
    let capsule_bytes = bytes - COMMAND_BYTES;
    let sgl = &sqe.dptr;
    let from_host = sqe.is_host_to_controller();
    let to_host = sqe.is_controller_to_host();
    let length = sgl.length_bytes();
    if length == 0 || !(from_host || to_host) {
        // No data, whatever the descriptor is: hosts put an empty keyed one there.
        return Ok(Transfer::None);
    }
    if sgl.is_keyed() {
        return Transfer::by_transport(from_host, length, limits);
    }
    if sgl.is_in_capsule() && from_host {
        let offset = sgl.address.get();
        if offset != 0 {
            return Err(Violation::SglOffset { offset });
        }
        if length > capsule_bytes || length > limits.in_capsule_bytes {
            return Err(Violation::SglLength {
                sgl_bytes: length,
                capsule_bytes,
            });
        }
        return Ok(Transfer::InCapsule(length));
    }
    Err(Violation::SglType { kind: sgl.kind })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{IoOpcode, Opcode, SglDescriptor, Status};
    use zerocopy::little_endian::U64;

    const LIMITS: QueueLimits = QueueLimits {
        depth: 4,
        in_capsule_bytes: 4096,
        max_transfer_bytes: 65536,
        r2t_window_bytes: 65536,
        flow_control: true,
        success_flag: false,
        admin: false,
    };

    fn command(opcode: Opcode, dptr: SglDescriptor) -> Sqe {
        Sqe {
            dptr,
            ..Sqe::new(opcode)
        }
    }

    fn keyed(length: u32, invalidate: bool) -> SglDescriptor {
        SglDescriptor::keyed(0x1000, length, 0x0403_0201, invalidate).unwrap()
    }

    fn status(sqe: &Sqe, capsule: u32) -> Status {
        transfer(sqe, 64 + capsule, &LIMITS)
            .unwrap_err()
            .status()
            .unwrap()
    }

    #[test]
    fn the_legal_forms() {
        let t =
            |opcode, dptr, capsule: u32| transfer(&command(opcode, dptr), 64 + capsule, &LIMITS);
        let (write, read, flush) = (IoOpcode::WRITE, IoOpcode::READ, IoOpcode::FLUSH);
        let in_capsule = SglDescriptor::in_capsule;
        assert_eq!(t(write, in_capsule(512), 512), Ok(Transfer::InCapsule(512)));
        assert_eq!(
            t(write, in_capsule(4096), 4096),
            Ok(Transfer::InCapsule(4096))
        );
        // A capsule longer than its data.
        assert_eq!(
            t(write, in_capsule(512), 4096),
            Ok(Transfer::InCapsule(512))
        );
        assert_eq!(t(read, keyed(512, false), 4096), Ok(Transfer::ToHost(512)));
        for invalidate in [false, true] {
            let dptr = keyed(65536, invalidate);
            assert_eq!(t(write, dptr, 0), Ok(Transfer::FromHost(65536)));
            assert_eq!(t(read, dptr, 0), Ok(Transfer::ToHost(65536)));
        }
        // Empty, as Linux's host sends it, and where the command moves nothing.
        assert_eq!(t(flush, keyed(0, false), 0), Ok(Transfer::None));
        assert_eq!(t(write, keyed(0, false), 0), Ok(Transfer::None));
        assert_eq!(t(flush, keyed(9, true), 0), Ok(Transfer::None));
        // The key's low byte shares a field with the length and is no part of it.
        let key = SglDescriptor::keyed(0, 0, 0xffff_ffff, false).unwrap();
        assert_eq!(t(write, key, 0), Ok(Transfer::None));
    }

    #[test]
    fn each_wrong_form_has_its_status() {
        let (write, read) = (IoOpcode::WRITE, IoOpcode::READ);
        let length = Status::DATA_SGL_LENGTH_INVALID.dnr();
        for capsule in [0, 1, 511] {
            let sqe = command(write, SglDescriptor::in_capsule(512));
            assert_eq!(status(&sqe, capsule), length);
        }
        let beyond = command(write, SglDescriptor::in_capsule(4097));
        assert_eq!(status(&beyond, 8192), length);
        let offset = SglDescriptor {
            address: U64::new(1),
            ..SglDescriptor::in_capsule(512)
        };
        assert_eq!(
            status(&command(write, offset), 513),
            Status::SGL_OFFSET_INVALID.dnr()
        );
        let kind = Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr();
        assert_eq!(
            status(&command(read, SglDescriptor::in_capsule(512)), 512),
            kind
        );
        for wrong in (0..=255).filter(|k| ![0x01, 0x40, 0x4f].contains(k)) {
            let dptr = SglDescriptor {
                kind: wrong,
                ..SglDescriptor::in_capsule(512)
            };
            assert_eq!(status(&command(write, dptr), 512), kind, "{wrong:02x}h");
        }
        let long = command(write, keyed(65537, false));
        assert_eq!(status(&long, 0), Status::INVALID_FIELD.dnr());
        let longest = command(read, keyed(SglDescriptor::MAX_KEYED_LENGTH_BYTES, true));
        assert_eq!(status(&longest, 0), Status::INVALID_FIELD.dnr());
        for flags in [0x00, 0xc0] {
            let prp = Sqe {
                flags,
                ..command(write, keyed(512, false))
            };
            assert_eq!(status(&prp, 0), Status::INVALID_FIELD.dnr());
        }
    }
}
