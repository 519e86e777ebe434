//! A target in this process that misbehaves as it is told: silent commands, Aborts without an answer, PDUs that break rules.
//!
//! It stands on the library's own controller side, so that everything it is not told to do wrong is right. One thread serves each
//! connection; a break of the rules happens once, and the thread then listens for what the host says about it.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use nvme_proto::controller::{
    AdminAction, Controller, ControllerInit, ControllerKind, ControllerLimits, DiscoveryRecords,
    NamespaceInfo, SmartCounters, SubsystemInfo, SubsystemView, Transport,
};
use nvme_proto::digest::Crc;
use nvme_proto::queue::{QueueLimits, SlotId, Transfer};
use nvme_proto::tcp::controller::Received;
use nvme_proto::tcp::{
    ControllerConn, ControllerHandshake, ControllerOffer, HandshakeEvent, Pda, TX_HEADER_BYTES,
    TcpParams, TxHeader,
};
use nvme_proto::wire::event::AbortCommand;
use nvme_proto::wire::fabrics::ConnectSqe;
use nvme_proto::wire::text::Ascii;
use nvme_proto::wire::{
    AdminOpcode, Cid, Cntlid, Eui64, IoOpcode, Nguid, Nsid, Qid, Sqe, Status, Uuid,
};

use crate::target::NQN;

/// Bytes of the one namespace, of 512-byte blocks.
const DISK_BYTES: usize = 4 << 20;

/// When rules are broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// In place of ICResp.
    IcResp,
    /// In place of the answer to Connect, on the queue with this identifier.
    Connect(Qid),
    /// In place of the answer to the next Identify.
    Identify,
    /// In place of the answer to the next I/O command.
    Io,
}

/// Bytes for the host, made from what was agreed on and the command that they answer.
pub type Breach = Box<dyn FnOnce(&TcpParams, &Sqe) -> Vec<u8> + Send>;

/// What becomes of Aborts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aborts {
    /// The command ends, and the answer says so.
    Work,
    /// The command goes on, and the answer says so.
    TooLate,
    /// Nothing.
    Silent,
}

pub struct Script {
    /// I/O commands are not answered.
    pub silent: bool,
    /// Keep Alives are not answered.
    pub ignore_keep_alives: bool,
    pub aborts: Aborts,
    pub breach: Option<(Moment, Breach)>,
    /// It does not close the connection when it is told that it broke a rule.
    pub stubborn: bool,
    /// Connect of an I/O queue is answered after so many Keep Alives since the last one.
    pub keep_alives_before_queues: u32,
}

#[derive(Default)]
pub struct Seen {
    pub admin_connects: u32,
    pub io_connects: u32,
    pub keep_alives: u32,
    pub aborts: Vec<AbortCommand>,
    /// Without an answer, of the association that was made last.
    pub aborts_open: usize,
    pub aborts_open_at_most: usize,
    /// What the rules were broken with.
    pub breaches: Vec<Vec<u8>>,
    /// All that the host sent after a break of the rules, until the connection ended.
    pub farewells: Vec<Vec<u8>>,
}

struct State {
    script: Script,
    seen: Seen,
    disk: Vec<u8>,
    controllers: HashMap<u16, Controller>,
    /// Connections of I/O queues, for Aborts: the last one of each identifier.
    queues: HashMap<Qid, Arc<Mutex<Queue>>>,
}

pub struct Puppet {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct Queue {
    conn: ControllerConn,
    stream: TcpStream,
    buffers: Vec<Vec<u8>>,
}

impl Puppet {
    pub fn start(script: Script) -> Puppet {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            script,
            seen: Seen::default(),
            disk: (0..DISK_BYTES / 4)
                .flat_map(|word| (word as u32).to_le_bytes())
                .collect(),
            controllers: HashMap::new(),
            queues: HashMap::new(),
        }));
        let accepting = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let state = accepting.clone();
                std::thread::spawn(move || Connection::serve(stream.unwrap(), &state));
            }
        });
        Puppet { address, state }
    }

    pub fn url(&self, options: &str) -> String {
        format!("nvme+tcp://{}/{NQN}?nsid=1{options}", self.address)
    }

    pub fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut lock(&self.state).script);
    }

    pub fn see<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&lock(&self.state).seen)
    }
}

impl Default for Script {
    fn default() -> Self {
        Script {
            silent: false,
            ignore_keep_alives: false,
            aborts: Aborts::Work,
            breach: None,
            stubborn: false,
            keep_alives_before_queues: 0,
        }
    }
}

