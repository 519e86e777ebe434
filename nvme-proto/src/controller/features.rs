//! Features: which there are, what they can hold, and what they hold.
//!
//! None can be saved (they are back at their default after a reset), so SEL "saved" answers as "default"
//! does.

use super::events::Events;
use super::fault::Fault;
use super::keep_alive::KeepAlive;
use super::{ControllerKind, SubsystemView};
use crate::wire::feature::{
    Arbitration, AsyncEventConfig, Capabilities, ErrorRecovery, FeatureId, GetFeatures,
    HOST_ID_EXHID, NumberOfQueues, PowerManagement, Select, SetFeatures, TemperatureThreshold,
};
use crate::wire::log::{CriticalWarning, FeatureEffects, FeatureEffectsLog};
use crate::wire::{HostId, Nsid};
use std::collections::BTreeMap;

struct Spec {
    fid: FeatureId,
    capabilities: Capabilities,
    discovery: bool,
}

const fn spec(fid: FeatureId, capabilities: Capabilities, discovery: bool) -> Spec {
    Spec {
        fid,
        capabilities,
        discovery,
    }
}

const CHANGEABLE: Capabilities = Capabilities::CHANGEABLE;
const FIXED: Capabilities = Capabilities::empty();

/// All features. The volatile write cache is always on: whoever wants durable writes uses FUA or Flush.
const FEATURES: &[Spec] = &[
    spec(FeatureId::ARBITRATION, CHANGEABLE, false),
    spec(FeatureId::POWER_MANAGEMENT, CHANGEABLE, false),
    spec(FeatureId::TEMPERATURE_THRESHOLD, CHANGEABLE, false),
    spec(
        FeatureId::ERROR_RECOVERY,
        CHANGEABLE.union(Capabilities::NAMESPACE_SPECIFIC),
        false,
    ),
    spec(FeatureId::VOLATILE_WRITE_CACHE, FIXED, false),
    spec(FeatureId::NUMBER_OF_QUEUES, CHANGEABLE, false),
    spec(FeatureId::WRITE_ATOMICITY, CHANGEABLE, false),
    spec(FeatureId::ASYNC_EVENT_CONFIGURATION, CHANGEABLE, true),
    spec(FeatureId::KEEP_ALIVE_TIMER, CHANGEABLE, true),
    spec(FeatureId::IO_COMMAND_SET_PROFILE, CHANGEABLE, false),
    spec(FeatureId::HOST_IDENTIFIER, FIXED, false),
];

fn find(fid: FeatureId, kind: ControllerKind) -> Result<&'static Spec, Fault> {
    FEATURES
        .iter()
        .find(|spec| spec.fid == fid && (spec.discovery || kind == ControllerKind::Io))
        .ok_or(Fault::UnsupportedFeature(fid))
}

/// The page that lists the features of a controller of kind `kind`.
pub(super) fn effects_log(kind: ControllerKind) -> FeatureEffectsLog {
    let mut log = FeatureEffectsLog::empty();
    for spec in FEATURES.iter().filter(|spec| find(spec.fid, kind).is_ok()) {
        let scope = match spec.capabilities.contains(Capabilities::NAMESPACE_SPECIFIC) {
            true => FeatureEffects::SCOPE_NAMESPACE,
            false => FeatureEffects::SCOPE_CONTROLLER,
        };
        log.set(spec.fid, FeatureEffects::SUPPORTED | scope);
    }
    log
}

/// Arbitration at first: no limit on the burst. Round robin is the only mechanism.
const ARBITRATION_DEFAULT: u32 = Arbitration::from_burst(0b111).0;
/// Temperature thresholds at first, in kelvins: never reached.
const OVER_TEMPERATURE_DEFAULT: u16 = u16::MAX;
const UNDER_TEMPERATURE_DEFAULT: u16 = 0;

