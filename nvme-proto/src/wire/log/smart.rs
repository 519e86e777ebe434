//! SMART / Health Information (02h).

use zerocopy::little_endian::{U16, U32, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

bitflags::bitflags! {
    /// Critical Warning.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct CriticalWarning: u8 {
        /// The available spare is below its threshold.
        const SPARE = 1 << 0;
        /// A temperature is beyond a threshold.
        const TEMPERATURE = 1 << 1;
        /// The subsystem's reliability is degraded.
        const RELIABILITY = 1 << 2;
        /// The media is read only.
        const READ_ONLY = 1 << 3;
        /// The volatile memory backup failed.
        const VOLATILE_BACKUP = 1 << 4;
        /// The persistent memory region is unreliable or read only.
        const PERSISTENT_MEMORY = 1 << 5;
    }
}

/// SMART / Health Information.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SmartLog {
    /// Critical Warning.
    pub critical_warning: u8,
    /// Composite Temperature, in kelvins.
    pub composite_temperature: U16,
    /// Available Spare, in percent.
    pub available_spare: u8,
    /// Available Spare Threshold, in percent.
    pub available_spare_threshold: u8,
    /// Percentage Used.
    pub percentage_used: u8,
    /// Endurance Group Critical Warning Summary.
    pub endurance_group_critical_warning: u8,
    reserved7: [u8; 25],
    /// Data Units Read, in units of 1000 times 512 bytes, rounded up.
    pub data_units_read: U128,
    /// Data Units Written, in units of 1000 times 512 bytes, rounded up.
    pub data_units_written: U128,
    /// Host Read Commands.
    pub host_read_commands: U128,
    /// Host Write Commands.
    pub host_write_commands: U128,
    /// Controller Busy Time, in minutes.
    pub controller_busy_time: U128,
    /// Power Cycles.
    pub power_cycles: U128,
    /// Power On Hours.
    pub power_on_hours: U128,
    /// Unsafe Shutdowns.
    pub unsafe_shutdowns: U128,
    /// Media and Data Integrity Errors.
    pub media_errors: U128,
    /// Number of Error Information Log Entries over the controller's life.
    pub error_log_entries: U128,
    /// Warning Composite Temperature Time, in minutes.
    pub warning_temperature_time: U32,
    /// Critical Composite Temperature Time, in minutes.
    pub critical_temperature_time: U32,
    /// Temperature Sensors 1 to 8, in kelvins; 0 where there is none.
    pub temperature_sensors: [U16; 8],
    /// Thermal Management Temperature 1 Transition Count.
    pub thermal_transitions_1: U32,
    /// Thermal Management Temperature 2 Transition Count.
    pub thermal_transitions_2: U32,
    /// Total Time For Thermal Management Temperature 1, in seconds.
    pub thermal_time_1: U32,
    /// Total Time For Thermal Management Temperature 2, in seconds.
    pub thermal_time_2: U32,
    reserved232: [u8; 280],
}

const _: () = assert!(size_of::<SmartLog>() == 512);

impl SmartLog {
    /// All zero.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }

    /// Bytes as the log counts data units: 1000 times 512 bytes, rounded up.
    pub fn data_units(bytes: u64) -> U128 {
        U128::new(u128::from(bytes.div_ceil(512_000)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn fields_are_where_the_standard_puts_them() {
        macro_rules! at { ($($field:ident = $offset:literal),* $(,)?) => {
            $(assert_eq!(offset_of!(SmartLog, $field), $offset, stringify!($field));)*
        } }
        at!(
            critical_warning = 0,
            composite_temperature = 1,
            available_spare = 3,
            available_spare_threshold = 4,
            percentage_used = 5,
            endurance_group_critical_warning = 6,
            data_units_read = 32,
            data_units_written = 48,
            host_read_commands = 64,
            host_write_commands = 80,
            controller_busy_time = 96,
            power_cycles = 112,
            power_on_hours = 128,
            unsafe_shutdowns = 144,
            media_errors = 160,
            error_log_entries = 176,
            warning_temperature_time = 192,
            critical_temperature_time = 196,
            temperature_sensors = 200,
            thermal_transitions_1 = 216,
            thermal_time_1 = 224,
            thermal_time_2 = 228,
        );
    }

    #[test]
    fn data_units_round_up() {
        assert_eq!(SmartLog::data_units(0).get(), 0);
        assert_eq!(SmartLog::data_units(1).get(), 1);
        assert_eq!(SmartLog::data_units(512_000).get(), 1);
        assert_eq!(SmartLog::data_units(512_001).get(), 2);
    }
}
