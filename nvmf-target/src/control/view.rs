//! What a controller is told of its subsystem: the model, as the protocol's admin side asks for it.

use std::net::IpAddr;

use nvme_proto::controller::{
    DiscoveryRecords, NamespaceInfo, SmartCounters, SubsystemInfo, SubsystemView,
};
use nvme_proto::wire::text::Ascii;
use nvme_proto::wire::{Eui64, Nguid, Nqn, Nsid, Uuid};

use super::discovery;
use super::target::{Served, Target};
use crate::config::limits;
use crate::model::{IoTotals, Namespace, Subsystem};

/// What [`SubsystemView::subsystem`] tells, made once for each subsystem.
pub fn subsystem_info(subsystem: &Subsystem) -> SubsystemInfo {
    SubsystemInfo {
        nqn: subsystem.nqn.clone(),
        serial: field(&subsystem.serial),
        model: field(&subsystem.model),
        firmware: field(env!("CARGO_PKG_VERSION")),
        max_nsid: Nsid(*limits::NSID.end() as u32),
        // Controllers are made for every host that connects, so namespaces are shared by nature.
        multiple_ports: true,
    }
}

/// The text as a field; the configuration has judged length and characters.
fn field<const N: usize>(text: &str) -> Ascii<N> {
    let fitting: String = text.chars().take(N).collect();
    Ascii::new(&fitting).unwrap_or(Ascii([b' '; N]))
}

/// The view of one command of one controller.
pub struct View<'a> {
    /// The target.
    pub target: &'a Target,
    /// The controller's subsystem.
    pub served: &'a Served,
    /// Its namespaces and hosts now.
    pub subsystem: &'a Subsystem,
    /// The address that the host connected to.
    pub local: IpAddr,
}

impl View<'_> {
    fn find(&self, nsid: Nsid) -> Option<&Namespace> {
        self.subsystem.namespaces.get(nsid).map(|found| &**found)
    }
}

impl SubsystemView for View<'_> {
    fn subsystem(&self) -> &SubsystemInfo {
        &self.served.info
    }

    fn namespace(&self, nsid: Nsid) -> Option<NamespaceInfo> {
        self.find(nsid).map(describe)
    }

    fn next_namespace(&self, after: Nsid) -> Option<Nsid> {
        let mut nsids = self
            .subsystem
            .namespaces
            .iter()
            .map(|namespace| namespace.nsid);
        nsids.find(|nsid| nsid.0 > after.0)
    }

    fn smart(&self, namespace: Option<Nsid>) -> SmartCounters {
        let mut totals = IoTotals::default();
        let all = self.subsystem.namespaces.iter();
        for found in all.filter(|found| namespace.is_none_or(|nsid| found.nsid == nsid)) {
            totals.add(&found.counters.totals());
        }
        SmartCounters {
            bytes_read: totals.read_bytes,
            bytes_written: totals.written_bytes,
            read_commands: totals.reads,
            write_commands: totals.writes,
            media_errors: totals.media_errors,
            power_cycles: 1,
            power_on_hours: self.target.started.elapsed().as_secs() / 3600,
            ..SmartCounters::default()
        }
    }

    fn discovery(&self, host: &Nqn) -> DiscoveryRecords {
        discovery::records(self.target, host, self.local)
    }
}

fn describe(namespace: &Namespace) -> NamespaceInfo {
    NamespaceInfo {
        block_shift: namespace.geometry.block_shift(),
        blocks: namespace.geometry.blocks(),
        used_blocks: None,
        read_only: namespace.read_only,
        uuid: Uuid(*namespace.ids.uuid.as_bytes()),
        nguid: Nguid(namespace.ids.nguid),
        eui64: Eui64(namespace.ids.eui64),
        deallocate_reads_zeroes: namespace.backing.zeroes_after_deallocate(),
        // Nothing below promises more than its own block.
        atomic_blocks: 1,
        preferred: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_padded_and_never_too_long() {
        assert_eq!(field::<8>("ab").to_string(), "ab");
        assert_eq!(field::<4>("abcdef").to_string(), "abcd");
        assert_eq!(&field::<4>("a").0, b"a   ");
    }
}
