//! The protocol's work for one command, step by step: what `benches/benches/hot.rs` times and `hot` has counted.
//!
//! A host's and a controller's connection are wired together in memory and pass a batch of commands through all steps of its way. One step is measured, by a
//! [`Meter`], the others only lead to it and away from it.

use std::hint::black_box;

use nvme_proto::controller::{IoCommand, NamespaceLimits, validate_io};
use nvme_proto::queue::{QueueLimits, SlotId, Transfer};
use nvme_proto::tcp::controller::Received;
use nvme_proto::tcp::host::{HostLimits, HostReceived};
use nvme_proto::tcp::{ControllerConn, HostConn, Pda, TX_HEADER_BYTES, TcpParams, TxHeader, TxPdu};
use nvme_proto::wire::nvm::BlockRange;
use nvme_proto::wire::{IoOpcode, Lba, Nsid, Sqe, Status};

/// Commands that take a step together.
pub const BATCH: usize = 64;

/// Measures what it is given to do, once.
pub trait Meter {
    /// Does `step`.
    fn measure(&mut self, step: &mut dyn FnMut());
}

/// Does a step where a tool that counts instructions can find it by name.
#[derive(Debug)]
pub struct Counted;

impl Meter for Counted {
    fn measure(&mut self, step: &mut dyn FnMut()) {
        counted_step(step);
    }
}

/// What callgrind counts: it is told this function's name.
#[inline(never)]
pub fn counted_step(step: &mut dyn FnMut()) {
    step();
    // Nothing may follow the call directly, or it would become a jump and this function would not show.
    black_box(());
}

/// How a batch of commands moves its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Reads of 4 KiB: answered by C2HData with SUCCESS.
    Read,
    /// Writes of 4 KiB in the capsule.
    WriteInCapsule,
    /// Writes of 8 KiB that the controller asks for.
    WriteByR2t,
}

/// A step of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The host takes commands.
    Submit,
    /// The host makes command capsules.
    EncodeCommand,
    /// The controller takes command capsules apart.
    DecodeCommand,
    /// The commands are checked.
    Validate,
    /// The controller asks for data.
    EncodeR2t,
    /// The host takes R2Ts apart.
    DecodeR2t,
    /// The host makes H2CData.
    EncodeData,
    /// The controller takes H2CData apart.
    DecodeData,
    /// The controller completes the commands.
    Complete,
    /// The controller makes C2HData or response capsules.
    EncodeAnswer,
    /// The host takes them apart, and its commands are done.
    DecodeAnswer,
}

/// Everything that is measured: a name, and what it is.
pub const CASES: &[(&str, Flow, Step)] = &[
    ("submit-read", Flow::Read, Step::Submit),
    ("encode-command-capsule", Flow::Read, Step::EncodeCommand),
    ("decode-command-capsule", Flow::Read, Step::DecodeCommand),
    ("validate-read", Flow::Read, Step::Validate),
    ("complete-read", Flow::Read, Step::Complete),
    ("encode-c2h-data", Flow::Read, Step::EncodeAnswer),
    ("decode-c2h-data", Flow::Read, Step::DecodeAnswer),
    (
        "encode-command-capsule-with-data",
        Flow::WriteInCapsule,
        Step::EncodeCommand,
    ),
    (
        "decode-command-capsule-with-data",
        Flow::WriteInCapsule,
        Step::DecodeCommand,
    ),
    ("validate-write", Flow::WriteInCapsule, Step::Validate),
    ("complete-write", Flow::WriteInCapsule, Step::Complete),
    (
        "encode-response-capsule",
        Flow::WriteInCapsule,
        Step::EncodeAnswer,
    ),
    (
        "decode-response-capsule",
        Flow::WriteInCapsule,
        Step::DecodeAnswer,
    ),
    ("encode-r2t", Flow::WriteByR2t, Step::EncodeR2t),
    ("decode-r2t", Flow::WriteByR2t, Step::DecodeR2t),
    ("encode-h2c-data", Flow::WriteByR2t, Step::EncodeData),
    ("decode-h2c-data", Flow::WriteByR2t, Step::DecodeData),
];

