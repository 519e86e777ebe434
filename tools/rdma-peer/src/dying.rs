//! A host that is to be killed while the target has data of its commands to move.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use nvme_proto::wire::{IoOpcode, Qid, SglDescriptor, Sqe};
use nvmf_io::verbs::HEADER_BYTES;
use zerocopy::little_endian::{U16, U32};

use crate::capsules::block_bytes;
use crate::host::{Host, Identity, MEMORY_BYTES};

/// Commands that are open when it dies, half of them writes.
const COMMANDS: u16 = 24;

/// Receives for responses: too few for all, so that the target's queue pair keeps work outstanding however fast it is.
const RECEIVES: usize = 4;

/// Sends commands of 1 MiB each, in turn a write and a read, has receives for few responses, and waits to be killed.
pub fn run(address: SocketAddr, subsystem: &str, nsid: u32) -> Result<()> {
    let who = Identity::new(5, subsystem)?;
    let (mut admin, cntlid) = Host::bring_up(address, &who, 0)?;
    let block_bytes = block_bytes(&mut admin, nsid)?;
    let mut io = Host::io(address, &who, cntlid, Qid(1), 32, RECEIVES)?;
    let (start, key) = io.remote()?;
    for number in 0..COMMANDS {
        let mut sqe = Sqe::new(match number % 2 {
            0 => IoOpcode::WRITE,
            _ => IoOpcode::READ,
        });
        sqe.cid = U16::new(io.next_cid().0);
        sqe.nsid = U32::new(nsid);
        sqe.dptr = SglDescriptor::keyed(start, MEMORY_BYTES, key, false).context("too long")?;
        sqe.cdw12 = U32::new(MEMORY_BYTES / block_bytes - 1);
        io.send(&sqe, HEADER_BYTES, &[])?;
    }
    println!("{COMMANDS} commands of 1 MiB, and receives for {RECEIVES} responses");
    loop {
        std::thread::park();
    }
}
