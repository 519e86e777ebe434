//! Connect commands that are wrong in each field.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use nvme_proto::wire::fabrics::{Cattr, ConnectData, ConnectSqe, PropertySqe};
use nvme_proto::wire::property::Property;
use nvme_proto::wire::{Cntlid, IoOpcode, Qid, SglDescriptor, Sqe, Status};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::host::{Host, Identity};

/// Entries of the queue.
const ENTRIES: u16 = 8;

type DataChange = fn(&mut ConnectData);

/// Connect, wrong in each field; on one connection as far as that goes, where the right one still succeeds at last.
pub fn run(address: SocketAddr, subsystem: &str) -> Result<()> {
    let who = Identity::new(3, subsystem)?;
    let mut host = Host::open(address, Qid(0), ENTRIES)?;
    let good = ConnectSqe::new(Qid(0), ENTRIES, Cattr::empty(), 0);
    let good_data = ConnectData::new(who.id, Cntlid(0xffff), &who.subsystem, &who.nqn);
    let wrong = |change: fn(&mut ConnectSqe)| {
        let mut sqe = ConnectSqe::from_sqe(&good.into_sqe());
        change(&mut sqe);
        sqe.into_sqe()
    };
    let with = |change: fn(&mut SglDescriptor)| {
        let mut sqe = good.into_sqe();
        change(&mut sqe.dptr);
        sqe
    };
    let length = Status::DATA_SGL_LENGTH_INVALID;
    let parameters = Status::CONNECT_INVALID_PARAMETERS;
    let sequence = Status::COMMAND_SEQUENCE_ERROR;
    let cases: [(&str, Sqe, Status); 11] = [
        ("a read before Connect", Sqe::new(IoOpcode::READ), sequence),
        (
            "Property Get before Connect",
            PropertySqe::get(Property::CSTS).into_sqe(),
            sequence,
        ),
        (
            "Connect with a transport block",
            with(|d| d.kind = 0x5a),
            Status::SGL_DESCRIPTOR_TYPE_INVALID,
        ),
        (
            "Connect with an offset",
            with(|d| d.address = U64::new(8)),
            Status::SGL_OFFSET_INVALID,
        ),
        (
            "Connect with 1023 bytes",
            with(|d| d.length = U32::new(1023)),
            length,
        ),
        (
            "Connect with 1025 bytes",
            with(|d| d.length = U32::new(1025)),
            length,
        ),
        (
            "Connect of RECFMT 1",
            wrong(|c| c.recfmt = U16::new(1)),
            Status::CONNECT_INCOMPATIBLE_FORMAT,
        ),
        (
            "Connect of another queue than private data",
            wrong(|c| c.qid = U16::new(1)),
            parameters,
        ),
        (
            "Connect of a queue above all",
            wrong(|c| c.qid = U16::new(0xffff)),
            parameters,
        ),
        (
            "Connect of more entries than HSQSIZE",
            wrong(|c| c.sqsize = U16::new(ENTRIES)),
            parameters,
        ),
        (
            "Connect of a queue of one entry",
            wrong(|c| c.sqsize = U16::ZERO),
            parameters,
        ),
    ];
    for (what, sqe, status) in cases {
        let sent = host.fail(sqe, good_data.as_bytes(), status);
        sent.with_context(|| what.to_owned())?;
        println!("{what}: {status}");
    }
    let changes: [(&str, DataChange, Status); 4] = [
        (
            "Connect for a controller that is not there",
            |d| d.cntlid = U16::new(7),
            parameters,
        ),
        (
            "Connect to an unknown subsystem",
            |d| d.subnqn[4] = b'9',
            parameters,
        ),
        (
            "Connect with a SUBNQN without end",
            |d| d.subnqn = [b'n'; 256],
            parameters,
        ),
        (
            "Connect with a HOSTNQN without end",
            |d| d.hostnqn = [b'n'; 256],
            parameters,
        ),
    ];
    for (what, change, status) in changes {
        let mut data = ConnectData::read_from_bytes(good_data.as_bytes())
            .map_err(|_| anyhow::anyhow!("no Connect data"))?;
        change(&mut data);
        let sent = host.fail(good.into_sqe(), data.as_bytes(), status);
        sent.with_context(|| what.to_owned())?;
        println!("{what}: {status}");
    }
    host.succeed(good.into_sqe(), good_data.as_bytes())
        .context("the right Connect after all that")?;
    println!("the right Connect after all that: accepted");
    Ok(())
}