impl Flow {
    fn bytes(self) -> u32 {
        match self {
            Self::Read | Self::WriteInCapsule => 4096,
            Self::WriteByR2t => 8192,
        }
    }

    fn transfer(self) -> Transfer {
        match self {
            Self::Read => Transfer::ToHost(self.bytes()),
            Self::WriteInCapsule => Transfer::InCapsule(self.bytes()),
            Self::WriteByR2t => Transfer::FromHost(self.bytes()),
        }
    }

    fn sqe(self) -> Sqe {
        let range = BlockRange {
            slba: Lba(4096),
            blocks: self.bytes() / 512,
        };
        let opcode = match self {
            Self::Read => IoOpcode::READ,
            Self::WriteInCapsule | Self::WriteByR2t => IoOpcode::WRITE,
        };
        let sqe = range.to_sqe(opcode, Nsid(1), self.bytes());
        sqe.expect("a range of a few blocks")
    }
}

const NAMESPACE: NamespaceLimits = NamespaceLimits {
    block_shift: 9,
    blocks: 1 << 30,
    read_only: false,
    max_transfer_bytes: 1 << 20,
};

/// PDUs on their way.
struct Wire {
    headers: Box<[TxHeader; BATCH]>,
    pdus: Vec<TxPdu>,
    bytes: Vec<u8>,
}

impl Wire {
    fn new() -> Self {
        Self {
            headers: Box::new([[0; TX_HEADER_BYTES]; BATCH]),
            pdus: Vec::with_capacity(BATCH),
            bytes: Vec::with_capacity(BATCH * (TX_HEADER_BYTES + 8192)),
        }
    }

    /// Makes a batch of PDUs of what `poll` gives: this is what counts.
    fn fill(&mut self, mut poll: impl FnMut(&mut TxHeader) -> Option<TxPdu>) {
        self.pdus.clear();
        for header in self.headers.iter_mut() {
            self.pdus
                .push(poll(header).expect("a PDU for each command"));
        }
    }

    /// Their bytes, as the other side gets them.
    fn carry(&mut self) -> &[u8] {
        self.bytes.clear();
        for (header, pdu) in self.headers.iter().zip(&self.pdus) {
            self.bytes
                .extend_from_slice(&header[..usize::from(pdu.header_bytes)]);
            let payload_bytes = pdu.payload.map_or(0, |payload| payload.len as usize);
            self.bytes.resize(self.bytes.len() + payload_bytes, 0xa5);
        }
        &self.bytes
    }
}

/// A host and a controller, and what goes to and fro.
pub struct Pair {
    host: HostConn,
    controller: ControllerConn,
    wire: Wire,
    slots: Vec<SlotId>,
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}

impl Pair {
    /// Two ends of a connection without digests.
    pub fn new() -> Self {
        let params = TcpParams {
            header_digest: false,
            data_digest: false,
            pda: Pda::DWORD,
            receive_pda: Pda::DWORD,
            max_h2c_data_bytes: 128 << 10,
            max_r2t: 1,
        };
        let depth = 2 * BATCH as u16;
        let host = HostLimits {
            depth,
            in_capsule_bytes: 4096,
            flow_control: false,
            admin: false,
        };
        let controller = QueueLimits {
            depth,
            in_capsule_bytes: 4096,
            max_transfer_bytes: 1 << 20,
            r2t_window_bytes: 128 << 10,
            flow_control: false,
            success_flag: true,
            admin: false,
        };
        Self {
            host: HostConn::new(params, host),
            controller: ControllerConn::new(params, controller),
            wire: Wire::new(),
            slots: Vec::with_capacity(BATCH),
        }
    }

