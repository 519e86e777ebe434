//! Discovery (70h): a header of 1024 bytes and one entry of 1024 bytes for each way to a subsystem.

use crate::wire::ids::Cntlid;
use crate::wire::nqn::{NQN_FIELD_BYTES, Nqn, NqnError};
use crate::wire::text::Ascii;
use core::fmt;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The header of the page.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DiscoveryHeader {
    /// Generation Counter (GENCTR): moves with every change of the page.
    pub genctr: U64,
    /// Number of Records (NUMREC).
    pub numrec: U64,
    /// Record Format (RECFMT): 0.
    pub recfmt: U16,
    reserved18: [u8; 1006],
}

const _: () = assert!(size_of::<DiscoveryHeader>() == DiscoveryHeader::SIZE);

impl DiscoveryHeader {
    /// Size in bytes.
    pub const SIZE: usize = 1024;

    /// A header for `numrec` entries at generation `genctr`.
    pub fn new(genctr: u64, numrec: u64) -> Self {
        Self {
            genctr: U64::new(genctr),
            numrec: U64::new(numrec),
            ..Self::new_zeroed()
        }
    }
}

macro_rules! code {
    ($(#[$doc:meta])* $name:ident { $($(#[$cdoc:meta])* $constant:ident = $value:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
        #[repr(transparent)]
        pub struct $name(pub u8);

        impl $name {
            $($(#[$cdoc])* pub const $constant: Self = Self($value);)*
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($value => f.write_str($text),)*
                    other => write!(f, "unknown ({other})"),
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

code! {
    /// Transport Type (TRTYPE); `Display` gives nvme-cli's word for it.
    TransportType {
        /// RDMA.
        RDMA = 1, "rdma";
        /// Fibre Channel.
        FC = 2, "fc";
        /// TCP.
        TCP = 3, "tcp";
        /// Host-internal.
        LOOP = 254, "loop";
    }
}

code! {
    /// Address Family (ADRFAM); `Display` gives nvme-cli's word for it.
    AddressFamily {
        /// PCI.
        PCI = 0, "pci";
        /// IPv4.
        IPV4 = 1, "ipv4";
        /// IPv6.
        IPV6 = 2, "ipv6";
        /// InfiniBand.
        IB = 3, "infiniband";
        /// Fibre Channel.
        FC = 4, "fibre-channel";
    }
}

code! {
    /// Subsystem Type (SUBTYPE); `Display` gives nvme-cli's words for it.
    SubsystemType {
        /// Referral to another discovery subsystem.
        REFERRAL = 1, "discovery subsystem referral";
        /// An NVM subsystem.
        NVM = 2, "nvme subsystem";
        /// The discovery subsystem that is being asked.
        CURRENT_DISCOVERY = 3, "current discovery subsystem";
    }
}

code! {
    /// Security Type (SECTYPE) of the TCP transport: first byte of TSAS.
    TcpSecurity {
        /// No security.
        NONE = 0, "none";
        /// TLS 1.2.
        TLS_1_2 = 1, "tls";
        /// TLS 1.3.
        TLS_1_3 = 2, "tls13";
    }
}

/// Transport Requirements (TREQ): the secure channel in bits 1:0, SQ flow control in bit 2.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(transparent)]
pub struct Treq(pub u8);

impl Treq {
    /// Whether a secure channel is needed is not said.
    pub const SECURE_NOT_SPECIFIED: u8 = 0;
    /// A secure channel is required.
    pub const SECURE_REQUIRED: u8 = 1;
    /// A secure channel is not required.
    pub const SECURE_NOT_REQUIRED: u8 = 2;

    /// `secure` is one of the constants above; `disable_sqflow` says that the controller can do
    /// without submission queue flow control.
    pub const fn new(secure: u8, disable_sqflow: bool) -> Self {
        Self(secure & 0b11 | (disable_sqflow as u8) << 2)
    }

    /// The secure channel part.
    pub const fn secure_channel(self) -> u8 {
        self.0 & 0b11
    }

    /// Whether the controller can do without submission queue flow control.
    pub const fn can_disable_sq_flow_control(self) -> bool {
        self.0 & 0b100 != 0
    }
}

bitflags::bitflags! {
    /// Entry Flags (EFLAGS).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Eflags: u16 {
        /// Duplicate Returned Information: all ports of this discovery service return the same.
        const DUPLICATE_INFORMATION = 1 << 0;
        /// Explicit Persistent Connection Support for Discovery.
        const PERSISTENT_CONNECTION = 1 << 1;
        /// No CDC Connectivity.
        const NO_CDC_CONNECTIVITY = 1 << 2;
    }
}

/// One entry.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DiscoveryEntry {
    /// Transport Type.
    pub trtype: TransportType,
    /// Address Family.
    pub adrfam: AddressFamily,
    /// Subsystem Type.
    pub subtype: SubsystemType,
    /// Transport Requirements.
    pub treq: Treq,
    /// Port ID.
    pub portid: U16,
    /// Controller ID: FFFFh for the dynamic model.
    pub cntlid: U16,
    /// Admin Max SQ Size, in entries.
    pub asqsz: U16,
    /// Entry Flags.
    pub eflags: U16,
    reserved12: [u8; 20],
    /// Transport Service Identifier: the port number in decimal.
    pub trsvcid: Ascii<32>,
    reserved64: [u8; 192],
    /// NVM Subsystem Qualified Name.
    pub subnqn: [u8; NQN_FIELD_BYTES],
    /// Transport Address.
    pub traddr: Ascii<256>,
    /// Transport Specific Address Subtype; for TCP the first byte is the security type.
    pub tsas: [u8; 256],
}

const _: () = assert!(size_of::<DiscoveryEntry>() == DiscoveryEntry::SIZE);

/// What an entry says about RDMA (Transport Specific Address Subtype).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RdmaSpecific {
    /// RDMA QP Service Type (RDMA_QPTYPE).
    pub qptype: u8,
    /// RDMA Provider Type (RDMA_PRTYPE).
    pub prtype: u8,
    /// RDMA Connection Management Service (RDMA_CMS).
    pub cms: u8,
    /// Partition key (RDMA_PKEY), of InfiniBand.
    pub pkey: u16,
}

impl RdmaSpecific {
    /// RDMA_QPTYPE in words.
    pub fn qptype_name(&self) -> &'static str {
        match self.qptype {
            1 => "connected",
            2 => "datagram",
            _ => "unrecognized",
        }
    }

    /// RDMA_PRTYPE in words.
    pub fn prtype_name(&self) -> &'static str {
        match self.prtype {
            1 => "not specified",
            2 => "infiniband",
            3 => "roce",
            4 => "roce-v2",
            5 => "iwarp",
            _ => "unrecognized",
        }
    }

    /// RDMA_CMS in words.
    pub fn cms_name(&self) -> &'static str {
        match self.cms {
            1 => "rdma-cm",
            _ => "unrecognized",
        }
    }
}

