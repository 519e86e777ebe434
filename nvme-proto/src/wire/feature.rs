//! Features: identifiers, the Get Features and Set Features commands, and the values that have parts.

use super::bits::register;
use super::command::Sqe;
use super::ids::Nsid;
use super::opcode::AdminOpcode;
use super::sgl::SglDescriptor;
use zerocopy::little_endian::U32;

/// Feature Identifier (FID).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FeatureId(pub u8);

impl FeatureId {
    /// Arbitration.
    pub const ARBITRATION: Self = Self(0x01);
    /// Power Management.
    pub const POWER_MANAGEMENT: Self = Self(0x02);
    /// Temperature Threshold.
    pub const TEMPERATURE_THRESHOLD: Self = Self(0x04);
    /// Error Recovery, of one namespace.
    pub const ERROR_RECOVERY: Self = Self(0x05);
    /// Volatile Write Cache.
    pub const VOLATILE_WRITE_CACHE: Self = Self(0x06);
    /// Number of Queues.
    pub const NUMBER_OF_QUEUES: Self = Self(0x07);
    /// Write Atomicity Normal.
    pub const WRITE_ATOMICITY: Self = Self(0x0a);
    /// Asynchronous Event Configuration.
    pub const ASYNC_EVENT_CONFIGURATION: Self = Self(0x0b);
    /// Keep Alive Timer.
    pub const KEEP_ALIVE_TIMER: Self = Self(0x0f);
    /// I/O Command Set Profile.
    pub const IO_COMMAND_SET_PROFILE: Self = Self(0x19);
    /// Host Identifier.
    pub const HOST_IDENTIFIER: Self = Self(0x81);
}

/// Select (SEL) of Get Features.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Select {
    /// 000b: the current value.
    Current,
    /// 001b: the default value.
    Default,
    /// 010b: the saved value.
    Saved,
    /// 011b: what can be done with the feature, see [`Capabilities`].
    SupportedCapabilities,
    /// Anything else.
    Reserved(u8),
}

impl Select {
    fn from_bits(bits: u32) -> Self {
        match bits & 0b111 {
            0 => Self::Current,
            1 => Self::Default,
            2 => Self::Saved,
            3 => Self::SupportedCapabilities,
            other => Self::Reserved(other as u8),
        }
    }

    fn bits(self) -> u32 {
        match self {
            Self::Current => 0,
            Self::Default => 1,
            Self::Saved => 2,
            Self::SupportedCapabilities => 3,
            Self::Reserved(other) => u32::from(other) & 0b111,
        }
    }
}

bitflags::bitflags! {
    /// The result of Get Features with [`Select::SupportedCapabilities`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Capabilities: u32 {
        /// The value can be saved over resets.
        const SAVEABLE = 1 << 0;
        /// Each namespace has a value of its own.
        const NAMESPACE_SPECIFIC = 1 << 1;
        /// The value can be changed.
        const CHANGEABLE = 1 << 2;
    }
}

/// The fields of Get Features.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetFeatures {
    /// Namespace, for features that have a value for each.
    pub nsid: Nsid,
    /// Which feature.
    pub fid: FeatureId,
    /// Which of its values.
    pub select: Select,
    /// Dword 11, whose meaning depends on the feature.
    pub cdw11: u32,
}

impl GetFeatures {
    /// The current value of a feature of the controller.
    pub fn current(fid: FeatureId) -> Self {
        Self {
            nsid: Nsid::NONE,
            fid,
            select: Select::Current,
            cdw11: 0,
        }
    }

    /// Reads the fields of an SQE.
    pub fn from_sqe(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        Self {
            nsid: sqe.nsid(),
            fid: FeatureId(cdw10 as u8),
            select: Select::from_bits(cdw10 >> 8),
            cdw11: sqe.cdw11.get(),
        }
    }