    /// Passes a batch of commands through, with `step` measured by `meter`.
    pub fn run(&mut self, flow: Flow, step: Step, meter: &mut dyn Meter) {
        let Self {
            host,
            controller,
            wire,
            slots,
        } = self;
        let mut take = |this: Step, work: &mut dyn FnMut()| {
            if this == step {
                meter.measure(work);
            } else {
                work();
            }
        };
        let (sqe, transfer) = (flow.sqe(), flow.transfer());

        take(Step::Submit, &mut || {
            for _ in 0..BATCH {
                black_box(host.submit(black_box(&sqe), transfer)).expect("room for a batch");
            }
        });
        take(Step::EncodeCommand, &mut || {
            wire.fill(|header| host.poll_transmit(header));
        });
        let bytes = wire.carry();
        slots.clear();
        take(Step::DecodeCommand, &mut || {
            each_received(controller, bytes, |received| {
                if let Received::Command { slot } = received {
                    slots.push(slot);
                }
            });
        });
        assert_eq!(slots.len(), BATCH);
        take(Step::Validate, &mut || {
            for slot in &*slots {
                let checked = validate_io(controller.command(*slot), Some(&NAMESPACE));
                let good = matches!(
                    black_box(checked),
                    Ok(IoCommand::Read { .. } | IoCommand::Write { .. })
                );
                assert!(good, "{flow:?}");
            }
        });
        if flow == Flow::WriteByR2t {
            take(Step::EncodeR2t, &mut || {
                for slot in &*slots {
                    controller.request_data(*slot);
                }
                wire.fill(|header| controller.poll_transmit(header));
            });
            let bytes = wire.carry();
            let mut done = 0;
            take(Step::DecodeR2t, &mut || {
                each_done(host, bytes, |_| done += 1);
            });
            assert_eq!(done, 0, "nothing is done by an R2T");
            take(Step::EncodeData, &mut || {
                wire.fill(|header| host.poll_transmit(header));
            });
            let bytes = wire.carry();
            let mut ready = 0;
            take(Step::DecodeData, &mut || {
                each_received(controller, bytes, |received| {
                    ready += usize::from(matches!(received, Received::DataReady { .. }));
                });
            });
            assert_eq!(ready, BATCH);
        }
        take(Step::Complete, &mut || {
            for slot in &*slots {
                match flow {
                    Flow::Read => controller.complete_with_data(*slot, flow.bytes(), 0),
                    _ => controller.complete(*slot, Status::SUCCESS, 0),
                }
            }
        });
        take(Step::EncodeAnswer, &mut || {
            wire.fill(|header| controller.poll_transmit(header));
        });
        let bytes = wire.carry();
        let mut done = 0;
        take(Step::DecodeAnswer, &mut || {
            each_done(host, bytes, |status| {
                done += usize::from(status.is_success());
            });
        });
        assert_eq!(done, BATCH);
        assert!(host.is_idle() && controller.is_idle());
    }
}

/// Everything that the controller makes of `bytes`.
#[inline]
fn each_received(conn: &mut ControllerConn, mut bytes: &[u8], mut take: impl FnMut(Received)) {
    loop {
        let (taken, received) = conn.receive(bytes).expect("PDUs of our own");
        if received == Received::NeedMore {
            return;
        }
        bytes = &bytes[taken..];
        take(black_box(received));
    }
}

/// The status of every command that ends with `bytes`.
#[inline]
fn each_done(conn: &mut HostConn, mut bytes: &[u8], mut take: impl FnMut(Status)) {
    loop {
        let (taken, received) = conn.receive(bytes).expect("PDUs of our own");
        bytes = &bytes[taken..];
        match black_box(received) {
            HostReceived::NeedMore => return,
            HostReceived::Complete { cqe, .. } => take(cqe.status()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Calls(usize);

    impl Meter for Calls {
        fn measure(&mut self, step: &mut dyn FnMut()) {
            self.0 += 1;
            step();
        }
    }

    #[test]
    fn every_case_measures_one_step_of_each_batch() {
        let mut pair = Pair::new();
        for (name, flow, step) in CASES {
            let mut calls = Calls(0);
            for _ in 0..3 {
                pair.run(*flow, *step, &mut calls);
            }
            assert_eq!(calls.0, 3, "{name}");
        }
    }
}
