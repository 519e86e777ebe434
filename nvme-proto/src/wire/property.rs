//! Controller properties: what PCIe calls registers, read and written with Property Get and Set.

use super::bits::register;

/// The offset that names a property.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Property(pub u32);

impl Property {
    /// Controller Capabilities, 8 bytes, read only.
    pub const CAP: Self = Self(0x00);
    /// Version, 4 bytes, read only.
    pub const VS: Self = Self(0x08);
    /// Controller Configuration, 4 bytes.
    pub const CC: Self = Self(0x14);
    /// Controller Status, 4 bytes, read only here.
    pub const CSTS: Self = Self(0x1c);
    /// NVM Subsystem Reset, 4 bytes.
    pub const NSSR: Self = Self(0x20);
    /// Controller Ready Timeouts, 4 bytes, read only.
    pub const CRTO: Self = Self(0x68);

    /// Size in bytes, for the properties that exist on message-based transports.
    pub const fn size_bytes(self) -> Option<u8> {
        match self {
            Self::CAP => Some(8),
            Self::VS | Self::CC | Self::CSTS | Self::NSSR | Self::CRTO => Some(4),
            _ => None,
        }
    }
}

/// The value ("NVMe" in ASCII) that, written to NSSR, resets the NVM subsystem.
pub const NSSR_RESET: u32 = 0x4e56_4d65;

register! {
    /// Controller Capabilities (CAP).
    Cap: u64 {
        /// Maximum Queue Entries Supported (MQES), 0's based.
        mqes with_mqes [15:0];
        /// Contiguous Queues Required (CQR): always 1 on message-based transports.
        cqr with_cqr [16];
        /// Arbitration Mechanism Supported (AMS), beyond round robin.
        ams with_ams [18:17];
        /// Timeout (TO) for CC.EN to show in CSTS.RDY, in units of 500 ms.
        to with_to [31:24];
        /// Doorbell Stride (DSTRD): 0 on message-based transports.
        dstrd with_dstrd [35:32];
        /// NVM Subsystem Reset Supported (NSSRS).
        nssrs with_nssrs [36];
        /// Command Sets Supported (CSS): bit 0 the NVM command set, bit 6 I/O command sets that CC.CSS
        /// 110b selects, bit 7 no I/O command set.
        css with_css [44:37];
        /// Boot Partition Support (BPS).
        bps with_bps [45];
        /// Controller Power Scope (CPS).
        cps with_cps [47:46];
        /// Memory Page Size Minimum (MPSMIN): 2^(12 + MPSMIN) bytes.
        mpsmin with_mpsmin [51:48];
        /// Memory Page Size Maximum (MPSMAX): 2^(12 + MPSMAX) bytes.
        mpsmax with_mpsmax [55:52];
        /// Persistent Memory Region Supported (PMRS).
        pmrs with_pmrs [56];
        /// Controller Memory Buffer Supported (CMBS).
        cmbs with_cmbs [57];
        /// NVM Subsystem Shutdown Supported (NSSS).
        nsss with_nsss [58];
        /// CRMS: Controller Ready With Media Support (CRWMS); mandatory from version 2.0.
        crwms with_crwms [59];
        /// CRMS: Controller Ready Independent of Media Support (CRIMS).
        crims with_crims [60];
    }
}

impl Cap {
    /// CSS bit 0: the NVM command set.
    pub const CSS_NVM: u64 = 1 << 0;
    /// CSS bit 6: one or more I/O command sets, selected with CC.CSS = 110b.
    pub const CSS_IOCSS: u64 = 1 << 6;
    /// CSS bit 7: no I/O command set.
    pub const CSS_NOIOCSS: u64 = 1 << 7;
}

register! {
    /// Version (VS).
    Vs: u32 {
        /// Tertiary version number (TER).
        ter with_ter [7:0];
        /// Minor version number (MNR).
        mnr with_mnr [15:8];
        /// Major version number (MJR).
        mjr with_mjr [31:16];
    }
}

impl Vs {
    /// Version 2.0.0, which this crate claims.
    pub const V2_0: Self = Self(0x0002_0000);
}

