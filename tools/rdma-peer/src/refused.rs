//! Connection requests with private data that is wrong in each field, against a target: each is rejected with the code for it, and a
//! right one right after is accepted. (Too few bytes cannot be shown so: the connection manager fills up with zeroes.)

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nvme_proto::rdma::{CmAccept, CmReject, CmRequest, CmStatus};
use nvme_proto::wire::{Cntlid, Qid};
use nvmf_io::verbs::{
    CmEvent, CmEventKind, CmId, ConnectParams, EventChannel, IdleQueuePair, ProtectionDomain,
    QueueSizes,
};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;

use crate::link::{event, expect};

const RESOLVE_MS: u32 = 10_000;
const ENTRIES: u16 = 32;

/// An identifier with a queue pair, ready to ask for a connection.
pub fn resolved(channel: &Arc<EventChannel>, address: SocketAddr) -> Result<IdleQueuePair> {
    let id = CmId::new(channel)?;
    id.resolve_addr(None, address, RESOLVE_MS)?;
    expect(channel, id.key(), |kind| {
        matches!(kind, CmEventKind::AddrResolved)
    })?;
    id.resolve_route(RESOLVE_MS)?;
    expect(channel, id.key(), |kind| {
        matches!(kind, CmEventKind::RouteResolved)
    })?;
    let domain = ProtectionDomain::new(&id)?;
    let sizes = QueueSizes {
        sends: 64,
        receives: 32,
        windows: 0,
    };
    IdleQueuePair::new(id, &domain, sizes).map_err(|(_, error)| error.into())
}

/// Asks for a connection, and returns what came of it.
pub fn ask(
    channel: &Arc<EventChannel>,
    id: &CmId,
    private_data: &[u8],
    reads: u8,
) -> Result<CmEvent> {
    id.connect(&ConnectParams {
        private_data,
        initiator_depth: 0,
        responder_resources: reads,
        retry_count: 7,
        rnr_retry_count: 7,
    })?;
    event(channel, id.key())
}

pub fn run(address: SocketAddr) -> Result<()> {
    let channel = EventChannel::new()?;
    let good = CmRequest::new(Qid(0), ENTRIES, Cntlid(0xffff));
    let wrong = |change: fn(&mut CmRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    let cases: [(&str, CmRequest, u8, CmStatus); 8] = [
        (
            "RECFMT 1",
            wrong(|r| r.recfmt = U16::new(1)),
            1,
            CmStatus::INVALID_RECFMT,
        ),
        (
            "QID 129",
            wrong(|r| r.qid = U16::new(129)),
            1,
            CmStatus::INVALID_QID,
        ),
        (
            "QID FFFFh",
            wrong(|r| r.qid = U16::new(0xffff)),
            1,
            CmStatus::INVALID_QID,
        ),
        (
            "HSQSIZE 0",
            wrong(|r| r.hsqsize = U16::ZERO),
            1,
            CmStatus::INVALID_HSQSIZE,
        ),
        (
            "HSQSIZE 1024",
            wrong(|r| r.hsqsize = U16::new(1024)),
            1,
            CmStatus::INVALID_HSQSIZE,
        ),
        (
            "HSQSIZE FFFFh",
            wrong(|r| r.hsqsize = U16::new(0xffff)),
            1,
            CmStatus::INVALID_HSQSIZE,
        ),
        (
            "HRQSIZE 0",
            wrong(|r| r.hrqsize = U16::ZERO),
            1,
            CmStatus::INVALID_HRQSIZE,
        ),
        ("no READ served", good.clone(), 0, CmStatus::INVALID_IRD),
    ];
    for (what, request, reads, status) in cases {
        rejected(&channel, address, &request, reads, status).with_context(|| what.to_owned())?;
        println!("{what}: {status}");
    }
    let qp = resolved(&channel, address)?;
    let event = ask(&channel, qp.id(), good.as_bytes(), 1)?;
    ensure!(matches!(event.kind, CmEventKind::Established), "{event:?}");
    let accept = CmAccept::parse(&event.private_data)?;
    ensure!(
        accept.crqsize.get() == ENTRIES,
        "CRQSIZE {}",
        accept.crqsize
    );
    println!("a right request is accepted, CRQSIZE {ENTRIES}");
    Ok(())
}

fn rejected(
    channel: &Arc<EventChannel>,
    address: SocketAddr,
    request: &CmRequest,
    reads: u8,
    status: CmStatus,
) -> Result<()> {
    let qp = resolved(channel, address)?;
    let event = ask(channel, qp.id(), request.as_bytes(), reads)?;
    ensure!(
        matches!(event.kind, CmEventKind::Rejected),
        "not rejected: {event:?}"
    );
    ensure!(
        event.status == CmEvent::REJECTED_BY_CONSUMER,
        "status {}",
        event.status
    );
    let reject = CmReject::parse(&event.private_data)?;
    ensure!(
        reject.status() == status,
        "rejected with {}",
        reject.status()
    );
    Ok(())
}