/// The values that are nowhere else.
#[derive(Debug)]
pub(super) struct Features {
    arbitration: u32,
    workload_hint: u32,
    over_temperature_kelvins: u16,
    under_temperature_kelvins: u16,
    /// Time Limited Error Recovery of namespaces where it was set.
    tler: BTreeMap<Nsid, u32>,
    disable_normal_atomicity: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            arbitration: ARBITRATION_DEFAULT,
            workload_hint: 0,
            over_temperature_kelvins: OVER_TEMPERATURE_DEFAULT,
            under_temperature_kelvins: UNDER_TEMPERATURE_DEFAULT,
            tler: BTreeMap::new(),
            disable_normal_atomicity: false,
        }
    }
}

/// What of the controller the features reach into.
pub(super) struct Parts<'a> {
    pub kind: ControllerKind,
    pub host_id: HostId,
    pub max_io_queues: u16,
    pub io_queues_exist: bool,
    pub keep_alive: &'a mut KeepAlive,
    pub events: &'a mut Events,
    pub view: &'a dyn SubsystemView,
}

/// What Get Features answers with.
pub(super) enum Value {
    Dword0(u32),
    HostId(HostId),
}

impl Features {
    /// Whether `kelvins` is beyond a threshold.
    pub fn temperature_warning(&self, kelvins: Option<u16>) -> CriticalWarning {
        let beyond = kelvins.is_some_and(|k| {
            k >= self.over_temperature_kelvins || k <= self.under_temperature_kelvins
        });
        if beyond {
            CriticalWarning::TEMPERATURE
        } else {
            CriticalWarning::empty()
        }
    }

    pub fn get(&self, get: &GetFeatures, parts: &Parts<'_>) -> Result<Value, Fault> {
        let spec = find(get.fid, parts.kind)?;
        let current = match get.select {
            Select::Current => true,
            Select::Default | Select::Saved => false,
            Select::SupportedCapabilities => return Ok(Value::Dword0(spec.capabilities.bits())),
            Select::Reserved(sel) => return Err(Fault::ReservedSelect(sel)),
        };
        let defaults = Self::default();
        let values = if current { self } else { &defaults };
        let dword0 = match get.fid {
            FeatureId::ARBITRATION => values.arbitration,
            FeatureId::POWER_MANAGEMENT => {
                PowerManagement::default().with_wh(values.workload_hint).0
            }
            FeatureId::TEMPERATURE_THRESHOLD => {
                let asked = TemperatureThreshold(get.cdw11);
                match (asked.tmpsel(), asked.thsel()) {
                    (0, 0) => values.over_temperature_kelvins.into(),
                    (0, 1) => values.under_temperature_kelvins.into(),
                    // There are no sensors beside the composite temperature.
                    _ => {
                        return Err(Fault::FeatureValue {
                            fid: get.fid,
                            value: get.cdw11,
                        });
                    }
                }
            }
            FeatureId::ERROR_RECOVERY => {
                parts
                    .view
                    .namespace(get.nsid)
                    .ok_or(Fault::InvalidNsid(get.nsid))?;
                let tler = values.tler.get(&get.nsid).copied().unwrap_or(0);
                ErrorRecovery::default().with_tler(tler).0
            }
            FeatureId::VOLATILE_WRITE_CACHE => 1,
            FeatureId::NUMBER_OF_QUEUES => NumberOfQueues::both(parts.max_io_queues).0,
            FeatureId::WRITE_ATOMICITY => values.disable_normal_atomicity.into(),
            FeatureId::ASYNC_EVENT_CONFIGURATION if current => parts.events.config().bits(),
            FeatureId::ASYNC_EVENT_CONFIGURATION => parts.events.default_config().bits(),
            FeatureId::KEEP_ALIVE_TIMER if current => parts.keep_alive.timeout_ms(),
            FeatureId::KEEP_ALIVE_TIMER => 0,
            FeatureId::IO_COMMAND_SET_PROFILE => 0,
            FeatureId::HOST_IDENTIFIER if get.cdw11 & HOST_ID_EXHID == 0 => {
                // Fabrics hosts have identifiers of 128 bits.
                return Err(Fault::FeatureValue {
                    fid: get.fid,
                    value: get.cdw11,
                });
            }
            FeatureId::HOST_IDENTIFIER => return Ok(Value::HostId(parts.host_id)),
            other => return Err(Fault::UnsupportedFeature(other)),
        };
        Ok(Value::Dword0(dword0))
    }

