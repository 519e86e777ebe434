//! One shard or several, and what the control thread would do for them.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use nvme_proto::queue::{QueueLimits, Transfer};
use nvme_proto::tcp::Pda;
use nvme_proto::tcp::host::{HostConn, HostLimits};
use nvme_proto::tcp::{ControllerConn, TX_HEADER_BYTES, TcpParams};
use nvme_proto::wire::{Cntlid, FabricsType, Nsid, Opcode, Qid, Sqe};
use nvmf_target::backend::{Backing, BackingOptions, BackingSpec};
use nvmf_target::model::{
    ControllerKey, ControllerShared, Geometry, IoCounters, Namespace, NamespaceIds, NamespaceTable,
    Nqn, SubsystemId,
};
use nvmf_target::shard::{
    Adopt, CloseReason, Connection, Reply, Scope, ShardConfig, ShardEvent, ShardHandle,
    ShardMessage, ShardStats,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;
use zerocopy::little_endian::U32;

use super::host::{PATIENCE, TestHost};

pub const SUBSYSTEM: SubsystemId = SubsystemId(1);
/// What storage of a test has, where its size is of no account.
pub const SIZE: u64 = 64 << 20;
pub const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001";

/// Storage in memory.
pub fn memory() -> BackingSpec {
    BackingSpec::Memory { size_bytes: SIZE }
}

/// Storage in a file of this directory, made where it is missing.
pub fn file_in(dir: &Path) -> BackingSpec {
    BackingSpec::File {
        path: dir.join("disk"),
        size_bytes: Some(SIZE),
    }
}

/// How a host connects.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    pub cntlid: u16,
    pub qid: u16,
    pub depth: u16,
    pub in_capsule_bytes: u32,
    pub r2t_window_bytes: u32,
    pub max_h2c_data_bytes: u32,
    pub max_transfer_bytes: u32,
    pub flow_control: bool,
    pub digests: bool,
    pub host_nqn: &'static str,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            cntlid: 1,
            qid: 1,
            depth: 128,
            in_capsule_bytes: 16 << 10,
            r2t_window_bytes: 128 << 10,
            max_h2c_data_bytes: 128 << 10,
            max_transfer_bytes: 1 << 20,
            flow_control: false,
            digests: false,
            host_nqn: HOST,
        }
    }
}

/// Shards that a rig may have: lines of its counters.
pub const MAX_SHARDS: usize = 4;

pub struct Rig {
    shards: Vec<ShardHandle>,
    events: UnboundedReceiver<ShardEvent>,
    pub table: Arc<NamespaceTable>,
    pub controllers: Vec<Arc<ControllerShared>>,
}

/// Namespace `nsid` on a new backing.
pub fn namespace(nsid: u32, spec: &BackingSpec) -> Arc<Namespace> {
    // The kernel closes the files of a ring that is gone in its own time.
    let backing = Backing::open_patiently(spec, &BackingOptions::default(), PATIENCE).unwrap();
    namespace_on(nsid, Arc::new(backing))
}

/// Namespace `nsid` on an opened backing, of its size now.
pub fn namespace_on(nsid: u32, backing: Arc<Backing>) -> Arc<Namespace> {
    Arc::new(Namespace {
        nsid: Nsid(nsid),
        ids: NamespaceIds {
            uuid: uuid::Uuid::from_u128(nsid.into()),
            nguid: [nsid as u8; 16],
            eui64: [0; 8],
        },
        geometry: Geometry::new(backing.block_bytes(), backing.size_bytes()).unwrap(),
        read_only: backing.read_only(),
        backing,
        counters: IoCounters::new(MAX_SHARDS),
    })
}

impl Rig {
    pub fn new(specs: &[BackingSpec]) -> Self {
        Self::with_config(ShardConfig::new(0), specs)
    }

    /// Namespaces 1, 2 … on `specs`.
    pub fn with_config(config: ShardConfig, specs: &[BackingSpec]) -> Self {
        Self::with_shards([config], specs)
    }

    /// The same with several shards; what the methods below do with one is done with the first.
    pub fn with_shards(
        configs: impl IntoIterator<Item = ShardConfig>,
        specs: &[BackingSpec],
    ) -> Self {
        let (sender, events) = unbounded_channel();
        let shards: Vec<_> = configs
            .into_iter()
            .map(|config| ShardHandle::spawn(config, sender.clone()).unwrap())
            .collect();
        assert!(shards.len() <= MAX_SHARDS);
        let mut rig = Self {
            shards,
            events,
            table: Arc::default(),
            controllers: Vec::new(),
        };
        let namespaces = (1..).zip(specs).map(|(nsid, spec)| namespace(nsid, spec));
        rig.set_namespaces(NamespaceTable::new(namespaces));
        rig
    }

    pub fn send(&self, message: ShardMessage) {
        self.shards[0].send(message).unwrap();
    }

    /// Asks every shard, for the answers later; in the order of the shards.
    pub fn ask_each<T>(
        &self,
        message: impl Fn(Reply<T>) -> ShardMessage,
    ) -> Vec<oneshot::Receiver<T>> {
        let ask = |shard: &ShardHandle| {
            let (reply, answer) = oneshot::channel();
            shard.send(message(reply)).unwrap();
            answer
        };
        self.shards.iter().map(ask).collect()
    }

