//! Scatter gather list descriptors: the 16 bytes at offset 24 of a submission queue entry.
//!
//! Fabrics use no PRPs and, on TCP, exactly two forms: data inside the capsule ([`SglDescriptor::in_capsule`]) and data that the
//! transport moves ([`SglDescriptor::transport`]). RDMA adds the keyed form.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// An SGL descriptor. The layout is that of the data block form; for keyed descriptors `length` holds the 24-bit length and the
/// low byte of the key, see [`SglDescriptor::keyed_length_bytes`] and [`SglDescriptor::key`].
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct SglDescriptor {
    /// Memory address, or the offset into the capsule's data for an in-capsule descriptor.
    pub address: U64,
    /// Length in bytes.
    pub length: U32,
    /// Reserved in the forms that TCP uses, the upper part of the key in the keyed form.
    pub reserved: [u8; 3],
    /// SGL identifier: descriptor type in bits 7:4, sub type in bits 3:0.
    pub kind: u8,
}

const _: () = assert!(size_of::<SglDescriptor>() == 16);

impl SglDescriptor {
    /// Data Block descriptor, sub type Offset: the data follow the SQE in the capsule.
    pub const KIND_IN_CAPSULE: u8 = 0x01;
    /// Transport SGL Data Block descriptor, sub type Transport specific: the transport moves the data.
    pub const KIND_TRANSPORT: u8 = 0x5a;
    /// Keyed SGL Data Block descriptor, sub type Address.
    pub const KIND_KEYED: u8 = 0x40;
    /// Keyed SGL Data Block descriptor, sub type Fh: the host asks to invalidate the key when the command completes.
    pub const KIND_KEYED_INVALIDATE: u8 = 0x4f;
    /// The longest transfer that a keyed descriptor can name: its length has 24 bits.
    pub const MAX_KEYED_LENGTH_BYTES: u32 = 0x00ff_ffff;

    /// A descriptor for `length_bytes` of data inside the capsule, at offset 0.
    pub const fn in_capsule(length_bytes: u32) -> Self {
        Self::unkeyed(0, length_bytes, Self::KIND_IN_CAPSULE)
    }

    /// A descriptor for `length_bytes` of data that the transport moves.
    pub const fn transport(length_bytes: u32) -> Self {
        Self::unkeyed(0, length_bytes, Self::KIND_TRANSPORT)
    }

    const fn unkeyed(address: u64, length_bytes: u32, kind: u8) -> Self {
        Self {
            address: U64::new(address),
            length: U32::new(length_bytes),
            reserved: [0; 3],
            kind,
        }
    }

    /// A keyed descriptor: `length_bytes` (at most [`Self::MAX_KEYED_LENGTH_BYTES`], else `None`) of the host's memory at `address`
    /// under the remote key `key`.
    pub const fn keyed(
        address: u64,
        length_bytes: u32,
        key: u32,
        invalidate: bool,
    ) -> Option<Self> {
        if length_bytes > Self::MAX_KEYED_LENGTH_BYTES {
            return None;
        }
        let k = key.to_le_bytes();
        Some(Self {
            address: U64::new(address),
            length: U32::new(length_bytes | (k[0] as u32) << 24),
            reserved: [k[1], k[2], k[3]],
            kind: if invalidate {
                Self::KIND_KEYED_INVALIDATE
            } else {
                Self::KIND_KEYED
            },
        })
    }

    /// Whether this is in-capsule data.
    pub const fn is_in_capsule(&self) -> bool {
        self.kind == Self::KIND_IN_CAPSULE
    }

    /// Whether this is data that the transport moves.
    pub const fn is_transport(&self) -> bool {
        self.kind == Self::KIND_TRANSPORT
    }

    /// Whether this is a keyed descriptor of either sub type.
    pub const fn is_keyed(&self) -> bool {
        self.kind == Self::KIND_KEYED || self.kind == Self::KIND_KEYED_INVALIDATE
    }

    /// Descriptor type: bits 7:4 of the SGL identifier.
    pub const fn descriptor_type(&self) -> u8 {
        self.kind >> 4
    }

    /// Descriptor sub type: bits 3:0 of the SGL identifier.
    pub const fn sub_type(&self) -> u8 {
        self.kind & 0xf
    }

    /// The length in bytes, whichever form this is.
    pub fn length_bytes(&self) -> u32 {
        if self.is_keyed() {
            self.keyed_length_bytes()
        } else {
            self.length.get()
        }
    }

    /// Length of a keyed descriptor, in bytes.
    pub fn keyed_length_bytes(&self) -> u32 {
        self.length.get() & Self::MAX_KEYED_LENGTH_BYTES
    }

    /// Remote key of a keyed descriptor.
    pub fn key(&self) -> u32 {
        let low = (self.length.get() >> 24) as u8;
        u32::from_le_bytes([low, self.reserved[0], self.reserved[1], self.reserved[2]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_of_each_form() {
        assert_eq!(
            SglDescriptor::in_capsule(0x1000).as_bytes(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0x01]
        );
        assert_eq!(
            SglDescriptor::transport(0x0102_0304).as_bytes(),
            [0, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0x5a]
        );
        let keyed =
            SglDescriptor::keyed(0x1122_3344_5566_7788, 0x00ab_cdef, 0x0403_0201, true).unwrap();
        assert_eq!(
            keyed.as_bytes(),
            [
                0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xef, 0xcd, 0xab, 1, 2, 3, 4, 0x4f
            ]
        );
        assert_eq!(
            (keyed.length_bytes(), keyed.key()),
            (0x00ab_cdef, 0x0403_0201)
        );
    }

    #[test]
    fn keyed_length_is_bounded() {
        assert!(SglDescriptor::keyed(0, 0x0100_0000, 1, false).is_none());
    }
}