    /// Sets a feature; the result is dword 0 of the completion.
    pub fn set(&mut self, set: &SetFeatures, parts: &mut Parts<'_>) -> Result<u32, Fault> {
        let spec = find(set.fid, parts.kind)?;
        if set.save {
            return Err(Fault::NotSaveable(set.fid));
        }
        if set.fid == FeatureId::HOST_IDENTIFIER {
            return Err(Fault::HostIdentifierFixed);
        }
        if !spec.capabilities.contains(Capabilities::CHANGEABLE) {
            return Err(Fault::NotChangeable(set.fid));
        }
        let of_namespace = spec.capabilities.contains(Capabilities::NAMESPACE_SPECIFIC);
        if !of_namespace && !matches!(set.nsid, Nsid::NONE | Nsid::ALL) {
            return Err(Fault::NotNamespaceSpecific(set.fid));
        }
        let bad_value = Fault::FeatureValue {
            fid: set.fid,
            value: set.cdw11,
        };
        match set.fid {
            FeatureId::ARBITRATION => self.arbitration = Arbitration(set.cdw11).defined(),
            FeatureId::POWER_MANAGEMENT => {
                let power = PowerManagement(set.cdw11);
                // NPSS is 0: there is power state 0 alone.
                if power.ps() != 0 {
                    return Err(bad_value);
                }
                self.workload_hint = power.wh();
            }
            FeatureId::TEMPERATURE_THRESHOLD => {
                let threshold = TemperatureThreshold(set.cdw11);
                // The composite temperature by name or with "all"; there are no other sensors.
                match (threshold.tmpsel(), threshold.thsel()) {
                    (0 | 15, 0) => self.over_temperature_kelvins = threshold.tmpth() as u16,
                    (0 | 15, 1) => self.under_temperature_kelvins = threshold.tmpth() as u16,
                    _ => return Err(bad_value),
                }
            }
            FeatureId::ERROR_RECOVERY => self.set_error_recovery(set, parts.view)?,
            FeatureId::NUMBER_OF_QUEUES => {
                let asked = NumberOfQueues(set.cdw11);
                // 65536 queues, 0's based, are more than there can be.
                if asked.nsq() == 0xffff || asked.ncq() == 0xffff {
                    return Err(bad_value);
                }
                if parts.io_queues_exist {
                    return Err(Fault::IoQueuesExist);
                }
                return Ok(NumberOfQueues::both(parts.max_io_queues).0);
            }
            FeatureId::WRITE_ATOMICITY => self.disable_normal_atomicity = set.cdw11 & 1 == 1,
            FeatureId::ASYNC_EVENT_CONFIGURATION => {
                let config = AsyncEventConfig::from_bits_retain(set.cdw11);
                if !parts.events.supported().contains(config) {
                    return Err(bad_value);
                }
                parts.events.configure(config);
            }
            FeatureId::KEEP_ALIVE_TIMER => parts.keep_alive.set_timeout(set.cdw11),
            FeatureId::IO_COMMAND_SET_PROFILE => {
                let index = set.cdw11 & 0x1ff;
                if index != 0 {
                    return Err(Fault::CommandSetCombination(index));
                }
            }
            other => return Err(Fault::UnsupportedFeature(other)),
        }
        Ok(0)
    }

    fn set_error_recovery(
        &mut self,
        set: &SetFeatures,
        view: &dyn SubsystemView,
    ) -> Result<(), Fault> {
        let value = ErrorRecovery(set.cdw11);
        // NSFEAT does not offer errors for deallocated blocks.
        if value.dulbe() {
            return Err(Fault::FeatureValue {
                fid: set.fid,
                value: set.cdw11,
            });
        }
        if set.nsid == Nsid::ALL {
            let mut last = Nsid::NONE;
            while let Some(nsid) = view.next_namespace(last) {
                self.tler.insert(nsid, value.tler());
                last = nsid;
            }
            return Ok(());
        }
        view.namespace(set.nsid)
            .ok_or(Fault::InvalidNsid(set.nsid))?;
        self.tler.insert(set.nsid, value.tler());
        Ok(())
    }
}
