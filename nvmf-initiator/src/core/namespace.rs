//! What the host knows of a namespace: identity, geometry, limits.

use std::fmt;

use nvme_proto::wire::Nsid;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The globally unique identifiers of a namespace, as far as the controller gives any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NamespaceIdentity {
    /// UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// NGUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nguid: Option<Uuid>,
    /// EUI64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eui64: Option<u64>,
}

impl NamespaceIdentity {
    /// Whether both name the same namespace. The lists must agree whole, as the Linux host has it: a controller that
    /// dropped or added an identifier is not trusted to hold the same data.
    pub fn same_as(&self, other: &NamespaceIdentity) -> bool {
        self == other
    }

    /// Whether there is anything to tell the namespace by but its number.
    pub fn is_empty(&self) -> bool {
        *self == NamespaceIdentity::default()
    }
}

/// As udev names it under `/dev/disk/by-id`: `uuid.…`, `nguid.…` reduced to the hexadecimal form, or `eui.…`.
impl fmt::Display for NamespaceIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.uuid, self.nguid, self.eui64) {
            (Some(uuid), _, _) => write!(f, "uuid.{uuid}"),
            (None, Some(nguid), _) => write!(f, "eui.{}", nguid.simple()),
            (None, None, Some(eui64)) => write!(f, "eui.{eui64:016x}"),
            (None, None, None) => f.write_str("none"),
        }
    }
}

/// The largest single commands that the controller takes for a namespace, in blocks. Zero where it has no such command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Read, Write and Compare.
    pub max_transfer_blocks: u32,
    /// Write Zeroes.
    pub max_write_zeroes_blocks: u32,
    /// One range of Dataset Management.
    pub max_discard_blocks: u32,
    /// Whether Compare works.
    pub compare: bool,
}

/// What a controller bounds its commands by, before the size of a block is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CommandBounds {
    pub transfer_bytes: u64,
    pub write_zeroes_bytes: u64,
    pub discard_blocks: u32,
    pub compare: bool,
}

impl CommandBounds {
    /// The same for blocks of this size.
    pub fn limits(&self, block_bytes: u32) -> Limits {
        let blocks = |bytes: u64| u32::try_from(bytes / u64::from(block_bytes)).unwrap_or(u32::MAX);
        Limits {
            // A controller that cannot move one block is one that we misread.
            max_transfer_blocks: blocks(self.transfer_bytes).max(1),
            max_write_zeroes_blocks: blocks(self.write_zeroes_bytes),
            max_discard_blocks: self.discard_blocks,
            compare: self.compare,
        }
    }
}

/// A namespace as its controller describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceInfo {
    /// The identifier on this controller.
    #[serde(with = "as_number")]
    pub nsid: Nsid,
    /// The identifiers that hold everywhere.
    pub identity: NamespaceIdentity,
    /// Bytes of one block.
    pub block_bytes: u32,
    /// Blocks (NSZE).
    pub blocks: u64,
    /// Preferred size of a write in bytes, where the controller says one (NPWG); at least one block.
    pub physical_block_bytes: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether completed writes may sit in a volatile cache until a flush.
    pub volatile_cache: bool,
    /// Bounds of one command.
    pub limits: Limits,
}

mod as_number {
    use nvme_proto::wire::Nsid;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(nsid: &Nsid, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(nsid.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Nsid, D::Error> {
        u32::deserialize(from).map(Nsid)
    }
}

impl NamespaceInfo {
    /// Bytes that the namespace holds.
    pub fn size_bytes(&self) -> u64 {
        self.blocks * u64::from(self.block_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_prefer_the_uuid() {
        let mut identity = NamespaceIdentity {
            eui64: Some(0x1b),
            ..Default::default()
        };
        assert_eq!(identity.to_string(), "eui.000000000000001b");
        identity.nguid = Some(Uuid::from_u128(0xabcd));
        assert_eq!(identity.to_string(), "eui.0000000000000000000000000000abcd");
        identity.uuid = Some(Uuid::from_u128(1));
        assert_eq!(
            identity.to_string(),
            "uuid.00000000-0000-0000-0000-000000000001"
        );
        assert!(NamespaceIdentity::default().is_empty() && !identity.is_empty());
    }

    #[test]
    fn a_dropped_identifier_is_a_change() {
        let both = NamespaceIdentity {
            uuid: Some(Uuid::from_u128(1)),
            eui64: Some(2),
            nguid: None,
        };
        assert!(both.same_as(&both));
        assert!(!both.same_as(&NamespaceIdentity {
            eui64: None,
            ..both
        }));
    }
}
