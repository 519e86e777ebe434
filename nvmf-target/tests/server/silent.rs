//! Hosts that say nothing, too little, or nonsense, and hosts that never listen, cost nobody else anything.

use std::io::{Read, Write};
use std::net::TcpStream;

use nvme_proto::queue::Transfer;
use nvme_proto::tcp::pdu::PduType;
use nvme_proto::tcp::{HostHandshake, HostRequest, Pda};
use nvme_proto::wire::Nsid;
use nvme_proto::wire::identify::{Cns, IDENTIFY_DATA_BYTES, IdentifyCommand};

use crate::common::host::PATIENCE;
use crate::process::{NQN, Target};
use crate::session::{HOST_2, Options, Session};

fn impatient() -> Target {
    Target::with_file(&format!(
        "[limits]\nhandshake-ms = 300\n[[subsystem]]\nnqn = \"{NQN}\"\nallow-any-host = true\n[[subsystem.namespace]]\nkind = \"memory\"\nsize = \"1M\"\n"
    ))
}

fn raw(target: &Target) -> TcpStream {
    let stream = TcpStream::connect(target.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Everything up to the end of the stream.
fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset ends the stream as well as a FIN does.
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

fn ic_req() -> [u8; 128] {
    let request = HostRequest {
        header_digest: false,
        data_digest: false,
        hpda: Pda::DWORD,
        max_r2t: 1,
    };
    HostHandshake::new(request).request()
}

#[test]
fn silent_sockets_are_closed_wherever_they_stop() {
    let mut target = impatient();
    let mut session = Session::bring_up(target.address(), Options::new(NQN));
    let mut queue = session.io_queue(1);
    for said in [&ic_req()[..0], &ic_req()[..7], &ic_req()[..64]] {
        let mut stream = raw(&target);
        stream.write_all(said).unwrap();
        assert!(rest(stream).is_empty(), "after {} bytes", said.len());
        target.wait_log("no Connect within");
    }
    let mut stream = raw(&target);
    stream.write_all(&ic_req()).unwrap();
    assert_eq!(rest(stream).len(), 128, "ICResp, and then the end");
    target.wait_log("no Connect within");
    assert!(queue.read(0, 512).is_ok());
    assert_eq!(session.namespaces(), [1]);
}

#[test]
fn nonsense_is_answered_with_a_termination_request() {
    let target = impatient();
    let mut session = Session::bring_up(target.address(), Options::new(NQN));
    let mut second = ic_req().to_vec();
    second.extend(ic_req());
    let not_pdu = b"GET / HTTP/1.1\r\nHost: storage\r\n\r\n".to_vec();
    for (said, skip) in [(second, 128), (not_pdu, 0)] {
        let mut stream = raw(&target);
        stream.write_all(&said).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let answer = rest(stream);
        assert_eq!(answer[skip], PduType::C2H_TERM_REQ.0, "{answer:02x?}");
    }
    assert_eq!(session.namespaces(), [1]);
}

#[test]
fn a_host_that_never_reads_starves_nobody_and_ends() {
    let mut target = impatient();
    let mut session = Session::bring_up(target.address(), Options::new(NQN));
    let deaf = Options {
        entries: 1024,
        ..Options::new(NQN).host(HOST_2, 2).kato_ms(1000)
    };
    let mut deaf = Session::bring_up(target.address(), deaf);
    let identify = IdentifyCommand::new(Cns::CONTROLLER, Nsid(0)).to_sqe();
    for _ in 0..1000 {
        let transfer = Transfer::ToHost(IDENTIFY_DATA_BYTES as u32);
        deaf.admin
            .submit(&identify, transfer, vec![0; IDENTIFY_DATA_BYTES]);
    }
    deaf.admin.flush();
    for _ in 0..100 {
        assert_eq!(session.namespaces(), [1]);
    }
    target.wait_log("no sign of life within the keep-alive timeout");
    assert_eq!(session.namespaces(), [1]);
}

#[test]
fn running_out_of_files_is_said_and_survived() {
    let mut target = Target::with_few_files(40);
    let mut session = Session::bring_up(target.address(), Options::new(NQN));
    let mut queue = session.io_queue(1);
    // More than the process can accept; the kernel keeps the rest in its backlog.
    let crowd: Vec<_> = (0..60).map(|_| raw(&target)).collect();
    let line = target.wait_log("cannot accept a connection");
    assert!(line.contains("raise the limit on open files"), "{line}");
    assert!(queue.read(0, 512).is_ok());
    assert_eq!(session.namespaces(), [1]);
    drop(crowd);
    Session::bring_up(target.address(), Options::new(NQN).host(HOST_2, 2));
}
