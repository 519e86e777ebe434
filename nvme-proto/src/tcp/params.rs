//! What the two sides of a connection agreed on, for whoever reads or writes PDUs.

/// Alignment of the data in PDUs (HPDA, CPDA): PDO is a multiple of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pda(u8);

impl Pda {
    /// 4 bytes, which is no constraint at all: every header is a multiple of that.
    pub const DWORD: Self = Self(0);
    /// The largest alignment, 128 bytes.
    pub const MAX: Self = Self(31);

    /// From the 0's based count of dwords on the wire; `None` above 31.
    pub const fn from_wire(dwords: u8) -> Option<Self> {
        if dwords <= Self::MAX.0 {
            Some(Self(dwords))
        } else {
            None
        }
    }

    /// The 0's based count of dwords.
    pub const fn to_wire(self) -> u8 {
        self.0
    }

    /// The alignment in bytes: 4 to 128, not always a power of two.
    pub const fn bytes(self) -> u8 {
        (self.0 + 1) * 4
    }
}

/// What ICReq and ICResp agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpParams {
    /// Every PDU has a header digest.
    pub header_digest: bool,
    /// Every PDU with data has a data digest.
    pub data_digest: bool,
    /// Alignment of the data that we send: the peer's HPDA or CPDA.
    pub pda: Pda,
    /// Alignment of the data that we receive: our own CPDA or HPDA.
    pub receive_pda: Pda,
    /// MAXH2CDATA: most data bytes in one H2CData PDU.
    pub max_h2c_data_bytes: u32,
    /// Most R2Ts open for one command (MAXR2T + 1).
    pub max_r2t: u32,
}
