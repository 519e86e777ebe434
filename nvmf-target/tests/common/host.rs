//! A blocking NVMe/TCP host for one queue.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use nvme_proto::digest::Crc;
use nvme_proto::queue::{SlotId, Transfer};
use nvme_proto::tcp::HostConn;
use nvme_proto::tcp::TX_HEADER_BYTES;
use nvme_proto::tcp::host::HostReceived;
use nvme_proto::tcp::pdu::Fes;
use nvme_proto::wire::{Cid, IoOpcode, Nsid, Opcode, Sqe, Status};
use zerocopy::little_endian::U32;

/// Nothing that a test waits for takes so long; a hang fails instead of blocking.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A completed command.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    pub status: Status,
    /// DW0 and DW1.
    pub result: u64,
    /// What the controller sent.
    pub data: Vec<u8>,
    /// That data was damaged on its way.
    pub damaged: bool,
}

/// A host's end of one I/O queue.
pub struct TestHost {
    pub stream: TcpStream,
    pub conn: HostConn,
    /// Data of open commands, from or for the host.
    buffers: HashMap<SlotId, Vec<u8>>,
    input: Vec<u8>,
    done: Vec<(SlotId, Done)>,
    /// FES and FEI when the controller terminated the connection.
    pub terminated: Option<(Fes, u32)>,
    /// Block size and default namespace of the helpers below.
    pub block_bytes: u64,
    pub nsid: Nsid,
}

/// An I/O command on blocks; `nlb` counts from 1.
pub fn io(opcode: Opcode, nsid: Nsid, slba: u64, nlb: u32) -> Sqe {
    let mut sqe = Sqe::new(opcode);
    sqe.nsid = U32::new(nsid.0);
    sqe.set_cdw10_11(slba);
    sqe.cdw12 = U32::new(nlb.wrapping_sub(1) & 0xffff);
    sqe
}