impl DiscoveryEntry {
    /// Size in bytes.
    pub const SIZE: usize = 1024;

    /// An entry for TCP, dynamic controller model. `None` if `traddr` or `trsvcid` is longer than its
    /// field or not ASCII.
    pub fn tcp(
        adrfam: AddressFamily,
        traddr: &str,
        trsvcid: &str,
        subtype: SubsystemType,
        subnqn: &Nqn,
        treq: Treq,
        security: TcpSecurity,
    ) -> Option<Self> {
        let mut entry = Self {
            trtype: TransportType::TCP,
            adrfam,
            subtype,
            treq,
            cntlid: U16::new(Cntlid::DYNAMIC.0),
            trsvcid: Ascii::new(trsvcid)?,
            subnqn: subnqn.to_field(),
            traddr: Ascii::new(traddr)?,
            ..Self::new_zeroed()
        };
        entry.tsas[0] = security.0;
        Some(entry)
    }

    /// An entry for RDMA: as [`DiscoveryEntry::tcp`], by connected queue pairs and the connection manager, over any provider.
    pub fn rdma(
        adrfam: AddressFamily,
        traddr: &str,
        trsvcid: &str,
        subtype: SubsystemType,
        subnqn: &Nqn,
        treq: Treq,
    ) -> Option<Self> {
        let mut entry = Self::tcp(
            adrfam,
            traddr,
            trsvcid,
            subtype,
            subnqn,
            treq,
            TcpSecurity::NONE,
        )?;
        entry.trtype = TransportType::RDMA;
        // RDMA_QPTYPE: connected; RDMA_PRTYPE: not specified; RDMA_CMS: the RDMA connection manager.
        entry.tsas[..3].copy_from_slice(&[1, 1, 1]);
        Some(entry)
    }

