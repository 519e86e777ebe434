//! Log pages: which there are, and what they say.

use super::fault::Fault;
use super::view::SubsystemView;
use super::{Controller, ControllerKind, features, ops};
use crate::wire::identify::Csi;
use crate::wire::log::{
    CriticalWarning, DiscoveryEntry, DiscoveryHeader, EffectsLog, FirmwareSlotLog, GetLogPage,
    LogId, SmartLog, SupportedLogs,
};
use crate::wire::{Nsid, Sqe};
use std::collections::BTreeSet;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U128};

/// Log pages of either kind of controller.
pub(super) const fn supported(kind: ControllerKind) -> &'static [LogId] {
    match kind {
        ControllerKind::Io => &[
            LogId::SUPPORTED,
            LogId::ERROR,
            LogId::SMART,
            LogId::FIRMWARE_SLOT,
            LogId::CHANGED_NAMESPACES,
            LogId::COMMAND_EFFECTS,
            LogId::FEATURE_EFFECTS,
            LogId::MI_EFFECTS,
        ],
        ControllerKind::Discovery => &[
            LogId::SUPPORTED,
            LogId::ERROR,
            LogId::COMMAND_EFFECTS,
            LogId::FEATURE_EFFECTS,
            LogId::MI_EFFECTS,
            LogId::DISCOVERY,
        ],
    }
}

/// Namespaces that changed since the host last read the list.
#[derive(Debug, Default)]
pub(super) struct ChangedNamespaces {
    nsids: BTreeSet<Nsid>,
    overflow: bool,
}

impl ChangedNamespaces {
    /// The most that the page can list.
    const MAX: usize = 1024;

    pub fn add(&mut self, nsid: Nsid) {
        if self.nsids.len() == Self::MAX && !self.nsids.contains(&nsid) {
            self.overflow = true;
        } else if !self.overflow {
            self.nsids.insert(nsid);
        }
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    fn page(&self) -> Vec<u8> {
        use crate::wire::identify::NamespaceList;
        // More than fit: the first entry says "all", the rest is zero.
        let list = match self.overflow {
            true => NamespaceList::new([Nsid::ALL]),
            false => NamespaceList::new(self.nsids.iter().copied()),
        };
        list.as_bytes().to_vec()
    }
}

impl Controller {
    pub(super) fn get_log_page(
        &mut self,
        sqe: &Sqe,
        view: &dyn SubsystemView,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let get = GetLogPage::from_sqe(sqe);
        if !supported(self.init.kind).contains(&get.lid) {
            return Err(Fault::UnsupportedLog(get.lid));
        }
        let length = get.length_bytes();
        let limit = self.init.limits.max_transfer_bytes;
        if length > limit.into() {
            return Err(Fault::TransferTooLong {
                bytes: length,
                limit,
            });
        }
        super::expect_bytes(sqe, length)?;
        if get.offset_is_index {
            return Err(Fault::LogIndexOffset);
        }
        if !get.lpo.is_multiple_of(4) {
            return Err(Fault::LogOffset(get.lpo));
        }
        let page = self.log_page(&get, view)?;
        let offset = usize::try_from(get.lpo).ok().filter(|&o| o <= page.len());
        let rest = offset
            .map(|o| &page[o..])
            .ok_or(Fault::LogOffset(get.lpo))?;
        // `length` is at most MDTS. What lies past the end of the page is zero.
        let length = length as usize;
        out.extend_from_slice(&rest[..rest.len().min(length)]);
        out.resize(length, 0);
        if !get.rae {
            self.events.acknowledge(get.lid);
            if get.lid == LogId::CHANGED_NAMESPACES {
                self.changed_namespaces.clear();
            }
        }
        Ok(())
    }

    fn log_page(&self, get: &GetLogPage, view: &dyn SubsystemView) -> Result<Vec<u8>, Fault> {
        let kind = self.init.kind;
        Ok(match get.lid {
            LogId::SUPPORTED => SupportedLogs::new(supported(kind)).as_bytes().to_vec(),
            LogId::ERROR => self.errors.page(),
            LogId::SMART => self.smart_page(get.nsid, view)?.as_bytes().to_vec(),
            LogId::FIRMWARE_SLOT => FirmwareSlotLog::one_slot(view.subsystem().firmware)
                .as_bytes()
                .to_vec(),
            LogId::CHANGED_NAMESPACES => self.changed_namespaces.page(),
            LogId::COMMAND_EFFECTS if get.csi != Csi::NVM => {
                return Err(Fault::UnsupportedCsi(get.csi));
            }
            LogId::COMMAND_EFFECTS => ops::effects_log(kind).as_bytes().to_vec(),
            LogId::FEATURE_EFFECTS => features::effects_log(kind).as_bytes().to_vec(),
            // There is no management interface: none of its commands is supported.
            LogId::MI_EFFECTS => EffectsLog::empty().as_bytes().to_vec(),
            LogId::DISCOVERY => self.discovery_page(view),
            other => return Err(Fault::UnsupportedLog(other)),
        })
    }

    fn smart_page(&self, nsid: Nsid, view: &dyn SubsystemView) -> Result<SmartLog, Fault> {
        let namespace = match nsid {
            Nsid::NONE | Nsid::ALL => None,
            one => Some(
                view.namespace(one)
                    .map(|_| one)
                    .ok_or(Fault::InvalidNsid(one))?,
            ),
        };
        let counters = view.smart(namespace);
        let mut log = SmartLog::zeroed();
        log.critical_warning = self.critical_warning(view).bits();
        log.composite_temperature = U16::new(counters.temperature_kelvins.unwrap_or(0));
        log.available_spare = counters.available_spare_percent;
        log.data_units_read = SmartLog::data_units(counters.bytes_read);
        log.data_units_written = SmartLog::data_units(counters.bytes_written);
        let wide = |n: u64| U128::new(n.into());
        log.host_read_commands = wide(counters.read_commands);
        log.host_write_commands = wide(counters.write_commands);
        log.controller_busy_time = wide(counters.busy_minutes);
        log.power_cycles = wide(counters.power_cycles);
        log.power_on_hours = wide(counters.power_on_hours);
        log.unsafe_shutdowns = wide(counters.unsafe_shutdowns);
        log.media_errors = wide(counters.media_errors);
        log.error_log_entries = wide(self.errors.count());
        Ok(log)
    }

    /// What is critical now, temperature thresholds included.
    pub(super) fn critical_warning(&self, view: &dyn SubsystemView) -> CriticalWarning {
        let counters = view.smart(None);
        counters.critical_warning
            | self
                .features
                .temperature_warning(counters.temperature_kelvins)
    }

    fn discovery_page(&self, view: &dyn SubsystemView) -> Vec<u8> {
        let records = view.discovery(&self.init.host_nqn);
        let header = DiscoveryHeader::new(records.generation, records.entries.len() as u64);
        let mut page = Vec::with_capacity(
            DiscoveryHeader::SIZE + records.entries.len() * DiscoveryEntry::SIZE,
        );
        page.extend_from_slice(header.as_bytes());
        for entry in &records.entries {
            page.extend_from_slice(entry.as_bytes());
        }
        page
    }
}