impl TestHost {
    pub fn new(stream: TcpStream, conn: HostConn) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            conn,
            buffers: HashMap::new(),
            input: Vec::new(),
            done: Vec::new(),
            terminated: None,
            block_bytes: 512,
            nsid: Nsid(1),
        }
    }

    /// Submits a command; `data` is what it writes, or the room for what it reads.
    pub fn submit(&mut self, sqe: &Sqe, transfer: Transfer, data: Vec<u8>) -> SlotId {
        assert_eq!(transfer.bytes() as usize, data.len());
        let slot = self.conn.submit(sqe, transfer).expect("the queue has room");
        self.buffers.insert(slot, data);
        slot
    }

    /// Bytes of all PDUs that there are to send.
    pub fn outgoing(&mut self) -> Vec<u8> {
        let pdus = self.outgoing_pdus();
        pdus.into_iter().flat_map(|(_, pdu)| pdu).collect()
    }

    /// All PDUs that there are to send, each with the command that it belongs to; that of a termination request is any.
    pub fn outgoing_pdus(&mut self) -> Vec<(Cid, Vec<u8>)> {
        let mut pdus = Vec::new();
        let mut header = [0; TX_HEADER_BYTES];
        while let Some(pdu) = self.conn.poll_transmit(&mut header) {
            let mut bytes = header[..pdu.header_bytes.into()].to_vec();
            // Behind the common header: at once in H2CData, after opcode and flags in a command.
            let at = if bytes[0] == 0x04 { 10 } else { 8 };
            let cid = Cid(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
            if let Some(payload) = pdu.payload {
                let start = payload.offset as usize;
                let data = &self.buffers[&payload.slot][start..start + payload.len as usize];
                bytes.extend_from_slice(data);
                if payload.digest {
                    bytes.extend_from_slice(&Crc::of(data).to_wire());
                }
            }
            pdus.push((cid, bytes));
        }
        pdus
    }

    /// Whether there is something to receive.
    pub fn is_readable(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).unwrap();
        peeked.is_ok()
    }

    /// Sends what there is to send.
    pub fn flush(&mut self) {
        let bytes = self.outgoing();
        self.stream.write_all(&bytes).unwrap();
    }

    /// Receives something. `false` at the end of the stream.
    pub fn receive(&mut self) -> bool {
        let mut chunk = vec![0; 256 << 10];
        let count = match self.stream.read(&mut chunk) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            // A read with a time limit is not resumed when the process was stopped meanwhile.
            Err(error) if error.kind() == ErrorKind::Interrupted => return true,
            Err(error) => panic!("receiving: {error}"),
        };
        let mut at = 0;
        loop {
            let input = &chunk[at..count];
            let (taken, received) = self
                .conn
                .receive(input)
                .expect("the target keeps to the protocol");
            at += taken;
            match received {
                HostReceived::NeedMore => break,
                HostReceived::Payload {
                    slot,
                    offset,
                    range,
                } => {
                    let buffer = self
                        .buffers
                        .get_mut(&slot)
                        .expect("data for an open command");
                    buffer[offset as usize..][..range.len()].copy_from_slice(&input[range]);
                }
                HostReceived::Complete {
                    slot,
                    cqe,
                    data_bytes,
                    digest_error,
                } => {
                    let mut data = self.buffers.remove(&slot).unwrap_or_default();
                    let read = matches!(self.conn.transfer(slot), Transfer::ToHost(_));
                    data.truncate(if read { data_bytes as usize } else { 0 });
                    let done = Done {
                        status: cqe.status(),
                        result: cqe.result(),
                        data,
                        damaged: digest_error,
                    };
                    self.done.push((slot, done));
                }
                HostReceived::TermReq { fes, fei } => {
                    self.terminated = Some((fes, fei));
                    break;
                }
            }
        }
        count > 0
    }

    /// Waits for the completion of one command, whatever else completes.
    pub fn wait(&mut self, slot: SlotId) -> Done {
        loop {
            if let Some(at) = self.done.iter().position(|(other, _)| *other == slot) {
                return self.done.remove(at).1;
            }
            self.flush();
            assert!(
                self.receive(),
                "the target closed the connection while a command was open"
            );
        }
    }

    /// Waits for any completion.
    pub fn wait_any(&mut self) -> (SlotId, Done) {
        loop {
            if !self.done.is_empty() {
                return self.done.remove(0);
            }
            self.flush();
            assert!(
                self.receive(),
                "the target closed the connection while commands were open"
            );
        }
    }

    /// Completions that have arrived.
    pub fn completed(&self) -> usize {
        self.done.len()
    }

    /// Receives until the target closes the connection.
    pub fn wait_closed(&mut self) {
        while self.receive() {
            self.flush_quietly();
        }
    }

    fn flush_quietly(&mut self) {
        let bytes = self.outgoing();
        let _ = self.stream.write_all(&bytes);
    }

    pub fn run(&mut self, sqe: &Sqe, transfer: Transfer, data: Vec<u8>) -> Done {
        let slot = self.submit(sqe, transfer, data);
        self.wait(slot)
    }

    /// A command without data.
    pub fn plain(&mut self, sqe: &Sqe) -> Status {
        self.run(sqe, Transfer::None, Vec::new()).status
    }

    fn blocks(&self, bytes: usize) -> u32 {
        (bytes as u64 / self.block_bytes) as u32
    }

    pub fn command(&self, opcode: Opcode, offset_bytes: u64, len: usize) -> Sqe {
        io(
            opcode,
            self.nsid,
            offset_bytes / self.block_bytes,
            self.blocks(len),
        )
    }

    pub fn start_read(&mut self, offset_bytes: u64, len: usize) -> SlotId {
        let sqe = self.command(IoOpcode::READ, offset_bytes, len);
        self.submit(&sqe, Transfer::ToHost(len as u32), vec![0xee; len])
    }

    pub fn read(&mut self, offset_bytes: u64, len: usize) -> Result<Vec<u8>, Status> {
        let slot = self.start_read(offset_bytes, len);
        let done = self.wait(slot);
        assert!(!done.damaged);
        if done.status.is_success() {
            Ok(done.data)
        } else {
            Err(done.status)
        }
    }

    pub fn start_write(&mut self, offset_bytes: u64, data: Vec<u8>) -> SlotId {
        let sqe = self.command(IoOpcode::WRITE, offset_bytes, data.len());
        let transfer = self.conn.write_transfer(&sqe, data.len() as u32);
        self.submit(&sqe, transfer, data)
    }

    pub fn write(&mut self, offset_bytes: u64, data: Vec<u8>) -> Status {
        let slot = self.start_write(offset_bytes, data);
        self.wait(slot).status
    }

    /// Write and Compare, in the capsule or not as fits.
    pub fn with_data(&mut self, sqe: &Sqe, data: Vec<u8>) -> Status {
        let transfer = self.conn.write_transfer(sqe, data.len() as u32);
        self.run(sqe, transfer, data).status
    }

    /// Deallocates ranges of (first byte, bytes). Sends a page, as Linux does.
    pub fn deallocate(&mut self, ranges: &[(u64, u64)]) -> Status {
        let mut data = vec![0; 4096];
        for (index, (offset, len)) in ranges.iter().enumerate() {
            let blocks = (len / self.block_bytes) as u32;
            data[index * 16 + 4..][..4].copy_from_slice(&blocks.to_le_bytes());
            data[index * 16 + 8..][..8].copy_from_slice(&(offset / self.block_bytes).to_le_bytes());
        }
        let mut sqe = Sqe::new(IoOpcode::DATASET_MANAGEMENT);
        sqe.nsid = U32::new(self.nsid.0);
        sqe.cdw10 = U32::new(ranges.len() as u32 - 1);
        sqe.cdw11 = U32::new(1 << 2);
        self.with_data(&sqe, data)
    }

    pub fn cid(&self, slot: SlotId) -> Cid {
        self.conn.command(slot).cid()
    }
}