    /// An SQE with these fields and room for `data_bytes` of data.
    pub fn to_sqe(self, data_bytes: u32) -> Sqe {
        let mut sqe = Sqe::new(AdminOpcode::GET_FEATURES);
        sqe.nsid = U32::new(self.nsid.0);
        sqe.dptr = SglDescriptor::transport(data_bytes);
        sqe.cdw10 = U32::new(u32::from(self.fid.0) | self.select.bits() << 8);
        sqe.cdw11 = U32::new(self.cdw11);
        sqe
    }
}

/// The fields of Set Features.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetFeatures {
    /// Namespace, for features that have a value for each.
    pub nsid: Nsid,
    /// Which feature.
    pub fid: FeatureId,
    /// Save (SV): keep the value over resets.
    pub save: bool,
    /// Dword 11: the value.
    pub cdw11: u32,
}

impl SetFeatures {
    /// Sets a feature of the controller, without saving.
    pub fn new(fid: FeatureId, cdw11: u32) -> Self {
        Self {
            nsid: Nsid::NONE,
            fid,
            save: false,
            cdw11,
        }
    }

    /// Reads the fields of an SQE.
    pub fn from_sqe(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        Self {
            nsid: sqe.nsid(),
            fid: FeatureId(cdw10 as u8),
            save: cdw10 >> 31 == 1,
            cdw11: sqe.cdw11.get(),
        }
    }

    /// An SQE with these fields and no data.
    pub fn to_sqe(self) -> Sqe {
        let mut sqe = Sqe::new(AdminOpcode::SET_FEATURES);
        sqe.nsid = U32::new(self.nsid.0);
        sqe.dptr = SglDescriptor::transport(0);
        sqe.cdw10 = U32::new(u32::from(self.fid.0) | u32::from(self.save) << 31);
        sqe.cdw11 = U32::new(self.cdw11);
        sqe
    }
}

register! {
    /// Arbitration (01h).
    Arbitration: u32 {
        /// Arbitration Burst (AB), a power of two; 111b is no limit.
        ab with_ab [2:0];
        /// Low Priority Weight (LPW), 0's based.
        lpw with_lpw [15:8];
        /// Medium Priority Weight (MPW), 0's based.
        mpw with_mpw [23:16];
        /// High Priority Weight (HPW), 0's based.
        hpw with_hpw [31:24];
    }
}

impl Arbitration {
    /// A burst of `2^ab` commands (111b: no limit) and no weights.
    pub const fn from_burst(ab: u32) -> Self {
        Self(0).with_ab(ab)
    }

    /// The value without its reserved bits.
    pub const fn defined(self) -> u32 {
        self.0 & 0xffff_ff07
    }
}

register! {
    /// Power Management (02h).
    PowerManagement: u32 {
        /// Power State (PS).
        ps with_ps [4:0];
        /// Workload Hint (WH).
        wh with_wh [7:5];
    }
}

register! {
    /// Temperature Threshold (04h).
    TemperatureThreshold: u32 {
        /// Temperature Threshold (TMPTH), in kelvins.
        tmpth with_tmpth [15:0];
        /// Threshold Temperature Select (TMPSEL): 0 the composite temperature, 1 to 8 a sensor, 15 all.
        tmpsel with_tmpsel [19:16];
        /// Threshold Type Select (THSEL): 0 over, 1 under temperature.
        thsel with_thsel [21:20];
    }
}

register! {
    /// Error Recovery (05h).
    ErrorRecovery: u32 {
        /// Time Limited Error Recovery (TLER), in units of 100 ms, 0 for no time-out.
        tler with_tler [15:0];
        /// Deallocated or Unwritten Logical Block Error Enable (DULBE).
        dulbe with_dulbe [16];
    }
}

register! {
    /// Number of Queues (07h): requested in the command, allocated in the result; all 0's based.
    NumberOfQueues: u32 {
        /// I/O Submission Queues.
        nsq with_nsq [15:0];
        /// I/O Completion Queues.
        ncq with_ncq [31:16];
    }
}

impl NumberOfQueues {
    /// `queues` (1's based, at least 1) of either kind.
    pub const fn both(queues: u16) -> Self {
        let n = queues.saturating_sub(1) as u32;
        Self(n | n << 16)
    }

