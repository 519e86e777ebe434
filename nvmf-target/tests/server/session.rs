//! A host with an association: what Linux's does at connect, step by step.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use nvme_proto::queue::Transfer;
use nvme_proto::tcp::host::{HostConn, HostLimits};
use nvme_proto::tcp::{HostHandshake, HostRequest, Pda};
use nvme_proto::wire::event::async_event_request_sqe;
use nvme_proto::wire::fabrics::{Cattr, ConnectData, ConnectResult, ConnectSqe, PropertySqe};
use nvme_proto::wire::identify::{Cns, IDENTIFY_DATA_BYTES, IdentifyCommand};
use nvme_proto::wire::log::{GetLogPage, LogId};
use nvme_proto::wire::property::{Cc, Csts, Property};
use nvme_proto::wire::{Cntlid, HostId, Nqn, Nsid, Qid, Sqe, Status};
use zerocopy::IntoBytes;

use crate::common::host::{Done, PATIENCE, TestHost};

pub const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001";
pub const HOST_2: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000002";

/// Who connects to what, and how.
#[derive(Clone, Debug)]
pub struct Options {
    pub subsystem: String,
    pub host: String,
    pub host_id: [u8; 16],
    pub kato_ms: u32,
    pub digests: bool,
    pub flow_control: bool,
    pub entries: u16,
}

impl Options {
    pub fn new(subsystem: &str) -> Self {
        Options {
            subsystem: subsystem.to_owned(),
            host: HOST.to_owned(),
            host_id: [1; 16],
            kato_ms: 0,
            digests: false,
            flow_control: false,
            entries: 32,
        }
    }

    pub fn host(mut self, host: &str, host_id: u8) -> Self {
        self.host = host.to_owned();
        self.host_id = [host_id; 16];
        self
    }

    pub fn kato_ms(mut self, kato_ms: u32) -> Self {
        self.kato_ms = kato_ms;
        self
    }
}

/// What a refused command was answered: status and dwords 0 and 1.
pub type Refused = (Status, u64);

/// An admin queue.
pub struct Session {
    pub address: SocketAddr,
    pub options: Options,
    pub admin: TestHost,
    pub cntlid: Cntlid,
}

/// ICReq, ICResp and Connect on a new connection.
pub fn connect_queue(
    address: SocketAddr,
    options: &Options,
    qid: Qid,
    cntlid: Cntlid,
) -> Result<(TestHost, u64), Refused> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut handshake = HostHandshake::new(HostRequest {
        header_digest: options.digests,
        data_digest: options.digests,
        hpda: Pda::DWORD,
        max_r2t: 1,
    });
    stream.write_all(&handshake.request()).unwrap();
    let mut response = [0; 128];
    stream.read_exact(&mut response).unwrap();
    let (_, params) = handshake.receive(&response).unwrap();
    let conn = HostConn::new(
        params.expect("a whole ICResp"),
        HostLimits {
            depth: options.entries,
            in_capsule_bytes: 16 << 10,
            flow_control: options.flow_control,
            admin: qid.is_admin(),
        },
    );
    let mut host = TestHost::new(stream, conn);
    let attributes = if options.flow_control {
        Cattr::empty()
    } else {
        Cattr::DISABLE_SQ_FLOW_CONTROL
    };
    let sqe = ConnectSqe::new(qid, options.entries, attributes, options.kato_ms).into_sqe();
    let nqn = |text: &str| text.parse::<Nqn>().unwrap();
    let data = ConnectData::new(
        HostId(options.host_id),
        cntlid,
        &nqn(&options.subsystem),
        &nqn(&options.host),
    );
    let done = host.run(&sqe, Transfer::InCapsule(1024), data.as_bytes().to_vec());
    if done.status.is_success() {
        Ok((host, done.result))
    } else {
        Err((done.status, done.result))
    }
}

/// Whether somebody answers ICReq there.
pub fn answers(address: SocketAddr) -> bool {
    let request = HostRequest {
        header_digest: false,
        data_digest: false,
        hpda: Pda::DWORD,
        max_r2t: 1,
    };
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent = stream.write_all(&HostHandshake::new(request).request());
    sent.is_ok() && stream.read_exact(&mut [0; 128]).is_ok()
}