register! {
    /// Controller Configuration (CC).
    Cc: u32 {
        /// Enable (EN).
        en with_en [0];
        /// I/O Command Set Selected (CSS).
        css with_css [6:4];
        /// Memory Page Size (MPS): 2^(12 + MPS) bytes.
        mps with_mps [10:7];
        /// Arbitration Mechanism Selected (AMS).
        ams with_ams [13:11];
        /// Shutdown Notification (SHN).
        shn with_shn [15:14];
        /// I/O Submission Queue Entry Size (IOSQES), a power of two: 6 means 64 bytes.
        iosqes with_iosqes [19:16];
        /// I/O Completion Queue Entry Size (IOCQES), a power of two: 4 means 16 bytes.
        iocqes with_iocqes [23:20];
        /// Controller Ready Independent of Media Enable (CRIME).
        crime with_crime [24];
    }
}

impl Cc {
    /// CSS 000b: the NVM command set.
    pub const CSS_NVM: u32 = 0b000;
    /// CSS 110b: all I/O command sets that the controller supports.
    pub const CSS_IOCSS: u32 = 0b110;
    /// CSS 111b: the admin command set only.
    pub const CSS_ADMIN: u32 = 0b111;
    /// SHN 00b: no notification.
    pub const SHN_NONE: u32 = 0b00;
    /// SHN 01b: normal shutdown.
    pub const SHN_NORMAL: u32 = 0b01;
    /// SHN 10b: abrupt shutdown.
    pub const SHN_ABRUPT: u32 = 0b10;
    /// The entry size that IOSQES must name.
    pub const IOSQES: u32 = 6;
    /// The entry size that IOCQES must name.
    pub const IOCQES: u32 = 4;
}

register! {
    /// Controller Status (CSTS).
    Csts: u32 {
        /// Ready (RDY).
        rdy with_rdy [0];
        /// Controller Fatal Status (CFS).
        cfs with_cfs [1];
        /// Shutdown Status (SHST).
        shst with_shst [3:2];
        /// NVM Subsystem Reset Occurred (NSSRO).
        nssro with_nssro [4];
        /// Processing Paused (PP).
        pp with_pp [5];
        /// Shutdown Type (ST).
        st with_st [6];
    }
}

impl Csts {
    /// SHST 00b: normal operation.
    pub const SHST_NORMAL: u32 = 0b00;
    /// SHST 01b: shutdown processing.
    pub const SHST_OCCURRING: u32 = 0b01;
    /// SHST 10b: shutdown complete.
    pub const SHST_COMPLETE: u32 = 0b10;
}

register! {
    /// Controller Ready Timeouts (CRTO), in units of 500 ms.
    Crto: u32 {
        /// Controller Ready With Media Timeout (CRWMT).
        crwmt with_crwmt [15:0];
        /// Controller Ready Independent of Media Timeout (CRIMT).
        crimt with_crimt [31:16];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_cap() {
        // A Linux target that takes 1024 entries: MQES 1023, TO 7.5 s, both CSS bits.
        let linux = Cap(0x0000_0820_0f00_03ff);
        assert_eq!(
            (linux.mqes(), linux.to(), linux.css()),
            (1023, 15, Cap::CSS_NVM | Cap::CSS_IOCSS)
        );
        let cap = Cap::default()
            .with_mqes(127)
            .with_cqr(true)
            .with_to(30)
            .with_css(0x41)
            .with_crwms(true);
        assert_eq!(cap.0, 0x0800_0820_1e01_007f);
        assert!(cap.cqr() && cap.crwms() && !cap.crims());
    }

    #[test]
    fn golden_cc_and_csts() {
        // What a Linux host writes to enable: IOCQES 4, IOSQES 6, CSS 110b, EN.
        let cc = Cc(0x0046_0061);
        assert!(cc.en());
        assert_eq!(
            (cc.css(), cc.mps(), cc.ams(), cc.shn()),
            (Cc::CSS_IOCSS, 0, 0, Cc::SHN_NONE)
        );
        assert_eq!((cc.iosqes(), cc.iocqes()), (Cc::IOSQES, Cc::IOCQES));
        assert_eq!(cc.with_en(false).with_shn(Cc::SHN_NORMAL).0, 0x0046_4060);
        assert_eq!(
            Csts::default()
                .with_rdy(true)
                .with_shst(Csts::SHST_COMPLETE)
                .0,
            0b1001
        );
        assert_eq!(Crto::default().with_crwmt(30).with_crimt(2).0, 0x0002_001e);
        assert_eq!((Vs::V2_0.mjr(), Vs::V2_0.mnr(), Vs::V2_0.ter()), (2, 0, 0));
    }

    #[test]
    fn sizes() {
        assert_eq!(Property::CAP.size_bytes(), Some(8));
        assert_eq!(Property::CRTO.size_bytes(), Some(4));
        assert_eq!(Property(0x24).size_bytes(), None, "AQA exists on PCIe only");
    }
}