    /// How many queue pairs this allows, 1's based.
    pub fn pairs(self) -> u32 {
        self.nsq().min(self.ncq()) + 1
    }
}

bitflags::bitflags! {
    /// Asynchronous Event Configuration (0Bh). The bits from 8 upwards are those of OAES.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct AsyncEventConfig: u32 {
        /// SMART: available spare below its threshold.
        const SMART_SPARE = 1 << 0;
        /// SMART: temperature beyond a threshold.
        const SMART_TEMPERATURE = 1 << 1;
        /// SMART: reliability degraded.
        const SMART_RELIABILITY = 1 << 2;
        /// SMART: media read only.
        const SMART_READ_ONLY = 1 << 3;
        /// SMART: volatile memory backup failed.
        const SMART_VOLATILE_BACKUP = 1 << 4;
        /// SMART: persistent memory region unreliable or read only.
        const SMART_PERSISTENT_MEMORY = 1 << 5;
        /// Namespace Attribute Notices.
        const NAMESPACE_ATTRIBUTE = 1 << 8;
        /// Firmware Activation Notices.
        const FIRMWARE_ACTIVATION = 1 << 9;
        /// Asymmetric Namespace Access Change Notices.
        const ANA_CHANGE = 1 << 11;
        /// Discovery Log Page Change Notification.
        const DISCOVERY_LOG_CHANGE = 1 << 31;
    }
}

impl AsyncEventConfig {
    /// All bits about SMART critical warnings.
    pub const SMART: Self = Self::from_bits_retain(0x3f);
}

/// Keep Alive Timer (0Fh) and KATO of Connect are in milliseconds; Identify's KAS in this unit.
pub const KAS_UNIT_MS: u32 = 100;

/// Host Identifier (81h): dword 11 bit 0 (EXHID) asks for the 128-bit form.
pub const HOST_ID_EXHID: u32 = 1 << 0;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    #[test]
    fn golden_commands() {
        let get = GetFeatures {
            nsid: Nsid(1),
            fid: FeatureId::ERROR_RECOVERY,
            select: Select::SupportedCapabilities,
            cdw11: 7,
        };
        let b = get.to_sqe(0);
        assert_eq!(b.as_bytes()[40..48], [0x05, 0x03, 0, 0, 7, 0, 0, 0]);
        let set = SetFeatures {
            save: true,
            ..SetFeatures::new(FeatureId::NUMBER_OF_QUEUES, NumberOfQueues::both(4).0)
        };
        let b = set.to_sqe();
        assert_eq!(b.as_bytes()[40..48], [0x07, 0, 0, 0x80, 3, 0, 3, 0]);
    }

    #[test]
    fn values() {
        assert_eq!(NumberOfQueues(0x0003_0007).pairs(), 4);
        assert_eq!(NumberOfQueues(u32::MAX).pairs(), 0x1_0000);
        let t = TemperatureThreshold(0x001f_0155);
        assert_eq!((t.tmpth(), t.tmpsel(), t.thsel()), (0x155, 15, 1));
        assert!(ErrorRecovery(0x1_0000).dulbe());
        assert_eq!(AsyncEventConfig::SMART.bits(), 0x3f);
    }

    proptest! {
        #[test]
        fn get_round_trip(nsid: u32, fid: u8, sel in 0u32..8, cdw11: u32) {
            let get = GetFeatures { nsid: Nsid(nsid), fid: FeatureId(fid), select: Select::from_bits(sel), cdw11 };
            prop_assert_eq!(GetFeatures::from_sqe(&get.to_sqe(16)), get);
        }

        #[test]
        fn set_round_trip(nsid: u32, fid: u8, save: bool, cdw11: u32) {
            let set = SetFeatures { nsid: Nsid(nsid), fid: FeatureId(fid), save, cdw11 };
            prop_assert_eq!(SetFeatures::from_sqe(&set.to_sqe()), set);
        }
    }
}
