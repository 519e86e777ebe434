//! Identify: the command and the data structures that it returns.

mod command_set;
mod controller;
mod descriptor;
pub mod flags;
mod lists;
mod namespace;

pub use command_set::{IoCommandSets, NvmIdentifyController, NvmIdentifyNamespace};
pub use controller::{IdentifyController, PowerStateDescriptor};
pub use descriptor::{Descriptor, DescriptorKind, DescriptorList, descriptors};
pub use lists::NamespaceList;
pub use namespace::{IdentifyNamespace, IndependentNamespace, LbaFormat};

use super::command::Sqe;
use super::ids::{Cntlid, Nsid};
use super::opcode::AdminOpcode;
use super::sgl::SglDescriptor;
use zerocopy::little_endian::U32;

/// Size of every Identify data structure, in bytes.
pub const IDENTIFY_DATA_BYTES: usize = 4096;

/// Controller or Namespace Structure (CNS): which data structure is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Cns(pub u8);

impl Cns {
    /// Identify Namespace, NVM command set.
    pub const NAMESPACE: Self = Self(0x00);
    /// Identify Controller.
    pub const CONTROLLER: Self = Self(0x01);
    /// Active Namespace ID list.
    pub const ACTIVE_NAMESPACES: Self = Self(0x02);
    /// Namespace Identification Descriptor list.
    pub const NAMESPACE_DESCRIPTORS: Self = Self(0x03);
    /// I/O Command Set specific Identify Namespace.
    pub const CSI_NAMESPACE: Self = Self(0x05);
    /// I/O Command Set specific Identify Controller.
    pub const CSI_CONTROLLER: Self = Self(0x06);
    /// I/O Command Set specific Active Namespace ID list.
    pub const CSI_ACTIVE_NAMESPACES: Self = Self(0x07);
    /// I/O Command Set Independent Identify Namespace.
    pub const INDEPENDENT_NAMESPACE: Self = Self(0x08);
    /// Identify I/O Command Set.
    pub const IO_COMMAND_SETS: Self = Self(0x1c);
}

/// Command Set Identifier (CSI).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Csi(pub u8);

impl Csi {
    /// NVM command set.
    pub const NVM: Self = Self(0x00);
}

/// The fields of an Identify command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdentifyCommand {
    /// Namespace, where the structure is about one.
    pub nsid: Nsid,
    /// Which structure.
    pub cns: Cns,
    /// Controller, where the structure is about one.
    pub cntid: Cntlid,
    /// Command set, where the structure is specific to one.
    pub csi: Csi,
}

impl IdentifyCommand {
    /// Identify of structure `cns`, about `nsid` where that matters, for the NVM command set.
    pub fn new(cns: Cns, nsid: Nsid) -> Self {
        Self {
            nsid,
            cns,
            cntid: Cntlid(0),
            csi: Csi::NVM,
        }
    }

    /// Reads the fields of an SQE.
    pub fn from_sqe(sqe: &Sqe) -> Self {
        let (cdw10, cdw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        Self {
            nsid: sqe.nsid(),
            cns: Cns(cdw10 as u8),
            cntid: Cntlid((cdw10 >> 16) as u16),
            csi: Csi((cdw11 >> 24) as u8),
        }
    }

    /// An SQE with these fields, asking for 4096 bytes.
    pub fn to_sqe(self) -> Sqe {
        let mut sqe = Sqe::new(AdminOpcode::IDENTIFY);
        sqe.nsid = U32::new(self.nsid.0);
        sqe.dptr = SglDescriptor::transport(IDENTIFY_DATA_BYTES as u32);
        sqe.cdw10 = U32::new(u32::from(self.cns.0) | u32::from(self.cntid.0) << 16);
        sqe.cdw11 = U32::new(u32::from(self.csi.0) << 24);
        sqe
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    #[test]
    fn golden_identify_command() {
        let sqe = IdentifyCommand {
            nsid: Nsid(1),
            cns: Cns::CSI_NAMESPACE,
            cntid: Cntlid(0x0203),
            csi: Csi(2),
        }
        .to_sqe();
        let b = sqe.as_bytes();
        assert_eq!(b[..8], [0x06, 0x40, 0, 0, 1, 0, 0, 0]);
        assert_eq!(
            b[32..48],
            [
                0x00, 0x10, 0, 0, 0, 0, 0, 0x5a, 0x05, 0, 0x03, 0x02, 0, 0, 0, 2
            ]
        );
    }

    proptest! {
        #[test]
        fn command_round_trip(nsid: u32, cns: u8, cntid: u16, csi: u8) {
            let command = IdentifyCommand { nsid: Nsid(nsid), cns: Cns(cns), cntid: Cntlid(cntid), csi: Csi(csi) };
            prop_assert_eq!(IdentifyCommand::from_sqe(&command.to_sqe()), command);
        }
    }
}