    /// The subsystem's name.
    pub fn nqn(&self) -> Result<Nqn, NqnError> {
        Nqn::from_field(&self.subnqn)
    }

    /// Entry flags.
    pub fn flags(&self) -> Eflags {
        Eflags::from_bits_retain(self.eflags.get())
    }

    /// How queue pairs are connected, where the transport is RDMA.
    pub fn rdma_specific(&self) -> RdmaSpecific {
        let [qptype, prtype, cms, .., low, high] = *self
            .tsas
            .first_chunk::<10>()
            .expect("the field is longer than that");
        RdmaSpecific {
            qptype,
            prtype,
            cms,
            pkey: u16::from_le_bytes([low, high]),
        }
    }

    /// Security type, where the transport is TCP.
    pub fn tcp_security(&self) -> TcpSecurity {
        TcpSecurity(self.tsas[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn golden() {
        let nqn: Nqn = "nqn.2024-01.io.example:a".parse().unwrap();
        let mut entry = DiscoveryEntry::tcp(
            AddressFamily::IPV4,
            "192.0.2.1",
            "4420",
            SubsystemType::NVM,
            &nqn,
            Treq::new(Treq::SECURE_NOT_REQUIRED, true),
            TcpSecurity::NONE,
        )
        .unwrap();
        entry.portid = U16::new(0x0102);
        entry.asqsz = U16::new(32);
        entry.eflags = U16::new(Eflags::PERSISTENT_CONNECTION.bits());
        let b = entry.as_bytes();
        assert_eq!(b[..12], [3, 1, 2, 6, 2, 1, 0xff, 0xff, 32, 0, 2, 0]);
        assert_eq!(&b[32..40], b"4420    ");
        assert_eq!(&b[256..281], b"nqn.2024-01.io.example:a\0");
        assert_eq!(&b[512..522], b"192.0.2.1 ");
        assert_eq!(b[768], 0);
        assert_eq!(entry.nqn().unwrap(), nqn);
        assert!(entry.treq.can_disable_sq_flow_control());
        assert_eq!(entry.treq.secure_channel(), Treq::SECURE_NOT_REQUIRED);
        assert_eq!(entry.flags(), Eflags::PERSISTENT_CONNECTION);
    }

    #[test]
    fn an_rdma_entry_says_how_to_connect() {
        let nqn = Nqn::discovery();
        let treq = Treq::new(Treq::SECURE_NOT_SPECIFIED, true);
        let (family, subtype) = (AddressFamily::IPV6, SubsystemType::CURRENT_DISCOVERY);
        let entry = DiscoveryEntry::rdma(family, "fd00::7", "4420", subtype, &nqn, treq).unwrap();
        let b = entry.as_bytes();
        assert_eq!(b[..4], [1, 2, 3, 4]);
        assert_eq!(b[768..776], [1, 1, 1, 0, 0, 0, 0, 0]);
        let mut specific = entry.rdma_specific();
        assert_eq!(
            (
                specific.qptype_name(),
                specific.prtype_name(),
                specific.cms_name()
            ),
            ("connected", "not specified", "rdma-cm")
        );
        let mut other = entry;
        other.tsas[1..10].copy_from_slice(&[4, 9, 0, 0, 0, 0, 0, 0xff, 0x7f]);
        specific = other.rdma_specific();
        assert_eq!(specific.pkey, 0x7fff);
        assert_eq!(
            (specific.prtype_name(), specific.cms_name()),
            ("roce-v2", "unrecognized")
        );
    }

    #[test]
    fn header_layout() {
        let h = DiscoveryHeader::new(5, 2);
        assert_eq!(
            h.as_bytes()[..18],
            [5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(offset_of!(DiscoveryEntry, tsas), 768);
    }

    #[test]
    fn too_long_an_address_is_refused() {
        let entry = |traddr: &str| {
            let treq = Treq::new(Treq::SECURE_NOT_SPECIFIED, false);
            DiscoveryEntry::tcp(
                AddressFamily::IPV6,
                traddr,
                "1",
                SubsystemType::NVM,
                &Nqn::discovery(),
                treq,
                TcpSecurity::NONE,
            )
        };
        assert!(entry(&"a".repeat(257)).is_none());
        assert!(entry(&"a".repeat(256)).is_some());
        assert_eq!(TransportType(9).to_string(), "unknown (9)");
    }
}
