//! Identify Controller (CNS 01h).

use super::super::nqn::NQN_FIELD_BYTES;
use super::super::text::Ascii;
use super::IDENTIFY_DATA_BYTES;
use zerocopy::little_endian::{U16, U32, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Identify Controller. Bits are named in [`super::flags`]; fields marked 2.1 were added by that
/// revision and are reserved in earlier ones.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI Vendor ID.
    pub vid: U16,
    /// PCI Subsystem Vendor ID.
    pub ssvid: U16,
    /// Serial Number.
    pub sn: Ascii<20>,
    /// Model Number.
    pub mn: Ascii<40>,
    /// Firmware Revision.
    pub fr: Ascii<8>,
    /// Recommended Arbitration Burst, a power of two.
    pub rab: u8,
    /// IEEE OUI Identifier, low byte first.
    pub ieee: [u8; 3],
    /// Controller Multi-Path I/O and Namespace Sharing Capabilities.
    pub cmic: u8,
    /// Maximum Data Transfer Size: 2^MDTS pages of the minimum memory page size, 0 for no limit.
    pub mdts: u8,
    /// Controller ID.
    pub cntlid: U16,
    /// Version.
    pub ver: U32,
    /// RTD3 Resume Latency, in microseconds.
    pub rtd3r: U32,
    /// RTD3 Entry Latency, in microseconds.
    pub rtd3e: U32,
    /// Optional Asynchronous Events Supported.
    pub oaes: U32,
    /// Controller Attributes.
    pub ctratt: U32,
    /// Read Recovery Levels Supported.
    pub rrls: U16,
    /// Boot Partition Capabilities (2.1).
    pub bpcap: u8,
    reserved103: u8,
    /// NVM Subsystem Shutdown Latency, in microseconds (2.1).
    pub nssl: U32,
    reserved108: [u8; 2],
    /// Power Loss Signaling Information (2.1).
    pub plsi: u8,
    /// Controller Type: 1 I/O, 2 discovery, 3 administrative.
    pub cntrltype: u8,
    /// FRU Globally Unique Identifier.
    pub fguid: [u8; 16],
    /// Command Retry Delay Time 1, in units of 100 ms.
    pub crdt1: U16,
    /// Command Retry Delay Time 2, in units of 100 ms.
    pub crdt2: U16,
    /// Command Retry Delay Time 3, in units of 100 ms.
    pub crdt3: U16,
    /// Controller Reachability Capabilities (2.1).
    pub crcap: u8,
    reserved135: [u8; 118],
    /// NVM Subsystem Report.
    pub nvmsr: u8,
    /// VPD Write Cycle Information.
    pub vwci: u8,
    /// Management Endpoint Capabilities.
    pub mec: u8,
    /// Optional Admin Command Support.
    pub oacs: U16,
    /// Abort Command Limit, 0's based.
    pub acl: u8,
    /// Asynchronous Event Request Limit, 0's based.
    pub aerl: u8,
    /// Firmware Updates.
    pub frmw: u8,
    /// Log Page Attributes.
    pub lpa: u8,
    /// Error Log Page Entries, 0's based.
    pub elpe: u8,
    /// Number of Power States Supported, 0's based.
    pub npss: u8,
    /// Admin Vendor Specific Command Configuration.
    pub avscc: u8,
    /// Autonomous Power State Transition Attributes.
    pub apsta: u8,
    /// Warning Composite Temperature Threshold, in kelvins.
    pub wctemp: U16,
    /// Critical Composite Temperature Threshold, in kelvins.
    pub cctemp: U16,
    /// Maximum Time for Firmware Activation, in units of 100 ms.
    pub mtfa: U16,
    /// Host Memory Buffer Preferred Size, in units of 4 KiB.
    pub hmpre: U32,
    /// Host Memory Buffer Minimum Size, in units of 4 KiB.
    pub hmmin: U32,
    /// Total NVM Capacity, in bytes.
    pub tnvmcap: U128,
    /// Unallocated NVM Capacity, in bytes.
    pub unvmcap: U128,
    /// Replay Protected Memory Block Support.
    pub rpmbs: U32,
    /// Extended Device Self-test Time, in minutes.
    pub edstt: U16,
    /// Device Self-test Options.
    pub dsto: u8,
    /// Firmware Update Granularity, in units of 4 KiB.
    pub fwug: u8,
    /// Keep Alive Support: granularity of the keep alive timer, in units of 100 ms.
    pub kas: U16,
    /// Host Controlled Thermal Management Attributes.
    pub hctma: U16,
    /// Minimum Thermal Management Temperature, in kelvins.
    pub mntmt: U16,
    /// Maximum Thermal Management Temperature, in kelvins.
    pub mxtmt: U16,
    /// Sanitize Capabilities.
    pub sanicap: U32,
    /// Host Memory Buffer Minimum Descriptor Entry Size, in units of 4 KiB.
    pub hmminds: U32,
    /// Host Memory Maximum Descriptors Entries.
    pub hmmaxd: U16,
    /// NVM Set Identifier Maximum.
    pub nsetidmax: U16,
    /// Endurance Group Identifier Maximum.
    pub endgidmax: U16,
    /// ANA Transition Time, in seconds.
    pub anatt: u8,
    /// Asymmetric Namespace Access Capabilities.
    pub anacap: u8,
    /// ANA Group Identifier Maximum.
    pub anagrpmax: U32,
    /// Number of ANA Group Identifiers.
    pub nanagrpid: U32,
    /// Persistent Event Log Size, in units of 64 KiB.
    pub pels: U32,
    /// Domain Identifier.
    pub domain_identifier: U16,
    /// Key Per I/O Capabilities (2.1).
    pub kpioc: u8,
    reserved359: u8,
    /// Maximum Processing Time for Firmware Activation Without Reset, in units of 100 ms (2.1).
    pub mptfawr: U16,
    reserved362: [u8; 6],
    /// Max Endurance Group Capacity, in bytes.
    pub megcap: U128,
    /// Temperature Threshold Hysteresis Attributes (2.1).
    pub tmpthha: u8,
    reserved385: u8,
    /// Command Quiesce Time, in milliseconds (2.1).
    pub cqt: U16,
    reserved388: [u8; 124],
    /// Submission Queue Entry Size: required in bits 3:0, maximum in 7:4, as powers of two.
    pub sqes: u8,
    /// Completion Queue Entry Size: required in bits 3:0, maximum in 7:4, as powers of two.
    pub cqes: u8,
    /// Maximum Outstanding Commands of one I/O queue.
    pub maxcmd: U16,
    /// Number of Namespaces: the largest valid NSID.
    pub nn: U32,
    /// Optional NVM Command Support.
    pub oncs: U16,
    /// Fused Operation Support.
    pub fuses: U16,
    /// Format NVM Attributes.
    pub fna: u8,
    /// Volatile Write Cache.
    pub vwc: u8,
    /// Atomic Write Unit Normal, in logical blocks, 0's based.
    pub awun: U16,
    /// Atomic Write Unit Power Fail, in logical blocks, 0's based.
    pub awupf: U16,
    /// I/O Command Set Vendor Specific Command Configuration.
    pub icsvscc: u8,
    /// Namespace Write Protection Capabilities.
    pub nwpc: u8,
    /// Atomic Compare & Write Unit, in logical blocks, 0's based.
    pub acwu: U16,
    /// Copy Descriptor Formats Supported.
    pub cdfs: U16,
    /// SGL Support.
    pub sgls: U32,
    /// Maximum Number of Allowed Namespaces.
    pub mnan: U32,
    /// Maximum Domain Namespace Attachments.
    pub maxdna: U128,
    /// Maximum I/O Controller Namespace Attachments.
    pub maxcna: U32,
    /// Optimal Aggregated Queue Depth (2.1).
    pub oaqd: U32,
    /// Recommended Host-Initiated Refresh Interval, in days (2.1).
    pub rhiri: u8,
    /// Host-Initiated Refresh Time, in minutes (2.1).
    pub hirt: u8,
    /// Controller Maximum Memory Range Tracking Descriptors (2.1).
    pub cmmrtd: U16,
    /// NVM Subsystem Maximum Memory Range Tracking Descriptors (2.1).
    pub nmmrtd: U16,
    /// Minimum Memory Range Tracking Granularity (2.1).
    pub minmrtg: u8,
    /// Maximum Memory Range Tracking Granularity (2.1).
    pub maxmrtg: u8,
    /// Tracking Attributes (2.1).
    pub trattr: u8,
    reserved577: u8,
    /// Maximum Controller User Data Migration Queues (2.1).
    pub mcudmq: U16,
    /// Maximum NVM Subsystem User Data Migration Queues (2.1).
    pub mnsudmq: U16,
    /// Maximum CDQ Memory Ranges (2.1).
    pub mcmr: U16,
    /// NVM Subsystem Maximum CDQ Memory Ranges (2.1).
    pub nmcmr: U16,
    /// Maximum Controller Data Queue PRP Count (2.1).
    pub mcdqpc: U16,
    reserved588: [u8; 180],
    /// NVM Subsystem NVMe Qualified Name.
    pub subnqn: [u8; NQN_FIELD_BYTES],
    reserved1024: [u8; 768],
    /// I/O Queue Command Capsule Supported Size, in units of 16 bytes.
    pub ioccsz: U32,
    /// I/O Queue Response Capsule Supported Size, in units of 16 bytes.
    pub iorcsz: U32,
    /// In Capsule Data Offset, in units of 16 bytes.
    pub icdoff: U16,
    /// Fabrics Controller Attributes.
    pub fcatt: u8,
    /// Maximum SGL Data Block Descriptors.
    pub msdbd: u8,
    /// Optional Fabrics Commands Support.
    pub ofcs: U16,
    /// Discovery Controller Type: 0 not reported, 1 direct, 2 central.
    pub dctype: u8,
    reserved1807: [u8; 241],
    /// Power State Descriptors.
    pub psd: [PowerStateDescriptor; 32],
    /// Vendor Specific.
    pub vendor_specific: [u8; 1024],
}

