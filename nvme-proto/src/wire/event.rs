//! Asynchronous events: dword 0 of the completion of an Asynchronous Event Request. The Abort command
//! lives here too, since it is the other one that is about commands rather than data.

use super::bits::register;
use super::command::Sqe;
use super::ids::{Cid, Qid};
use super::log::LogId;
use super::opcode::AdminOpcode;
use super::sgl::SglDescriptor;
use zerocopy::little_endian::U32;

register! {
    /// Dword 0 of the completion of an Asynchronous Event Request.
    AsyncEvent: u32 {
        /// Asynchronous Event Type (AET).
        aet with_aet [2:0];
        /// Asynchronous Event Information (AEI).
        aei with_aei [15:8];
        /// Log Page Identifier (LID) of the page that tells more.
        lid with_lid [23:16];
    }
}

impl AsyncEvent {
    /// AET: error status.
    pub const TYPE_ERROR: u32 = 0;
    /// AET: SMART / health status.
    pub const TYPE_SMART: u32 = 1;
    /// AET: notice.
    pub const TYPE_NOTICE: u32 = 2;
    /// AET: immediate.
    pub const TYPE_IMMEDIATE: u32 = 3;
    /// AET: I/O command specific.
    pub const TYPE_IO_COMMAND: u32 = 6;
    /// AET: vendor specific.
    pub const TYPE_VENDOR: u32 = 7;

    /// SMART: NVM subsystem reliability.
    pub const SMART_RELIABILITY: Self = Self::new(Self::TYPE_SMART, 0, LogId::SMART);
    /// SMART: temperature threshold.
    pub const SMART_TEMPERATURE: Self = Self::new(Self::TYPE_SMART, 1, LogId::SMART);
    /// SMART: spare below threshold.
    pub const SMART_SPARE: Self = Self::new(Self::TYPE_SMART, 2, LogId::SMART);
    /// Notice: namespace attribute changed.
    pub const NAMESPACE_ATTRIBUTE_CHANGED: Self =
        Self::new(Self::TYPE_NOTICE, 0x00, LogId::CHANGED_NAMESPACES);
    /// Notice: asymmetric namespace access change.
    pub const ANA_CHANGE: Self = Self::new(Self::TYPE_NOTICE, 0x03, LogId::ANA);
    /// Notice: discovery log page change.
    pub const DISCOVERY_LOG_CHANGED: Self = Self::new(Self::TYPE_NOTICE, 0xf0, LogId::DISCOVERY);

    const fn new(aet: u32, aei: u32, log: LogId) -> Self {
        Self(aet | aei << 8 | (log.0 as u32) << 16)
    }

    /// The log page that tells more.
    pub fn log(self) -> LogId {
        LogId(self.lid() as u8)
    }

    /// Type and information alone: what kind of event this is, whatever the log page says.
    pub fn kind(self) -> (u32, u32) {
        (self.aet(), self.aei())
    }
}

/// An Asynchronous Event Request.
pub fn async_event_request_sqe() -> Sqe {
    no_data(AdminOpcode::ASYNC_EVENT_REQUEST)
}

/// A Keep Alive command.
pub fn keep_alive_sqe() -> Sqe {
    no_data(AdminOpcode::KEEP_ALIVE)
}

fn no_data(opcode: super::opcode::Opcode) -> Sqe {
    let mut sqe = Sqe::new(opcode);
    sqe.dptr = SglDescriptor::transport(0);
    sqe
}

/// The fields of an Abort command. Bit 0 of the result is 0 where the command was aborted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AbortCommand {
    /// The queue of the command to abort.
    pub sqid: Qid,
    /// The command to abort.
    pub cid: Cid,
}

impl AbortCommand {
    /// Reads the fields of an SQE.
    pub fn from_sqe(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        Self {
            sqid: Qid(cdw10 as u16),
            cid: Cid((cdw10 >> 16) as u16),
        }
    }

    /// An SQE with these fields.
    pub fn to_sqe(self) -> Sqe {
        let mut sqe = no_data(AdminOpcode::ABORT);
        sqe.cdw10 = U32::new(u32::from(self.sqid.0) | u32::from(self.cid.0) << 16);
        sqe
    }

    /// The result: whether the command was aborted.
    pub const fn result(aborted: bool) -> u64 {
        !aborted as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    #[test]
    fn golden_events() {
        assert_eq!(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED.0, 0x0004_0002);
        assert_eq!(AsyncEvent::DISCOVERY_LOG_CHANGED.0, 0x0070_f002);
        assert_eq!(AsyncEvent::SMART_SPARE.0, 0x0002_0201);
        assert_eq!(
            AsyncEvent(0x000c_0302).kind(),
            AsyncEvent::ANA_CHANGE.kind()
        );
        assert_eq!(AsyncEvent(0x0070_f002).log(), LogId::DISCOVERY);
    }

    #[test]
    fn golden_abort() {
        let abort = AbortCommand {
            sqid: Qid(3),
            cid: Cid(0x0a0b),
        };
        let sqe = abort.to_sqe();
        assert_eq!(sqe.as_bytes()[0], 0x08);
        assert_eq!(sqe.as_bytes()[40..44], [3, 0, 0x0b, 0x0a]);
        assert_eq!(AbortCommand::from_sqe(&sqe), abort);
        assert_eq!(
            (AbortCommand::result(true), AbortCommand::result(false)),
            (0, 1)
        );
        assert_eq!(async_event_request_sqe().as_bytes()[0], 0x0c);
        assert_eq!(keep_alive_sqe().as_bytes()[0], 0x18);
    }
}