/// Of a test that failed in another thread, whatever it left behind is good enough.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The host has gone, or is to go.
struct Over;

impl From<std::io::Error> for Over {
    fn from(_: std::io::Error) -> Self {
        Over
    }
}

struct Connection<'a> {
    stream: TcpStream,
    state: &'a Mutex<State>,
}

impl Connection<'_> {
    fn serve(stream: TcpStream, state: &Mutex<State>) {
        stream.set_nodelay(true).unwrap();
        let mut connection = Connection { stream, state };
        // Either way the connection is over.
        let Err(Over) = connection.run();
    }

    fn breach(&mut self, moment: Moment, params: &TcpParams, sqe: &Sqe) -> Result<(), Over> {
        let mut state = lock(self.state);
        let Some((_, breach)) = state.script.breach.take_if(|(when, _)| *when == moment) else {
            return Ok(());
        };
        let stubborn = state.script.stubborn;
        drop(state);
        let wrong = breach(params, sqe);
        self.stream.write_all(&wrong)?;
        lock(self.state).seen.breaches.push(wrong);
        let (mut said, mut buf) = (Vec::new(), [0; 4096]);
        loop {
            // An end by a reset is an end.
            let read = self.stream.read(&mut buf).unwrap_or(0);
            said.extend_from_slice(&buf[..read]);
            let whole = said.len() >= 8
                && said.len() >= u32::from_le_bytes(said[4..8].try_into().unwrap()) as usize;
            if read == 0 || (whole && !stubborn) {
                lock(self.state).seen.farewells.push(said);
                return Err(Over);
            }
        }
    }

    fn run(&mut self) -> Result<std::convert::Infallible, Over> {
        let mut handshake = ControllerHandshake::new(ControllerOffer {
            header_digest: true,
            data_digest: true,
            cpda: Pda::DWORD,
            max_h2c_data_bytes: 128 << 10,
        });
        let nothing = TcpParams {
            header_digest: false,
            data_digest: false,
            pda: Pda::DWORD,
            receive_pda: Pda::DWORD,
            max_h2c_data_bytes: 0,
            max_r2t: 1,
        };
        let mut buf = vec![0; 64 << 10];
        let (connect, rest) = loop {
            let read = self.stream.read(&mut buf)?;
            if read == 0 {
                return Err(Over);
            }
            // Nothing follows ICReq, or Connect, before it is answered.
            let (taken, event) = handshake.receive(&buf[..read]).map_err(|_| Over)?;
            let output = handshake.take_output();
            if !output.is_empty() {
                let none = Sqe::new(AdminOpcode::IDENTIFY);
                self.breach(Moment::IcResp, &nothing, &none)?;
                self.stream.write_all(&output)?;
            }
            match event {
                HandshakeEvent::NeedMore => {}
                HandshakeEvent::Connect(connect) => break (connect, buf[taken..read].to_vec()),
                HandshakeEvent::Refused { .. } | HandshakeEvent::TermReq { .. } => {
                    return Err(Over);
                }
            }
        };
        let sqe = ConnectSqe::from_sqe(&connect.sqe);
        let qid = Qid(sqe.qid.get());
        self.breach(Moment::Connect(qid), &connect.params, &connect.sqe)?;
        let cntlid = self.count(qid, &connect.data);
        if !qid.is_admin() {
            self.wait_keep_alives();
        }
        let limits = QueueLimits {
            depth: sqe.sqsize.get() + 1,
            in_capsule_bytes: 16 << 10,
            max_transfer_bytes: 1 << 20,
            r2t_window_bytes: 1 << 20,
            flow_control: false,
            success_flag: true,
            admin: qid.is_admin(),
        };
        let mut conn = ControllerConn::new(connect.params, limits);
        conn.accept_connect(connect.sqe.cid(), cntlid.into());
        let queue = Arc::new(Mutex::new(Queue {
            conn,
            stream: self.stream.try_clone()?,
            buffers: vec![Vec::new(); usize::from(limits.depth)],
        }));
        if !qid.is_admin() {
            lock(self.state).queues.insert(qid, queue.clone());
        }
        let mut input = rest;
        loop {
            self.commands(&queue, qid, cntlid, &connect.params, &input)?;
            lock(&queue).flush()?;
            let read = self.stream.read(&mut buf)?;
            if read == 0 {
                return Err(Over);
            }
            input = buf[..read].to_vec();
        }
    }

    /// Waits for as many Keep Alives as the script wants.
    fn wait_keep_alives(&self) {
        let enough = {
            let state = lock(self.state);
            state.seen.keep_alives + state.script.keep_alives_before_queues
        };
        crate::target::eventually("Keep Alive while a queue is connected", || {
            lock(self.state).seen.keep_alives >= enough
        });
    }

    /// Counts the connection; its controller's identifier, which on the admin queue is that of a new controller.
    fn count(&self, qid: Qid, data: &nvme_proto::wire::fabrics::ConnectData) -> u16 {
        let mut state = lock(self.state);
        if !qid.is_admin() {
            state.seen.io_connects += 1;
            let cntlid = data.cntlid.get();
            if let Some(controller) = state.controllers.get_mut(&cntlid) {
                controller.io_queue_connected(qid);
            }
            return cntlid;
        }
        state.seen.admin_connects += 1;
        state.seen.aborts_open = 0;
        let cntlid = state.seen.admin_connects as u16;
        let init = ControllerInit {
            kind: ControllerKind::Io,
            cntlid: Cntlid(cntlid),
            host_nqn: nvme_proto::wire::Nqn::from_field(&data.hostnqn).unwrap(),
            host_id: data.hostid,
            transport: Transport::Tcp,
            kato_ms: 0,
            limits: ControllerLimits::default(),
        };
        state.controllers.insert(cntlid, Controller::new(init, 0));
        cntlid
    }

    fn commands(
        &mut self,
        queue: &Mutex<Queue>,
        qid: Qid,
        cntlid: u16,
        params: &TcpParams,
        mut input: &[u8],
    ) -> Result<(), Over> {
        loop {
            let mut this = lock(queue);
            let (taken, received) = this.conn.receive(input).map_err(|_| Over)?;
            let ready = match received {
                Received::NeedMore => return Ok(()),
                Received::Command { slot } => {
                    let transfer = this.conn.transfer(slot);
                    this.buffers[slot.index()] = vec![0; transfer.bytes() as usize];
                    match transfer {
                        Transfer::InCapsule(_) => None,
                        Transfer::FromHost(_) => {
                            this.conn.request_data(slot);
                            None
                        }
                        Transfer::None | Transfer::ToHost(_) => Some(slot),
                    }
                }
                Received::Payload {
                    slot,
                    offset,
                    range,
                } => {
                    let at = offset as usize;
                    this.buffers[slot.index()][at..at + range.len()].copy_from_slice(&input[range]);
                    None
                }
                Received::DataReady { slot } => Some(slot),
                Received::DataDigestError { slot } => {
                    this.conn
                        .complete(slot, Status::TRANSIENT_TRANSPORT_ERROR, 0);
                    None
                }
                Received::Refused { .. } => None,
                Received::TermReq { .. } => return Err(Over),
            };
            drop(this);
            if let Some(slot) = ready {
                self.execute(queue, qid, cntlid, params, slot)?;
            }
            input = &input[taken..];
        }
    }

    fn execute(
        &mut self,
        queue: &Mutex<Queue>,
        qid: Qid,
        cntlid: u16,
        params: &TcpParams,
        slot: SlotId,
    ) -> Result<(), Over> {
        let sqe = *lock(queue).conn.command(slot);
        if qid.is_admin() {
            if sqe.opcode == AdminOpcode::IDENTIFY && !sqe.is_fabrics() {
                self.breach(Moment::Identify, params, &sqe)?;
            }
            return self.admin(queue, cntlid, &sqe, slot);
        }
        self.breach(Moment::Io, params, &sqe)?;
        let mut state = lock(self.state);
        if state.script.silent {
            return Ok(());
        }
        let mut this = lock(queue);
        let Queue { conn, buffers, .. } = &mut *this;
        let buffer = &mut buffers[slot.index()];
        let at = sqe.cdw10_11() as usize * 512;
        match sqe.opcode {
            IoOpcode::READ => {
                let bytes = buffer.len();
                buffer.copy_from_slice(&state.disk[at..at + bytes]);
                conn.complete_with_data(slot, bytes as u32, 0);
            }
            IoOpcode::WRITE => {
                state.disk[at..at + buffer.len()].copy_from_slice(buffer);
                conn.complete(slot, Status::SUCCESS, 0);
            }
            _ => conn.complete(slot, Status::SUCCESS, 0),
        }
        Ok(())
    }

    fn admin(
        &mut self,
        queue: &Mutex<Queue>,
        cntlid: u16,
        sqe: &Sqe,
        slot: SlotId,
    ) -> Result<(), Over> {
        let mut state = lock(self.state);
        if sqe.opcode == AdminOpcode::KEEP_ALIVE && !sqe.is_fabrics() {
            state.seen.keep_alives += 1;
            if state.script.ignore_keep_alives {
                return Ok(());
            }
        }
        let controller = state.controllers.get_mut(&cntlid).ok_or(Over)?;
        let mut out = Vec::new();
        let action = controller.admin(sqe, slot.0, &Subsystem, &mut out, 0);
        let (status, result) = match action {
            AdminAction::Complete { status, result } => (status, result),
            AdminAction::CompleteWithData { len_bytes } => {
                let mut this = lock(queue);
                this.buffers[slot.index()] = out;
                this.conn.complete_with_data(slot, len_bytes, 0);
                return Ok(());
            }
            AdminAction::Hold => return Ok(()),
            AdminAction::Abort { sqid, cid } => {
                controller.abort_done();
                state.seen.aborts.push(AbortCommand { sqid, cid });
                state.seen.aborts_open += 1;
                state.seen.aborts_open_at_most =
                    state.seen.aborts_open_at_most.max(state.seen.aborts_open);
                if state.script.aborts == Aborts::Silent {
                    return Ok(());
                }
                state.seen.aborts_open -= 1;
                let victim = state.queues.get(&sqid).cloned();
                let works = state.script.aborts == Aborts::Work;
                let aborted = works && victim.is_some_and(|victim| lock(&victim).abort(cid));
                (Status::SUCCESS, AbortCommand::result(aborted))
            }
            AdminAction::Disable => {
                controller.drained();
                (Status::SUCCESS, 0)
            }
            AdminAction::Shutdown { .. } => {
                controller.shutdown_done();
                (Status::SUCCESS, 0)
            }
        };
        lock(queue).conn.complete(slot, status, result);
        Ok(())
    }
}