const _: () = assert!(size_of::<IdentifyController>() == IDENTIFY_DATA_BYTES);

impl IdentifyController {
    /// CNTRLTYPE of an I/O controller.
    pub const CNTRLTYPE_IO: u8 = 1;
    /// CNTRLTYPE of a discovery controller.
    pub const CNTRLTYPE_DISCOVERY: u8 = 2;
    /// DCTYPE of a direct discovery controller.
    pub const DCTYPE_DIRECT: u8 = 1;

    /// All zero.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }

    /// Largest transfer in bytes, given the minimum memory page size; `None` for no limit.
    pub fn mdts_bytes(&self, page_bytes: u32) -> Option<u64> {
        (self.mdts != 0).then(|| {
            u64::from(page_bytes)
                .checked_shl(self.mdts.into())
                .unwrap_or(u64::MAX)
        })
    }

    /// In-capsule data that an I/O queue accepts, in bytes: IOCCSZ without the SQE.
    pub fn in_capsule_bytes(&self) -> u32 {
        self.ioccsz.get().saturating_mul(16).saturating_sub(64)
    }
}

/// Power State Descriptor.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PowerStateDescriptor {
    /// Maximum Power, in centiwatts unless bit 0 of `flags` is set (then 0.1 mW).
    pub mp: U16,
    reserved2: u8,
    /// Max Power Scale in bit 0, Non-Operational State in bit 1.
    pub flags: u8,
    /// Entry Latency, in microseconds.
    pub enlat: U32,
    /// Exit Latency, in microseconds.
    pub exlat: U32,
    /// Relative Read Throughput.
    pub rrt: u8,
    /// Relative Read Latency.
    pub rrl: u8,
    /// Relative Write Throughput.
    pub rwt: u8,
    /// Relative Write Latency.
    pub rwl: u8,
    /// Idle Power.
    pub idlp: U16,
    /// Idle Power Scale in bits 7:6.
    pub ips: u8,
    reserved19: u8,
    /// Active Power.
    pub actp: U16,
    /// Active Power Workload in bits 2:0, Active Power Scale in bits 7:6.
    pub apw_aps: u8,
    reserved23: [u8; 9],
}

