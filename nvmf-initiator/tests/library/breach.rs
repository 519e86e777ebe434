//! A target that breaks the rules is told so, once, with what it did wrong; then the connection ends, and I/O goes on over a new one.
//!
//! Which rules there are, and what each leads to, is tested value by value in nvme-proto (`bad_controller`). Here it is that the
//! request reaches the wire, alone and whole, on every kind of queue and in every phase of it.

use std::time::Duration;

use nvme_proto::tcp::TcpParams;
use nvme_proto::wire::{Cqe, Qid, Sqe, Status};
use nvmf_initiator::handle::Namespace;

use crate::handle::block_on;
use crate::puppet::{Moment, Puppet, Script, timed};
use crate::target::{eventually, session_config};

/// PDUs put together byte by byte.
#[path = "../../../nvme-proto/tests/tcp/support/raw.rs"]
#[allow(dead_code, reason = "nvme-proto's tests use the rest")]
pub mod raw;

use raw::{LAST, Raw, SUCCESS};

const FIELD: u16 = 1;
const SEQUENCE: u16 = 2;
const HEADER_DIGEST: u16 = 3;
const RANGE: u16 = 4;

const OPTIONS: &str = "&reconnect_delay=1&keep_alive_tmo=0";

/// A wrong answer to a command, how much of its header comes back, and FES and FEI.
type Case = (fn(&TcpParams, &Sqe) -> Raw, usize, u16, u32);

fn response(params: &TcpParams, sqe: &Sqe) -> Raw {
    raw::response(params, &Cqe::new(sqe.cid(), 0, Status::SUCCESS, 0))
}

fn data(params: &TcpParams, sqe: &Sqe, flags: u8, offset: u32, bytes: usize) -> Raw {
    raw::c2h_data(params, flags, sqe.cid().0, offset, &vec![0; bytes])
}

/// One of each kind, to a read of 512 bytes.
const CASES: &[Case] = &[
    // A PDU that only controllers receive; ICResp once more; a wrong HLEN: what follows the common header is not looked at.
    (|p, s| response(p, s).with(0, &[4]), 8, FIELD, 0),
    (|p, s| response(p, s).with(0, &[1]), 8, SEQUENCE, 0),
    (|p, s| response(p, s).with(2, &[16]), 8, FIELD, 2),
    // A wrong PLEN; a response to a command that is not open; data for one.
    (|p, s| response(p, s).with(4, &[99]), 24, FIELD, 4),
    (|p, s| response(p, s).with(20, &[0xcd, 0xab]), 24, FIELD, 20),
    (
        |p, s| data(p, s, LAST, 0, 512).with(8, &[0xff, 0xff]),
        24,
        FIELD,
        8,
    ),
    // A gap before the data; more of them than were asked for; success before the end; an R2T for a read.
    (|p, s| data(p, s, LAST, 512, 512), 24, RANGE, 0),
    (|p, s| data(p, s, LAST, 0, 16384), 24, RANGE, 0),
    (|p, s| data(p, s, SUCCESS, 0, 512), 24, FIELD, 1),
    (|p, s| raw::r2t(p, s.cid().0, 0, 0, 512), 24, SEQUENCE, 0),
    // Data that begin inside the header; a DATAL that is not what the PDU carries.
    (|p, s| data(p, s, LAST, 0, 512).with(3, &[8]), 24, FIELD, 3),
    (
        |p, s| data(p, s, LAST, 0, 512).with(16, &[1]),
        24,
        FIELD,
        16,
    ),
];

/// Has the puppet break a rule at `moment`.
fn script(puppet: &Puppet, moment: Moment, (wrong, ..): Case) {
    let breach = move |params: &TcpParams, sqe: &Sqe| wrong(params, sqe).bytes();
    puppet.script(|script| script.breach = Some((moment, Box::new(breach))));
}

/// What the host said about the last break of the rules is one termination request, and nothing else.
#[track_caller]
fn check_farewell(puppet: &Puppet, copied: usize, fes: u16, fei: u32) {
    puppet.see(|seen| {
        let wrong = seen.breaches.last().unwrap();
        let said = seen.farewells.last().unwrap();
        assert_eq!(*said, raw::term_req(0x02, fes, fei, &wrong[..copied]));
        assert_eq!(seen.farewells.len(), seen.breaches.len());
    });
}

fn farewells(puppet: &Puppet) -> usize {
    puppet.see(|seen| seen.farewells.len())
}

fn connect(puppet: &Puppet, options: &str) -> Namespace {
    let url = puppet.url(&format!("{OPTIONS}{options}"));
    Namespace::connect_blocking(&url, session_config()).unwrap()
}

#[test]
fn on_an_io_queue() {
    std::thread::scope(|scope| {
        for case in CASES {
            scope.spawn(move || {
                let puppet = Puppet::start(Script::default());
                let disk = connect(&puppet, "");
                script(&puppet, Moment::Io, *case);
                // The read is held, and done on the next association.
                assert_eq!(block_on(disk.read(0, 1)).unwrap()[..4], [0, 0, 0, 0]);
                check_farewell(&puppet, case.1, case.2, case.3);
                assert_eq!(puppet.see(|seen| seen.admin_connects), 2);
                block_on(disk.close());
            });
        }
    });
}

