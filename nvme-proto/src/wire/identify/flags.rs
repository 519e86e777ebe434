//! The bits of Identify fields.

bitflags::bitflags! {
    /// Controller Multi-Path I/O and Namespace Sharing Capabilities (CMIC).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cmic: u8 {
        /// The subsystem may have two or more ports.
        const MULTIPLE_PORTS = 1 << 0;
        /// The subsystem may have two or more controllers.
        const MULTIPLE_CONTROLLERS = 1 << 1;
        /// The controller is a virtual function.
        const SR_IOV = 1 << 2;
        /// Asymmetric Namespace Access is reported.
        const ANA = 1 << 3;
    }

    /// Optional Asynchronous Events Supported (OAES).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Oaes: u32 {
        /// Namespace Attribute Notices.
        const NAMESPACE_ATTRIBUTE = 1 << 8;
        /// Firmware Activation Notices.
        const FIRMWARE_ACTIVATION = 1 << 9;
        /// Asymmetric Namespace Access Change Notices.
        const ANA_CHANGE = 1 << 11;
        /// Predictable Latency Event Aggregate Log Change Notices.
        const PREDICTABLE_LATENCY = 1 << 12;
        /// LBA Status Information Alert Notices.
        const LBA_STATUS_ALERT = 1 << 13;
        /// Endurance Group Event Aggregate Log Page Change Notices.
        const ENDURANCE_GROUP = 1 << 14;
        /// Normal NVM Subsystem Shutdown event.
        const NORMAL_SHUTDOWN = 1 << 15;
        /// Discovery Log Page Change Notices.
        const DISCOVERY_LOG_CHANGE = 1 << 31;
    }

    /// Controller Attributes (CTRATT).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Ctratt: u32 {
        /// Host Identifiers of 128 bits are supported.
        const HOST_ID_128 = 1 << 0;
        /// Non-Operational Power State Permissive Mode.
        const NON_OP_POWER_PERMISSIVE = 1 << 1;
        /// NVM Sets.
        const NVM_SETS = 1 << 2;
        /// Read Recovery Levels.
        const READ_RECOVERY_LEVELS = 1 << 3;
        /// Endurance Groups.
        const ENDURANCE_GROUPS = 1 << 4;
        /// Predictable Latency Mode.
        const PREDICTABLE_LATENCY = 1 << 5;
        /// Traffic Based Keep Alive Support (TBKAS).
        const TBKAS = 1 << 6;
        /// Namespace Granularity.
        const NAMESPACE_GRANULARITY = 1 << 7;
        /// SQ Associations.
        const SQ_ASSOCIATIONS = 1 << 8;
        /// UUID List.
        const UUID_LIST = 1 << 9;
        /// Multi-Domain Subsystem.
        const MULTI_DOMAIN = 1 << 10;
        /// Fixed Capacity Management.
        const FIXED_CAPACITY = 1 << 11;
        /// Variable Capacity Management.
        const VARIABLE_CAPACITY = 1 << 12;
        /// Extended LBA Formats Supported.
        const EXTENDED_LBA_FORMATS = 1 << 15;
    }

    /// Firmware Updates (FRMW). Bits 3:1 are the number of slots.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Frmw: u8 {
        /// Slot 1 is read only.
        const SLOT1_READ_ONLY = 1 << 0;
        /// One slot in bits 3:1.
        const ONE_SLOT = 1 << 1;
        /// Activation without a reset.
        const ACTIVATION_WITHOUT_RESET = 1 << 4;
    }

    /// Log Page Attributes (LPA).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Lpa: u8 {
        /// SMART log for each namespace.
        const SMART_PER_NAMESPACE = 1 << 0;
        /// Commands Supported and Effects log page.
        const COMMANDS_SUPPORTED_AND_EFFECTS = 1 << 1;
        /// Extended data: 32-bit NUMD and a log page offset.
        const EXTENDED_DATA = 1 << 2;
        /// Telemetry log pages.
        const TELEMETRY = 1 << 3;
        /// Persistent Event log page.
        const PERSISTENT_EVENT = 1 << 4;
        /// Log pages 00h, 12h and 13h, and the scope of each command in 05h.
        const SUPPORTED_PAGES_AND_EFFECTS = 1 << 5;
    }

    /// Optional NVM Command Support (ONCS).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Oncs: u16 {
        /// Compare.
        const COMPARE = 1 << 0;
        /// Write Uncorrectable.
        const WRITE_UNCORRECTABLE = 1 << 1;
        /// Dataset Management.
        const DATASET_MANAGEMENT = 1 << 2;
        /// Write Zeroes.
        const WRITE_ZEROES = 1 << 3;
        /// The Save field of Set Features and the Select field of Get Features.
        const SAVE_AND_SELECT = 1 << 4;
        /// Reservations.
        const RESERVATIONS = 1 << 5;
        /// Timestamp.
        const TIMESTAMP = 1 << 6;
        /// Verify.
        const VERIFY = 1 << 7;
        /// Copy.
        const COPY = 1 << 8;
    }

    /// Volatile Write Cache (VWC).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Vwc: u8 {
        /// A volatile write cache is present.
        const PRESENT = 1 << 0;
        /// Bits 2:1 = 10b: Flush with NSID FFFFFFFFh is not supported.
        const FLUSH_ALL_UNSUPPORTED = 0b10 << 1;
        /// Bits 2:1 = 11b: Flush with NSID FFFFFFFFh is supported.
        const FLUSH_ALL_SUPPORTED = 0b11 << 1;
    }

    /// SGL Support (SGLS). Bits 1:0 = 01b is support without alignment demands.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Sgls: u32 {
        /// SGLs are supported, any alignment.
        const SUPPORTED = 1 << 0;
        /// SGLs are supported, dword aligned.
        const SUPPORTED_DWORD_ALIGNED = 1 << 1;
        /// Keyed SGL Data Block descriptors.
        const KEYED = 1 << 2;
        /// The Address field of a data block descriptor may be an offset (in-capsule data).
        const OFFSET = 1 << 20;
        /// Transport SGL Data Block descriptors.
        const TRANSPORT = 1 << 21;
    }

    /// Optional Fabrics Commands Support (OFCS).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Ofcs: u16 {
        /// Disconnect.
        const DISCONNECT = 1 << 0;
    }

    /// Namespace Features (NSFEAT) of the NVM command set.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Nsfeat: u8 {
        /// Thin provisioning: NSZE, NCAP and NUSE can differ.
        const THIN_PROVISIONING = 1 << 0;
        /// NAWUN, NAWUPF and NACWU are reported.
        const NAMESPACE_ATOMICS = 1 << 1;
        /// Reading deallocated blocks can be made an error (DULBE).
        const DEALLOCATE_ERROR = 1 << 2;
        /// NGUID and EUI64 are never reused.
        const UID_NEVER_REUSED = 1 << 3;
        /// OPTPERF: NPWG, NPWA, NPDG, NPDA and NOWS are reported.
        const OPTIMAL_IO = 1 << 4;
    }

    /// Deallocate Logical Block Features (DLFEAT). Bits 2:0 say what deallocated blocks read as.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Dlfeat: u8 {
        /// 001b: deallocated blocks read as zeroes.
        const READS_ZEROES = 0b001;
        /// 010b: deallocated blocks read as FFh.
        const READS_ONES = 0b010;
        /// The Deallocate bit of Write Zeroes is supported.
        const WRITE_ZEROES_DEALLOCATE = 1 << 3;
    }

    /// Namespace Multi-path I/O and Namespace Sharing Capabilities (NMIC).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Nmic: u8 {
        /// Two or more controllers may be attached at once.
        const SHARED = 1 << 0;
    }

    /// Namespace Attributes (NSATTR).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Nsattr: u8 {
        /// Currently write protected.
        const WRITE_PROTECTED = 1 << 0;
    }

    /// Namespace Status (NSTAT).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Nstat: u8 {
        /// Namespace Ready (NRDY).
        const READY = 1 << 0;
    }
}