const _: () = assert!(size_of::<PowerStateDescriptor>() == 32);

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    /// Offsets as the specification's table gives them.
    #[test]
    fn fields_are_where_the_standard_puts_them() {
        macro_rules! at { ($($field:ident = $offset:literal),* $(,)?) => {
            $(assert_eq!(offset_of!(IdentifyController, $field), $offset, stringify!($field));)*
        } }
        at!(
            vid = 0,
            ssvid = 2,
            sn = 4,
            mn = 24,
            fr = 64,
            rab = 72,
            ieee = 73,
            cmic = 76,
            mdts = 77,
            cntlid = 78,
            ver = 80,
            rtd3r = 84,
            rtd3e = 88,
            oaes = 92,
            ctratt = 96,
            rrls = 100,
            bpcap = 102,
            nssl = 104,
            plsi = 110,
            cntrltype = 111,
            fguid = 112,
            crdt1 = 128,
            crdt2 = 130,
            crdt3 = 132,
            crcap = 134,
            nvmsr = 253,
            vwci = 254,
            mec = 255,
            oacs = 256,
            acl = 258,
            aerl = 259,
            frmw = 260,
            lpa = 261,
            elpe = 262,
            npss = 263,
            avscc = 264,
            apsta = 265,
            wctemp = 266,
            cctemp = 268,
            mtfa = 270,
            hmpre = 272,
            hmmin = 276,
            tnvmcap = 280,
            unvmcap = 296,
            rpmbs = 312,
            edstt = 316,
            dsto = 318,
            fwug = 319,
            kas = 320,
            hctma = 322,
            mntmt = 324,
            mxtmt = 326,
            sanicap = 328,
            hmminds = 332,
            hmmaxd = 336,
            nsetidmax = 338,
            endgidmax = 340,
            anatt = 342,
            anacap = 343,
            anagrpmax = 344,
            nanagrpid = 348,
            pels = 352,
            domain_identifier = 356,
            kpioc = 358,
            mptfawr = 360,
            megcap = 368,
            tmpthha = 384,
            cqt = 386,
            sqes = 512,
            cqes = 513,
            maxcmd = 514,
            nn = 516,
            oncs = 520,
            fuses = 522,
            fna = 524,
            vwc = 525,
            awun = 526,
            awupf = 528,
            icsvscc = 530,
            nwpc = 531,
            acwu = 532,
            cdfs = 534,
            sgls = 536,
            mnan = 540,
            maxdna = 544,
            maxcna = 560,
            oaqd = 564,
            rhiri = 568,
            hirt = 569,
            cmmrtd = 570,
            nmmrtd = 572,
            minmrtg = 574,
            maxmrtg = 575,
            trattr = 576,
            mcudmq = 578,
            mnsudmq = 580,
            mcmr = 582,
            nmcmr = 584,
            mcdqpc = 586,
            subnqn = 768,
            ioccsz = 1792,
            iorcsz = 1796,
            icdoff = 1800,
            fcatt = 1802,
            msdbd = 1803,
            ofcs = 1804,
            dctype = 1806,
            psd = 2048,
            vendor_specific = 3072,
        );
    }

    #[test]
    fn derived_sizes() {
        let mut id = IdentifyController::zeroed();
        assert_eq!(id.mdts_bytes(4096), None);
        id.mdts = 8;
        assert_eq!(id.mdts_bytes(4096), Some(1 << 20));
        id.mdts = 255;
        assert_eq!(
            id.mdts_bytes(4096),
            Some(u64::MAX),
            "nonsense from a peer is no panic"
        );
        id.ioccsz = U32::new((64 + 16384) / 16);
        assert_eq!(id.in_capsule_bytes(), 16384);
        id.ioccsz = U32::new(0);
        assert_eq!(id.in_capsule_bytes(), 0);
        id.ioccsz = U32::new(u32::MAX);
        assert!(id.in_capsule_bytes() > 0);
    }
}
