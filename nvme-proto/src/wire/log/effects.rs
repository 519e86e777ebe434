//! Pages that say what is supported: log pages (00h), commands (05h) and features (12h).

use super::LogId;
use crate::wire::feature::FeatureId;
use crate::wire::opcode::Opcode;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

bitflags::bitflags! {
    /// What a log page supports, in the Supported Log Pages page. Bits 31:16 are specific to the page.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SupportedLog: u32 {
        /// LID Supported (LSUPP).
        const SUPPORTED = 1 << 0;
        /// Index Offset Supported (IOS).
        const INDEX_OFFSET = 1 << 1;
    }

    /// Commands Supported and Effects of one command.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct CommandEffects: u32 {
        /// Command Supported (CSUPP).
        const SUPPORTED = 1 << 0;
        /// Logical Block Content Change (LBCC).
        const BLOCK_CONTENT_CHANGE = 1 << 1;
        /// Namespace Capability Change (NCC).
        const NAMESPACE_CAPABILITY_CHANGE = 1 << 2;
        /// Namespace Inventory Change (NIC).
        const NAMESPACE_INVENTORY_CHANGE = 1 << 3;
        /// Controller Capability Change (CCC).
        const CONTROLLER_CAPABILITY_CHANGE = 1 << 4;
        /// Command Scope: the namespace.
        const SCOPE_NAMESPACE = 1 << 20;
        /// Command Scope: the controller.
        const SCOPE_CONTROLLER = 1 << 21;
        /// Command Scope: the NVM subsystem.
        const SCOPE_SUBSYSTEM = 1 << 25;
    }

    /// Feature Identifiers Supported and Effects of one feature.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FeatureEffects: u32 {
        /// FID Supported (FSUPP).
        const SUPPORTED = 1 << 0;
        /// User Data Content Change (UDCC).
        const USER_DATA_CHANGE = 1 << 1;
        /// Namespace Capability Change (NCC).
        const NAMESPACE_CAPABILITY_CHANGE = 1 << 2;
        /// Namespace Inventory Change (NIC).
        const NAMESPACE_INVENTORY_CHANGE = 1 << 3;
        /// Controller Capability Change (CCC).
        const CONTROLLER_CAPABILITY_CHANGE = 1 << 4;
        /// FID Scope: the namespace.
        const SCOPE_NAMESPACE = 1 << 20;
        /// FID Scope: the controller.
        const SCOPE_CONTROLLER = 1 << 21;
    }
}

/// Supported Log Pages (00h).
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(transparent)]
pub struct SupportedLogs {
    pages: [U32; 256],
}

const _: () = assert!(size_of::<SupportedLogs>() == 1024);

impl SupportedLogs {
    /// Exactly `pages` are supported.
    pub fn new(pages: &[LogId]) -> Self {
        let mut log = Self::new_zeroed();
        for page in pages {
            log.pages[usize::from(page.0)] = U32::new(SupportedLog::SUPPORTED.bits());
        }
        log
    }

    /// What the log says of `page`.
    pub fn get(&self, page: LogId) -> SupportedLog {
        SupportedLog::from_bits_retain(self.pages[usize::from(page.0)].get())
    }
}

/// Commands Supported and Effects (05h). The NVMe-MI page (13h) has the size of this one.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct EffectsLog {
    admin: [U32; 256],
    io: [U32; 256],
    reserved2048: [u8; 2048],
}

const _: () = assert!(size_of::<EffectsLog>() == 4096);

impl EffectsLog {
    /// Nothing is supported.
    pub fn empty() -> Self {
        Self::new_zeroed()
    }

    /// What the log says of an admin command.
    pub fn admin(&self, opcode: Opcode) -> CommandEffects {
        CommandEffects::from_bits_retain(self.admin[usize::from(opcode.0)].get())
    }

    /// What the log says of an I/O command.
    pub fn io(&self, opcode: Opcode) -> CommandEffects {
        CommandEffects::from_bits_retain(self.io[usize::from(opcode.0)].get())
    }

    /// Sets the effects of an admin command.
    pub fn set_admin(&mut self, opcode: Opcode, effects: CommandEffects) {
        self.admin[usize::from(opcode.0)] = U32::new(effects.bits());
    }

    /// Sets the effects of an I/O command.
    pub fn set_io(&mut self, opcode: Opcode, effects: CommandEffects) {
        self.io[usize::from(opcode.0)] = U32::new(effects.bits());
    }
}

/// Feature Identifiers Supported and Effects (12h).
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(transparent)]
pub struct FeatureEffectsLog {
    features: [U32; 256],
}

const _: () = assert!(size_of::<FeatureEffectsLog>() == 1024);

impl FeatureEffectsLog {
    /// Nothing is supported.
    pub fn empty() -> Self {
        Self::new_zeroed()
    }

    /// What the log says of a feature.
    pub fn get(&self, fid: FeatureId) -> FeatureEffects {
        FeatureEffects::from_bits_retain(self.features[usize::from(fid.0)].get())
    }

    /// Sets the effects of a feature.
    pub fn set(&mut self, fid: FeatureId, effects: FeatureEffects) {
        self.features[usize::from(fid.0)] = U32::new(effects.bits());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::opcode::{AdminOpcode, IoOpcode};

    #[test]
    fn golden() {
        let pages = SupportedLogs::new(&[LogId::SUPPORTED, LogId::FEATURE_EFFECTS]);
        assert_eq!(
            (
                pages.as_bytes()[0],
                pages.as_bytes()[4],
                pages.as_bytes()[0x12 * 4]
            ),
            (1, 0, 1)
        );
        assert_eq!(pages.get(LogId::FEATURE_EFFECTS), SupportedLog::SUPPORTED);

        let mut log = EffectsLog::empty();
        log.set_admin(AdminOpcode::IDENTIFY, CommandEffects::SUPPORTED);
        log.set_io(
            IoOpcode::WRITE,
            CommandEffects::SUPPORTED | CommandEffects::BLOCK_CONTENT_CHANGE,
        );
        assert_eq!(log.as_bytes()[6 * 4], 1);
        assert_eq!(log.as_bytes()[1024 + 4], 3);
        assert_eq!(log.io(IoOpcode::READ), CommandEffects::empty());

        let mut features = FeatureEffectsLog::empty();
        features.set(FeatureId::KEEP_ALIVE_TIMER, FeatureEffects::SUPPORTED);
        assert_eq!(features.as_bytes()[0x0f * 4], 1);
    }
}
