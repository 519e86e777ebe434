//! Which data a command moves, from its opcode, its SGL descriptor and what its capsule carries.
//!
//! TCP knows two descriptors: in-capsule (type 0h, sub type 1h: an offset into the capsule, which must be 0) and transport (type 5h,
//! sub type Ah: the transport moves the data). A command that fails here completes with a status; what its capsule carries is thrown
//! away.

use super::ADMIN_IN_CAPSULE_BYTES;
use crate::queue::{QueueLimits, Transfer, has_sgl};
use crate::violation::Violation;
use crate::wire::Sqe;

/// Most bytes that the capsule of `sqe` may carry.
#[inline]
pub(super) fn in_capsule_limit(sqe: &Sqe, in_capsule_bytes: u32, admin: bool) -> u32 {
    if admin || sqe.is_fabrics() {
        in_capsule_bytes.max(ADMIN_IN_CAPSULE_BYTES)
    } else {
        in_capsule_bytes
    }
}

/// The transfer of a command whose capsule carries `capsule_bytes`.
#[inline]
pub(super) fn transfer(
    sqe: &Sqe,
    capsule_bytes: u32,
    limits: &QueueLimits,
) -> Result<Transfer, Violation> {
    if !has_sgl(sqe) {
        return Err(Violation::NotSgl(sqe.cid()));
    }
    let sgl = &sqe.dptr;
    let from_host = sqe.is_host_to_controller();
    let to_host = sqe.is_controller_to_host();
    let bytes = sgl.length.get();
    if bytes == 0 || !(from_host || to_host) {
        // No data, whatever the descriptor is: hosts leave it zero or put an empty transport descriptor there.
        return carried(0, capsule_bytes).map(|()| Transfer::None);
    }
    if sgl.is_transport() {
        carried(0, capsule_bytes)?;
        return Transfer::by_transport(from_host, bytes, limits);
    }
    if sgl.is_in_capsule() && from_host {
        let offset = sgl.address.get();
        if offset != 0 {
            return Err(Violation::SglOffset { offset });
        }
        carried(bytes, capsule_bytes)?;
        return Ok(Transfer::InCapsule(bytes));
    }
    Err(Violation::SglType { kind: sgl.kind })
}

#[inline]
fn carried(sgl_bytes: u32, capsule_bytes: u32) -> Result<(), Violation> {
    if sgl_bytes == capsule_bytes {
        Ok(())
    } else {
        Err(Violation::SglLength {
            sgl_bytes,
            capsule_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{FabricsType, IoOpcode, Opcode, SglDescriptor, Status};
    use zerocopy::IntoBytes;
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

    fn status(sqe: &Sqe, capsule_bytes: u32) -> Status {
        transfer(sqe, capsule_bytes, &LIMITS)
            .unwrap_err()
            .status()
            .unwrap()
    }

    #[test]
    fn the_legal_forms() {
        let t = |opcode, dptr, capsule| transfer(&command(opcode, dptr), capsule, &LIMITS);
        let (write, read, flush) = (IoOpcode::WRITE, IoOpcode::READ, IoOpcode::FLUSH);
        assert_eq!(
            t(write, SglDescriptor::in_capsule(512), 512),
            Ok(Transfer::InCapsule(512))
        );
        assert_eq!(
            t(write, SglDescriptor::transport(65536), 0),
            Ok(Transfer::FromHost(65536))
        );
        assert_eq!(
            t(read, SglDescriptor::transport(512), 0),
            Ok(Transfer::ToHost(512))
        );
        assert_eq!(t(flush, SglDescriptor::transport(0), 0), Ok(Transfer::None));
        assert_eq!(t(flush, SglDescriptor::default(), 0), Ok(Transfer::None));
        assert_eq!(t(write, SglDescriptor::default(), 0), Ok(Transfer::None));
        // Of a command that moves no data the descriptor means nothing, whatever it says.
        assert_eq!(t(flush, SglDescriptor::transport(9), 0), Ok(Transfer::None));
    }

    #[test]
    fn each_wrong_form_has_its_status() {
        let (write, read) = (IoOpcode::WRITE, IoOpcode::READ);
        let length = Status::DATA_SGL_LENGTH_INVALID.dnr();
        for capsule in [0, 511, 513, 4096] {
            assert_eq!(
                status(&command(write, SglDescriptor::in_capsule(512)), capsule),
                length
            );
        }
        assert_eq!(
            status(&command(write, SglDescriptor::transport(512)), 512),
            length
        );
        assert_eq!(
            status(&command(read, SglDescriptor::transport(512)), 512),
            length
        );
        assert_eq!(
            status(&command(IoOpcode::FLUSH, SglDescriptor::transport(0)), 1),
            length
        );
        let offset = SglDescriptor {
            address: U64::new(1),
            ..SglDescriptor::in_capsule(512)
        };
        assert_eq!(
            status(&command(write, offset), 512),
            Status::SGL_OFFSET_INVALID.dnr()
        );
        let kind = Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr();
        assert_eq!(
            status(&command(read, SglDescriptor::in_capsule(512)), 512),
            kind
        );
        for wrong in (0..=255).filter(|k| ![0x01, 0x5a].contains(k)) {
            let dptr = SglDescriptor {
                kind: wrong,
                ..SglDescriptor::in_capsule(512)
            };
            assert_eq!(status(&command(write, dptr), 512), kind, "{wrong:02x}h");
        }
        let long = command(write, SglDescriptor::transport(65537));
        assert_eq!(status(&long, 0), Status::INVALID_FIELD.dnr());
        for flags in [0x00, 0xc0] {
            let prp = Sqe {
                flags,
                ..command(write, SglDescriptor::in_capsule(512))
            };
            assert_eq!(status(&prp, 512), Status::INVALID_FIELD.dnr());
        }
    }

    #[test]
    fn admin_and_fabrics_capsules_take_8192_bytes() {
        let mut connect = command(Opcode::FABRICS, SglDescriptor::in_capsule(1024));
        connect.as_mut_bytes()[4] = FabricsType::CONNECT.0;
        connect.flags = 0;
        let none = QueueLimits {
            in_capsule_bytes: 0,
            ..LIMITS
        };
        assert_eq!(in_capsule_limit(&connect, 0, false), 8192);
        assert_eq!(
            transfer(&connect, 1024, &none),
            Ok(Transfer::InCapsule(1024))
        );
        let write = command(IoOpcode::WRITE, SglDescriptor::in_capsule(1024));
        assert_eq!(in_capsule_limit(&write, 0, false), 0);
        assert_eq!(in_capsule_limit(&write, 0, true), 8192);
        assert_eq!(in_capsule_limit(&write, 16384, true), 16384);
    }
}