#[test]
fn on_an_io_queue_with_digests() {
    let puppet = Puppet::start(Script::default());
    let disk = connect(&puppet, "&hdr_digest=1&data_digest=1");
    script(
        &puppet,
        Moment::Io,
        (|p, s| data(p, s, LAST, 512, 512), 24, RANGE, 0),
    );
    block_on(disk.read(0, 1)).unwrap();
    check_farewell(&puppet, 24, RANGE, 0);
    // A header that was damaged on the way: FEI is the digest that came with it.
    let damaged = |params: &TcpParams, sqe: &Sqe| {
        let mut pdu = response(params, sqe);
        pdu.header_digest_error = 0x10;
        pdu
    };
    script(&puppet, Moment::Io, (damaged, 24, HEADER_DIGEST, 0));
    block_on(disk.read(0, 1)).unwrap();
    let digest = puppet.see(|seen| {
        let wrong = seen.breaches.last().unwrap();
        u32::from_le_bytes(wrong[24..28].try_into().unwrap())
    });
    check_farewell(&puppet, 24, HEADER_DIGEST, digest);
    block_on(disk.close());
}

#[test]
fn on_the_admin_queue() {
    let puppet = Puppet::start(Script::default());
    let disk = connect(&puppet, "");
    for (round, case) in CASES[..2].iter().chain(&CASES[4..5]).enumerate() {
        // A break of the rules at the reconnect, which is then made again.
        script(&puppet, Moment::Identify, *case);
        script_loss(&puppet, &disk);
        eventually("a farewell", || farewells(&puppet) == 2 * (round + 1));
        check_farewell(&puppet, case.1, case.2, case.3);
        block_on(disk.read(0, 1)).unwrap();
    }
    block_on(disk.close());
}

/// Ends the association by a break of the rules on its I/O queue, ahead of whatever is scripted for the next one.
fn script_loss(puppet: &Puppet, disk: &Namespace) {
    let mut later = None;
    puppet.script(|script| later = script.breach.take());
    script(puppet, Moment::Io, CASES[0]);
    std::thread::scope(|scope| {
        let read = scope.spawn(|| block_on(disk.read(0, 1)));
        let before = farewells(puppet);
        eventually("the loss", || farewells(puppet) > before);
        puppet.script(|script| script.breach = later);
        read.join().unwrap().unwrap();
    });
}

#[test]
fn while_connecting() {
    let refused = |moment, case| {
        let puppet = Puppet::start(Script::default());
        script(&puppet, moment, case);
        let url = puppet.url(OPTIONS);
        let Err(error) = Namespace::connect_blocking(&url, session_config()) else {
            panic!("connected over {moment:?}");
        };
        assert!(error.to_string().contains("broke the protocol"), "{error}");
        eventually("a farewell", || farewells(&puppet) == 1);
        check_farewell(&puppet, case.1, case.2, case.3);
    };
    for qid in [Qid(0), Qid(1)] {
        refused(Moment::Connect(qid), CASES[4]);
        refused(Moment::Connect(qid), CASES[0]);
    }
    refused(Moment::Identify, CASES[2]);
    // ICResp: another version of the PDU format, digests that nobody asked for, a MAXH2CDATA that is too small.
    refused(Moment::IcResp, (|_, _| ic(8, &[1]), 128, FIELD, 8));
    refused(Moment::IcResp, (|_, _| ic(11, &[3]), 128, FIELD, 11));
    refused(
        Moment::IcResp,
        (|_, _| ic(12, &[0, 8, 0, 0]), 128, FIELD, 12),
    );
    // A response where ICResp has to be.
    refused(Moment::IcResp, (|_, _| ic(0, &[5]), 128, SEQUENCE, 0));
}

/// An ICResp with other bytes at one place.
fn ic(at: usize, bytes: &[u8]) -> Raw {
    let mut header = vec![1, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 0];
    header.extend((128u32 << 10).to_le_bytes());
    header.resize(128, 0);
    let raw = Raw {
        header,
        data: Vec::new(),
        header_digest: false,
        data_digest: false,
        header_digest_error: 0,
        data_digest_error: 0,
    };
    raw.with(at, bytes)
}

#[test]
fn a_target_that_stays_is_left() {
    let puppet = Puppet::start(Script {
        stubborn: true,
        ..Script::default()
    });
    let disk = connect(&puppet, "");
    script(&puppet, Moment::Io, CASES[0]);
    let (read, took) = timed(|| block_on(disk.read(0, 1)));
    read.unwrap();
    // A second for it to close the connection, another until the reconnect, and what a loaded machine takes.
    assert!(took >= Duration::from_secs(2), "{took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    check_farewell(&puppet, 8, FIELD, 0);
    block_on(disk.close());
}