impl Session {
    /// Connects the admin queue.
    pub fn connect(address: SocketAddr, options: Options) -> Result<Self, Refused> {
        let (admin, result) = connect_queue(address, &options, Qid::ADMIN, Cntlid::DYNAMIC)?;
        Ok(Session {
            address,
            options,
            admin,
            cntlid: ConnectResult::from_result(result).cntlid,
        })
    }

    /// Connects the admin queue and enables the controller.
    pub fn bring_up(address: SocketAddr, options: Options) -> Self {
        let mut session = Self::connect(address, options).unwrap();
        session.enable();
        session
    }

    pub fn property(&mut self, property: Property) -> u64 {
        let done = self.run(&PropertySqe::get(property).into_sqe(), 0);
        assert!(done.status.is_success(), "{}", done.status);
        done.result
    }

    pub fn set_cc(&mut self, cc: Cc) -> Status {
        let sqe = PropertySqe::set(Property::CC, cc.0).into_sqe();
        self.run(&sqe, 0).status
    }

    /// Sets CC.EN and waits for CSTS.RDY.
    pub fn enable(&mut self) {
        let cc = Cc(0)
            .with_en(true)
            .with_iosqes(Cc::IOSQES)
            .with_iocqes(Cc::IOCQES);
        assert_eq!(self.set_cc(cc), Status::SUCCESS);
        self.wait_status("CSTS.RDY", |csts| csts.rdy());
    }

    /// Polls CSTS, as hosts do, until `wanted` holds.
    pub fn wait_status(&mut self, what: &str, wanted: impl Fn(Csts) -> bool) {
        let start = std::time::Instant::now();
        while !wanted(Csts(self.property(Property::CSTS) as u32)) {
            assert!(start.elapsed() < PATIENCE, "no {what}");
        }
    }

    /// An admin command that reads `bytes`, 0 for none.
    pub fn run(&mut self, sqe: &Sqe, bytes: usize) -> Done {
        let transfer = match bytes {
            0 => Transfer::None,
            _ => Transfer::ToHost(bytes as u32),
        };
        self.admin.run(sqe, transfer, vec![0; bytes])
    }

    pub fn identify(&mut self, cns: Cns, nsid: u32) -> Result<Vec<u8>, Status> {
        let sqe = IdentifyCommand::new(cns, Nsid(nsid)).to_sqe();
        let done = self.run(&sqe, IDENTIFY_DATA_BYTES);
        match done.status.is_success() {
            true => Ok(done.data),
            false => Err(done.status),
        }
    }

    /// The active namespaces.
    pub fn namespaces(&mut self) -> Vec<u32> {
        let list = self.identify(Cns::ACTIVE_NAMESPACES, 0).unwrap();
        let words = list
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()));
        words.take_while(|nsid| *nsid != 0).collect()
    }

    /// Size of a namespace in blocks.
    pub fn blocks(&mut self, nsid: u32) -> u64 {
        let data = self.identify(Cns::NAMESPACE, nsid).unwrap();
        u64::from_le_bytes(data[..8].try_into().unwrap())
    }

    /// The namespace's identification descriptors as they are on the wire.
    pub fn descriptors(&mut self, nsid: u32) -> Vec<u8> {
        self.identify(Cns::NAMESPACE_DESCRIPTORS, nsid).unwrap()
    }

    pub fn log(&mut self, lid: LogId, bytes: u32) -> Vec<u8> {
        let done = self.run(&GetLogPage::new(lid, bytes, 0).to_sqe(), bytes as usize);
        assert!(done.status.is_success(), "{}", done.status);
        done.data
    }

    /// Leaves an Asynchronous Event Request with the controller.
    pub fn request_event(&mut self) -> nvme_proto::queue::SlotId {
        let slot = self
            .admin
            .submit(&async_event_request_sqe(), Transfer::None, Vec::new());
        self.admin.flush();
        slot
    }

    /// Connects an I/O queue.
    pub fn try_io_queue(&self, qid: u16) -> Result<TestHost, Refused> {
        let options = Options {
            kato_ms: 0,
            ..self.options.clone()
        };
        connect_queue(self.address, &options, Qid(qid), self.cntlid).map(|(host, _)| host)
    }

    pub fn io_queue(&self, qid: u16) -> TestHost {
        self.try_io_queue(qid).unwrap_or_else(|(status, result)| {
            panic!("I/O queue {qid}: {status}, result {result:#x}")
        })
    }
}
