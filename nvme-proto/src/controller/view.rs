//! What a controller sees of its subsystem. The target supplies it anew for each command, so that the
//! controller keeps no copy that could go stale.

use crate::wire::log::{CriticalWarning, DiscoveryEntry};
use crate::wire::text::Ascii;
use crate::wire::{Eui64, Nguid, Nqn, Nsid, Uuid};

/// A subsystem as one of its controllers sees it.
pub trait SubsystemView {
    /// What is the same for all controllers of the subsystem.
    fn subsystem(&self) -> &SubsystemInfo;

    /// The attached namespace `nsid`.
    fn namespace(&self, nsid: Nsid) -> Option<NamespaceInfo>;

    /// The attached namespace with the lowest identifier above `after`.
    fn next_namespace(&self, after: Nsid) -> Option<Nsid>;

    /// The counters of one namespace, or of the controller's whole subsystem.
    fn smart(&self, namespace: Option<Nsid>) -> SmartCounters;

    /// What the discovery service tells the host `host`. Asked of discovery controllers only.
    fn discovery(&self, host: &Nqn) -> DiscoveryRecords;
}

/// What identifies a subsystem.
#[derive(Clone, Debug)]
pub struct SubsystemInfo {
    /// Its name.
    pub nqn: Nqn,
    /// Serial Number, unique to the subsystem.
    pub serial: Ascii<20>,
    /// Model Number.
    pub model: Ascii<40>,
    /// Firmware Revision.
    pub firmware: Ascii<8>,
    /// The largest NSID that there can be (NN).
    pub max_nsid: Nsid,
    /// Whether hosts can reach it through more than one port.
    pub multiple_ports: bool,
}

/// What a host is told of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// log2 of the block size in bytes, 9 to 31.
    pub block_shift: u8,
    /// Size and capacity in blocks.
    pub blocks: u64,
    /// Blocks in use, where the namespace is thin and the backing knows.
    pub used_blocks: Option<u64>,
    /// Write protected.
    pub read_only: bool,
    /// UUID; always there.
    pub uuid: Uuid,
    /// NGUID; zero for none.
    pub nguid: Nguid,
    /// EUI64; zero for none.
    pub eui64: Eui64,
    /// Deallocated blocks read as zeroes, and Write Zeroes may deallocate.
    pub deallocate_reads_zeroes: bool,
    /// How many blocks are written as one even when power fails, at least 1. Never more than the
    /// backing gives: file systems rely on it.
    pub atomic_blocks: u16,
    /// Preferences of the backing.
    pub preferred: Option<PreferredIo>,
}

/// Preferred sizes and alignments, in blocks, each at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreferredIo {
    /// Granularity and alignment of writes (NPWG, NPWA).
    pub write_blocks: u16,
    /// Granularity and alignment of deallocation (NPDG, NPDA).
    pub deallocate_blocks: u16,
    /// Optimal write size (NOWS).
    pub optimal_write_blocks: u16,
}

/// Counters for the SMART log, since the namespace or subsystem came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmartCounters {
    /// What is critical now, apart from temperature thresholds.
    pub critical_warning: CriticalWarning,
    /// Temperature in kelvins, where there is one to report.
    pub temperature_kelvins: Option<u16>,
    /// Spare that is left, in percent.
    pub available_spare_percent: u8,
    /// Bytes read by hosts.
    pub bytes_read: u64,
    /// Bytes written by hosts.
    pub bytes_written: u64,
    /// Read commands completed.
    pub read_commands: u64,
    /// Write commands completed.
    pub write_commands: u64,
    /// Time with commands outstanding, in minutes.
    pub busy_minutes: u64,
    /// Starts of the target.
    pub power_cycles: u64,
    /// Hours since the start.
    pub power_on_hours: u64,
    /// Starts after something else than an orderly stop.
    pub unsafe_shutdowns: u64,
    /// Commands that failed at the backing.
    pub media_errors: u64,
}

impl Default for SmartCounters {
    /// Nothing counted, nothing critical, all spare left.
    fn default() -> Self {
        Self {
            critical_warning: CriticalWarning::empty(),
            temperature_kelvins: None,
            available_spare_percent: 100,
            bytes_read: 0,
            bytes_written: 0,
            read_commands: 0,
            write_commands: 0,
            busy_minutes: 0,
            power_cycles: 0,
            power_on_hours: 0,
            unsafe_shutdowns: 0,
            media_errors: 0,
        }
    }
}

/// What the discovery service tells one host.
#[derive(Clone, Debug, Default)]
pub struct DiscoveryRecords {
    /// Moves with every change that this host can see.
    pub generation: u64,
    /// The entries that this host may see.
    pub entries: Vec<DiscoveryEntry>,
}