    /// Asks every shard and waits for all answers.
    pub fn call_each<T>(&self, message: impl Fn(Reply<T>) -> ShardMessage) -> Vec<T> {
        let answers = self.ask_each(message).into_iter();
        answers
            .map(|answer| answer.blocking_recv().expect("the shard answers"))
            .collect()
    }

    /// Sends what `message` makes of a reply, for the answer later.
    pub fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> ShardMessage) -> oneshot::Receiver<T> {
        let (reply, answer) = oneshot::channel();
        self.send(message(reply));
        answer
    }

    /// Sends what `message` makes of a reply, and waits for the answer.
    pub fn call<T>(&self, message: impl FnOnce(Reply<T>) -> ShardMessage) -> T {
        self.ask(message)
            .blocking_recv()
            .expect("the shard answers")
    }

    pub fn set_namespaces(&mut self, table: NamespaceTable) {
        self.table = Arc::new(table);
        let table = self.table.clone();
        self.call_each(|ack| ShardMessage::Namespaces {
            subsystem: SUBSYSTEM,
            table: table.clone(),
            ack,
        });
    }

    pub fn pause(&self, scope: Scope) {
        self.call(|ack| ShardMessage::Pause { scope, ack });
    }

    pub fn resume(&self, scope: Scope) {
        self.call(|ack| ShardMessage::Resume { scope, ack });
    }

    pub fn stats(&self) -> ShardStats {
        self.call(|reply| ShardMessage::Stats { reply })
    }

    pub fn key(&self, cntlid: u16) -> ControllerKey {
        ControllerKey {
            subsystem: SUBSYSTEM,
            cntlid: Cntlid(cntlid),
        }
    }

    pub fn controller(&mut self, options: &ConnectOptions) -> Arc<ControllerShared> {
        let key = self.key(options.cntlid);
        if let Some(known) = self
            .controllers
            .iter()
            .find(|controller| controller.key == key)
        {
            return known.clone();
        }
        let nqn: Nqn = options.host_nqn.parse().unwrap();
        let made = ControllerShared::new(key, nqn, [1; 16], MAX_SHARDS);
        self.controllers.push(made.clone());
        made
    }

    pub fn connect(&mut self) -> TestHost {
        self.connect_with(&ConnectOptions::default())
    }

    /// Makes a connection and hands it to the shard, with the Connect answered.
    pub fn connect_with(&mut self, options: &ConnectOptions) -> TestHost {
        self.connect_to(0, options)
    }

    /// The same with the shard of this number.
    pub fn connect_to(&mut self, shard: usize, options: &ConnectOptions) -> TestHost {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nodelay(true).unwrap();
        let tcp = TcpParams {
            header_digest: options.digests,
            data_digest: options.digests,
            pda: Pda::DWORD,
            receive_pda: Pda::DWORD,
            max_h2c_data_bytes: options.max_h2c_data_bytes,
            max_r2t: 1,
        };
        let conn = HostConn::new(
            tcp,
            HostLimits {
                depth: options.depth,
                in_capsule_bytes: options.in_capsule_bytes,
                flow_control: options.flow_control,
                admin: false,
            },
        );
        let mut host = TestHost::new(client, conn);
        // Connect is sent and received here: the shard only answers it.
        let mut connect = Sqe::new(Opcode::FABRICS);
        connect.nsid = U32::new(FabricsType::CONNECT.0.into());
        let slot = host.submit(&connect, Transfer::InCapsule(1024), vec![0; 1024]);
        let connect_cid = host.cid(slot);
        let sent = host.outgoing();
        assert!(sent.len() > TX_HEADER_BYTES);
        let controller = self.controller(options);
        let limits = QueueLimits {
            depth: options.depth,
            in_capsule_bytes: options.in_capsule_bytes,
            max_transfer_bytes: options.max_transfer_bytes,
            r2t_window_bytes: options.r2t_window_bytes,
            flow_control: options.flow_control,
            success_flag: true,
            admin: false,
        };
        let mut conn = ControllerConn::new(tcp, limits);
        conn.accept_connect(connect_cid, options.cntlid.into());
        let adopt = ShardMessage::Adopt(Box::new(Adopt {
            connection: Connection::Tcp {
                fd: server.into(),
                received: Vec::new(),
                conn: Box::new(conn),
            },
            limits,
            qid: Qid(options.qid),
            connect_cid,
            controller,
        }));
        self.shards[shard].send(adopt).unwrap();
        let done = host.wait(slot);
        assert!(done.status.is_success(), "{:?}", done.status);
        assert_eq!(done.result, u64::from(options.cntlid));
        host
    }

    /// The next queue that closed, and why.
    pub fn closed(&mut self) -> (ControllerKey, Qid, CloseReason) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let event =
            runtime.block_on(async { tokio::time::timeout(PATIENCE, self.events.recv()).await });
        let Ok(event) = event else {
            panic!("no queue closes in time: {:?}", self.stats());
        };
        match event {
            Some(ShardEvent::QueueClosed {
                controller,
                qid,
                reason,
                ..
            }) => (controller, qid, reason),
            other => panic!("expected a closed queue, got {other:?}"),
        }
    }

    /// Whether a queue has closed by now.
    pub fn has_closed(&mut self) -> bool {
        self.events.try_recv().is_ok()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for shard in self.shards.drain(..) {
            let (ack, done) = oneshot::channel();
            shard
                .send(ShardMessage::Stop { ack })
                .expect("the shard still runs");
            done.blocking_recv().expect("the shard stops in order");
            shard.join();
        }
    }
}
