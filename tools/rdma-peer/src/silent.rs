//! Peers that stop in the middle: each has to be given up by the target.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nvme_proto::rdma::CmRequest;
use nvme_proto::wire::{Cntlid, IoOpcode, Qid, SglDescriptor, Sqe};
use nvmf_io::verbs::{CmEventKind, ConnectParams, EventChannel, HEADER_BYTES};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use crate::capsules::block_bytes;
use crate::host::{Host, Identity};
use crate::link::expect;
use crate::refused::{ask, resolved};

/// The shortest keep-alive timeout that may be expected to be taken as it is.
const KATO_MS: u32 = 1000;

/// Connects and sends no Connect: the target must end the connection. Prints how long it took.
pub fn no_connect(address: SocketAddr) -> Result<()> {
    let channel = EventChannel::new()?;
    let qp = resolved(&channel, address)?;
    let request = CmRequest::new(Qid(0), 32, Cntlid(0xffff));
    let established = ask(&channel, qp.id(), request.as_bytes(), 1)?;
    ensure!(
        matches!(established.kind, CmEventKind::Established),
        "{established:?}"
    );
    let begin = Instant::now();
    expect(&channel, qp.id().key(), |kind| {
        matches!(kind, CmEventKind::Disconnected)
    })?;
    println!(
        "the target hung up after {} ms",
        begin.elapsed().as_millis()
    );
    Ok(())
}

/// Asks for a connection and never looks at the answer, until it is killed: the target knows of a connection that is never established.
pub fn half(address: SocketAddr) -> Result<()> {
    let channel = EventChannel::new()?;
    let qp = resolved(&channel, address)?;
    let request = CmRequest::new(Qid(0), 32, Cntlid(0xffff));
    qp.id().connect(&ConnectParams {
        private_data: request.as_bytes(),
        initiator_depth: 0,
        responder_resources: 1,
        retry_count: 7,
        rnr_retry_count: 7,
    })?;
    println!("asked for a connection");
    loop {
        std::thread::park();
    }
}

/// Brings a controller and a queue up, asks for data, takes one response and no more, and says nothing: responses that nobody takes are
/// under way at the target, which must end both connections all the same when the keep-alive timeout is over.
pub fn mute(address: SocketAddr, subsystem: &str, nsid: u32) -> Result<()> {
    let who = Identity::new(9, subsystem)?;
    let (mut admin, cntlid) = Host::bring_up(address, &who, KATO_MS)?;
    let block_bytes = block_bytes(&mut admin, nsid)?;
    let mut io = Host::io(address, &who, cntlid, Qid(1), 16, 1)?;
    let (start, key) = io.remote()?;
    for _ in 0..8 {
        let mut read = Sqe::new(IoOpcode::READ);
        read.cid = U16::new(io.next_cid().0);
        read.nsid = U32::new(nsid);
        read.dptr = SglDescriptor::keyed(start, 4096, key, false).context("too long")?;
        read.cdw12 = U32::new(4096 / block_bytes - 1);
        io.send(&read, HEADER_BYTES, &[])?;
    }
    println!(
        "the target hung up after {} ms",
        admin.until_closed()?.as_millis()
    );
    io.until_closed()?;
    println!("and on the I/O queue");
    Ok(())
}