impl Queue {
    fn flush(&mut self) -> Result<(), Over> {
        let mut wire = Vec::new();
        let mut header: TxHeader = [0; TX_HEADER_BYTES];
        while let Some(pdu) = self.conn.poll_transmit(&mut header) {
            wire.extend_from_slice(&header[..usize::from(pdu.header_bytes)]);
            let Some(payload) = pdu.payload else { continue };
            let from = payload.offset as usize;
            let data = &self.buffers[payload.slot.index()][from..from + payload.len as usize];
            wire.extend_from_slice(data);
            if payload.digest {
                wire.extend_from_slice(&Crc::of(data).to_wire());
            }
        }
        Ok(self.stream.write_all(&wire)?)
    }

    fn abort(&mut self, cid: Cid) -> bool {
        let open: Vec<_> = self.conn.live_slots().map(|(slot, _)| slot).collect();
        let victim = open
            .into_iter()
            .find(|slot| self.conn.command(*slot).cid() == cid);
        let Some(slot) = victim else { return false };
        self.conn.complete(slot, Status::ABORT_REQUESTED, 0);
        self.flush().is_ok()
    }
}

struct Subsystem;

impl SubsystemView for Subsystem {
    fn subsystem(&self) -> &SubsystemInfo {
        static INFO: std::sync::OnceLock<SubsystemInfo> = std::sync::OnceLock::new();
        INFO.get_or_init(|| SubsystemInfo {
            nqn: NQN.parse().unwrap(),
            serial: Ascii::new("PUPPET").unwrap(),
            model: Ascii::new("puppet").unwrap(),
            firmware: Ascii::new("1").unwrap(),
            max_nsid: Nsid(4),
            multiple_ports: false,
        })
    }

    fn namespace(&self, nsid: Nsid) -> Option<NamespaceInfo> {
        (nsid == Nsid(1)).then_some(NamespaceInfo {
            block_shift: 9,
            blocks: DISK_BYTES as u64 / 512,
            used_blocks: None,
            read_only: false,
            uuid: Uuid([3; 16]),
            nguid: Nguid([4; 16]),
            eui64: Eui64::NONE,
            deallocate_reads_zeroes: true,
            atomic_blocks: 1,
            preferred: None,
        })
    }

    fn next_namespace(&self, after: Nsid) -> Option<Nsid> {
        (after == Nsid::NONE).then_some(Nsid(1))
    }

    fn smart(&self, _: Option<Nsid>) -> SmartCounters {
        SmartCounters::default()
    }

    fn discovery(&self, _: &nvme_proto::wire::Nqn) -> DiscoveryRecords {
        DiscoveryRecords::default()
    }
}

/// How long something took, for the log of a failure.
pub fn timed<T>(what: impl FnOnce() -> T) -> (T, std::time::Duration) {
    let start = Instant::now();
    let result = what();
    (result, start.elapsed())
}
