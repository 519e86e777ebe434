//! The node: its shards, its controllers, and what is asked of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Child;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nvme_proto::wire::identify::Cns;
use nvme_proto::wire::{Cntlid, Nsid};
use tokio::sync::Notify;

use super::RunDir;
use super::api::{ConnectRequest, Failure, FailureKind, Reply, Request, Selection};
use super::attachment::{Association, Attachment, AttachmentSpec, LIVE, Remains};
use super::keeper::{Held, Keeper, pause_after};
use super::shard::DeviceShard;
use super::state::{ControllerRecord, Saver, State};
use crate::block::{BlockForm, DeviceError};
use crate::core::controller::{self, Connected, ControllerInfo, ControllerSpec, Resumed};
use crate::core::error::ConnectError;
use crate::core::message::ShardPort;
use crate::core::scan::Which;

/// See the module's text.
pub(crate) struct Node {
    run: RunDir,
    shards: Vec<DeviceShard>,
    keeper: Keeper,
    attachments: RefCell<Vec<Rc<Attachment>>>,
    /// Targets that are being connected: a second connect meanwhile is a duplicate as well.
    connecting: RefCell<Vec<ConnectRequest>>,
    /// Names of devices in use.
    names: RefCell<BTreeSet<String>>,
    next: Cell<u32>,
    /// What the daemon before left is being taken up; the state is not written.
    is_resuming: Cell<bool>,
    saver: Saver,
    /// Told whenever a controller came, went or changed.
    pub changed: Notify,
}

impl Node {
    pub fn new(run: RunDir, shards: Vec<DeviceShard>, keeper: Keeper) -> Rc<Node> {
        Rc::new(Node {
            run,
            shards,
            keeper,
            attachments: RefCell::default(),
            connecting: RefCell::default(),
            names: RefCell::default(),
            next: Cell::new(0),
            is_resuming: Cell::new(false),
            saver: Saver::default(),
            changed: Notify::new(),
        })
    }

    pub fn run(&self) -> &RunDir {
        &self.run
    }

    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// A shard by number, round and round.
    pub fn shard(&self, number: usize) -> &DeviceShard {
        &self.shards[number % self.shards.len()]
    }

    /// Whether anything is connected or about to be.
    pub fn is_idle(&self) -> bool {
        self.attachments.borrow().is_empty() && self.connecting.borrow().is_empty()
    }

    /// Takes `name`, or one like it that nobody has.
    pub fn reserve_name(&self, name: &str) -> String {
        let mut names = self.names.borrow_mut();
        let candidates = (2..).map(|number| format!("{name}-{number}"));
        let free = std::iter::once(name.to_owned())
            .chain(candidates)
            .find(|name| !names.contains(name));
        let free = free.expect("some number is free");
        names.insert(free.clone());
        free
    }

    pub fn free_name(&self, name: &str) {
        self.names.borrow_mut().remove(name);
    }

    /// Writes down what the next daemon must know; returns when it is written.
    pub async fn save(&self) {
        if self.is_resuming.get() {
            return;
        }
        let state = || State {
            next: self.next.get(),
            controllers: self
                .attachments
                .borrow()
                .iter()
                .map(|attachment| attachment.record())
                .collect(),
            ..State::default()
        };
        self.saver.save(&self.run, state).await;
    }

    /// Has a keeper for as long as the daemon lives: another one when it dies, which is given everything once more.
    pub async fn keep_a_keeper(&self) {
        let (mut pause, mut since) = (Duration::ZERO, Instant::now());
        let mut child = None::<Child>;
        loop {
            if let Err(error) = self.keeper.lost().await {
                tracing::warn!(%error, "cannot watch the keeper: should it die, devices may not survive this process");
                return;
            }
            if let Some(mut child) = child.take() {
                // It has closed its socket, so it is as good as gone.
                let _ = child.wait();
            }
            pause = pause_after(since.elapsed(), pause);
            tracing::warn!(
                "the keeper died; starting another one in {} s",
                pause.as_secs()
            );
            tokio::time::sleep(pause).await;
            since = Instant::now();
            match self.keeper.replace(&self.run) {
                Ok(started) => child = started,
                Err(error) => {
                    tracing::error!(%error, "cannot start a keeper: devices may not survive this process");
                    continue;
                }
            }
            let attachments = self.attachments.borrow().clone();
            for attachment in attachments {
                attachment.hold_again(self).await;
            }
        }
    }

    /// Takes up what the daemon before left.
    pub async fn resume(self: &Rc<Self>, state: State, mut held: Held) {
        self.next.set(state.next);
        let mut resumed = Vec::new();
        // Until all are taken up the file is what the daemon before wrote: true of every device, whoever dies meanwhile.
        self.is_resuming.set(true);
        for record in state.controllers {
            match self.resume_controller(&record) {
                Ok((attachment, resuming)) => {
                    self.attachments.borrow_mut().push(attachment.clone());
                    resumed.push((attachment, record, resuming));
                }
                Err(failure) => {
                    tracing::error!(controller = record.name, %failure, "cannot be taken up again");
                }
            }
        }
        // All at once: each waits for the kernel and for shards most of the time, and all this time its I/O waits.
        let mut adopting = Vec::new();
        for (
            attachment,
            record,
            Resumed {
                namespaces, events, ..
            },
        ) in resumed
        {
            let with_remains: Vec<_> = namespaces
                .into_iter()
                .zip(record.namespaces)
                .map(|((head, info), namespace)| {
                    let remains = namespace.device.map(|device| Remains {
                        fds: held.remove(&device.name).unwrap_or_default(),
                        record: device,
                    });
                    (head, info, remains)
                })
                .collect();
            let node = self.clone();
            adopting.push(tokio_uring::spawn(async move {
                for problem in attachment.adopt(&node, with_remains).await {
                    tracing::error!(
                        controller = attachment.name(),
                        problem,
                        "device not taken up again"
                    );
                }
                tokio_uring::spawn(attachment.follow(node, events));
            }));
        }
        for adopted in adopting {
            if let Err(error) = adopted.await {
                tracing::error!(%error, "a controller was not taken up again");
            }
        }
        self.is_resuming.set(false);
        for (name, fds) in held {
            tracing::warn!(
                name,
                "descriptors of an unknown device are held; they are closed"
            );
            if let Err(error) = self.keeper.release(&name, fds.len()) {
                tracing::warn!(name, %error, "cannot release descriptors");
            }
        }
        self.save().await;
        self.changed.notify_waiters();
    }

    fn resume_controller(
        &self,
        record: &ControllerRecord,
    ) -> Result<(Rc<Attachment>, Resumed), Failure> {
        let form = record
            .form
            .parse::<BlockForm>()
            .map_err(|error| FailureKind::Other.because(error))?;
        let spec = self.spec(&record.request, record.first_shard);
        let known = record
            .namespaces
            .iter()
            .map(|namespace| namespace.info.clone())
            .collect();
        let shards = record.shards.clamp(1, self.shards.len());
        let resumed = controller::resume(spec, shards, known);
        let info = ControllerInfo {
            cntlid: Cntlid::DYNAMIC,
            serial: String::new(),
            model: String::new(),
            firmware: String::new(),
            queues: 0,
            shards,
        };
        let attachment = Attachment::new(AttachmentSpec {
            name: record.name.clone(),
            request: record.request.clone(),
            form,
            first_shard: record.first_shard,
            handle: resumed.handle.clone(),
            info,
            state: "connecting".to_owned(),
            remembered: record.namespaces.clone(),
        });
        Ok((attachment, resumed))
    }

    fn spec(&self, request: &ConnectRequest, first_shard: usize) -> ControllerSpec {
        let ports = (0..self.shards.len()).map(|at| self.shard(first_shard + at).port());
        ControllerSpec {
            target: request.target.clone(),
            host: request.host.clone(),
            shards: ports.collect::<Vec<ShardPort>>(),
            which: Which::All,
        }
    }

    /// Does what is asked.
    pub async fn answer(self: &Rc<Self>, request: Request) -> Reply {
        let result =
            match request {
                Request::Connect(request) => self.connect(request).await,
                Request::Attach(request) => self.attach(request).await,
                Request::Disconnect { what, force } => self.disconnect(&what, force).await,
                Request::List => Ok(Reply::List(
                    self.attachments
                        .borrow()
                        .iter()
                        .map(|a| a.status())
                        .collect(),
                )),
                Request::Identify {
                    of,
                    namespace,
                    nsid,
                } => self.identify(&of, namespace, nsid).await,
                Request::Stop if self.is_idle() => Ok(Reply::Done),
                Request::Stop => Err(FailureKind::Busy
                    .because("controllers are connected; `disconnect --all` first")),
            };
        result.unwrap_or_else(Reply::Failed)
    }

    /// The controller of an association.
    pub(super) fn attached(&self, association: &Association<'_>) -> Option<Rc<Attachment>> {
        let attachments = self.attachments.borrow();
        let it = attachments
            .iter()
            .find(|a| Association::of(a.request()) == *association);
        it.cloned()
    }

    /// Whether it is being connected.
    pub(super) fn is_connecting(&self, association: &Association<'_>) -> bool {
        let connecting = self.connecting.borrow();
        connecting
            .iter()
            .any(|request| Association::of(request) == *association)
    }

    pub(super) async fn connect(
        self: &Rc<Self>,
        request: ConnectRequest,
    ) -> Result<Reply, Failure> {
        request
            .target
            .validate()
            .map_err(|error| FailureKind::Usage.because(error))?;
        let form: BlockForm = request
            .block
            .parse()
            .map_err(|error: String| FailureKind::Usage.because(error))?;
        let form = form
            .resolve()
            .map_err(|error| FailureKind::System.because(error))?;
        if !request.target.options.duplicate_connect {
            let target = &request.target;
            let attached = self
                .attached(&Association::of(&request))
                .map(|a| a.name().to_owned());
            if let Some(name) = attached {
                let message = format!(
                    "{} at {} is connected already, as {name}; --duplicate-connect makes another",
                    target.subnqn, target.address
                );
                return Err(FailureKind::Busy.because(message));
            }
            if self.is_connecting(&Association::of(&request)) {
                let message = format!("{} at {} is being connected", target.subnqn, target.address);
                return Err(FailureKind::Busy.because(message));
            }
        }
        self.connecting.borrow_mut().push(request.clone());
        let result = self.connect_new(request.clone(), form).await;
        let mut connecting = self.connecting.borrow_mut();
        let at = connecting
            .iter()
            .position(|other| other.target == request.target && other.host == request.host);
        connecting.swap_remove(at.expect("pushed above"));
        drop(connecting);
        self.changed.notify_waiters();
        result
    }

    async fn connect_new(
        self: &Rc<Self>,
        request: ConnectRequest,
        form: BlockForm,
    ) -> Result<Reply, Failure> {
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        let first_shard = number as usize % self.shards.len();
        let spec = self.spec(&request, first_shard);
        let (
            Connected {
                handle,
                info,
                namespaces,
                events,
            },
            _,
        ) = controller::connect(spec)
            .await
            .map_err(|error| failure_of(&error))?;
        tracing::info!(subnqn = request.target.subnqn, address = %request.target.address, queues = info.queues, "connected");
        let attachment = Attachment::new(AttachmentSpec {
            name: format!("nvmf{number}"),
            request,
            form,
            first_shard,
            handle,
            info,
            state: LIVE.to_owned(),
            remembered: Vec::new(),
        });
        self.attachments.borrow_mut().push(attachment.clone());
        let count = namespaces.len();
        let namespaces = namespaces
            .into_iter()
            .map(|(head, info)| (head, info, None))
            .collect();
        let problems = attachment.adopt(self, namespaces).await;
        if count > 0 && problems.len() == count {
            // Nothing of it is of any use: leave nothing behind.
            if let Err(error) = attachment.disconnect(self, true).await {
                tracing::warn!(%error, "a device is left behind");
            }
            self.forget(&attachment).await;
            return Err(FailureKind::System.because(problems.join("; ")));
        }
        tokio_uring::spawn(attachment.clone().follow(self.clone(), events));
        Ok(Reply::Connected(attachment.status()))
    }

    pub(super) async fn disconnect(&self, what: &Selection, force: bool) -> Result<Reply, Failure> {
        let chosen: Vec<_> = match what {
            Selection::All => self.attachments.borrow().clone(),
            Selection::Nqn(nqn) => {
                let all = self.attachments.borrow();
                all.iter()
                    .filter(|a| a.request().target.subnqn == *nqn)
                    .cloned()
                    .collect()
            }
            Selection::Device(device) => self
                .find(device)
                .map(|(attachment, _)| attachment)
                .into_iter()
                .collect(),
            Selection::Association {
                address,
                subnqn,
                hostnqn,
            } => {
                let association = Association {
                    address,
                    subnqn,
                    hostnqn,
                };
                self.settled(&association).await;
                self.attached(&association).into_iter().collect()
            }
        };
        if chosen.is_empty() && *what != Selection::All {
            let message = match what {
                Selection::Nqn(nqn) | Selection::Association { subnqn: nqn, .. } => {
                    format!("subsystem {nqn} is not connected; `list` shows what is")
                }
                Selection::Device(device) => not_attached(device),
                Selection::All => String::new(),
            };
            return Err(FailureKind::NotFound.because(message));
        }
        if !force {
            // All or nothing: no controller goes because another one's device is in use.
            for attachment in &chosen {
                attachment
                    .refuse_if_used()
                    .await
                    .map_err(|error| failure_of_device(&error))?;
            }
        }
        let mut names = Vec::new();
        for attachment in &chosen {
            attachment
                .disconnect(self, force)
                .await
                .map_err(|error| failure_of_device(&error))?;
            self.forget(attachment).await;
            names.push(attachment.name().to_owned());
        }
        Ok(Reply::Disconnected(names))
    }

    async fn forget(&self, attachment: &Rc<Attachment>) {
        self.attachments
            .borrow_mut()
            .retain(|other| !Rc::ptr_eq(other, attachment));
        self.save().await;
        self.changed.notify_waiters();
    }

    /// The controller of this name, or behind this device, and then the namespace.
    fn find(&self, device: &str) -> Option<(Rc<Attachment>, Option<u32>)> {
        let attachments = self.attachments.borrow();
        if let Some(attachment) = attachments.iter().find(|a| a.name() == device) {
            return Some((attachment.clone(), None));
        }
        let path = std::fs::canonicalize(device).unwrap_or_else(|_| Path::new(device).to_owned());
        attachments.iter().find_map(|attachment| {
            let status = attachment.status();
            let is_it = |own: &Path| own == path || own == Path::new(device);
            let namespace = status.namespaces.iter().find(|ns| {
                ns.device.as_deref().is_some_and(is_it) || ns.uri.as_deref() == Some(device)
            })?;
            Some((attachment.clone(), Some(namespace.nsid)))
        })
    }

    async fn identify(
        &self,
        of: &str,
        namespace: bool,
        nsid: Option<u32>,
    ) -> Result<Reply, Failure> {
        let (attachment, own) = self
            .find(of)
            .ok_or_else(|| FailureKind::NotFound.because(not_attached(of)))?;
        let (cns, nsid) = match namespace {
            true => (Cns::NAMESPACE, Nsid(nsid.or(own).unwrap_or(1))),
            false => (Cns::CONTROLLER, Nsid::NONE),
        };
        let data = attachment.handle().identify(cns, nsid).await;
        let data = data.map_err(|source| {
            failure_of(&ConnectError::Admin {
                command: "Identify",
                source,
            })
        })?;
        let mut digits = String::with_capacity(2 * data.len());
        for byte in data {
            let _ = write!(digits, "{byte:02x}");
        }
        Ok(Reply::Identify(digits))
    }
}

fn not_attached(device: &str) -> String {
    format!("{device} is none of this initiator's devices or controllers; `list` shows them")
}

/// With the kind that a failed connection attempt has.
pub(crate) fn failure_of(error: &ConnectError) -> Failure {
    let kind = match error {
        ConnectError::Unreachable { .. }
        | ConnectError::Ended { .. }
        | ConnectError::Timeout { .. } => FailureKind::Unreachable,
        ConnectError::Refused { .. }
        | ConnectError::Rejected { .. }
        | ConnectError::AuthenticationRequired(_) => FailureKind::Refused,
        ConnectError::Admin { .. } if error.status().is_some() => FailureKind::Refused,
        ConnectError::Admin { .. } => FailureKind::Unreachable,
        ConnectError::ShardGone | ConnectError::Rdma { .. } => FailureKind::System,
        ConnectError::Violation { .. }
        | ConnectError::NotReady { .. }
        | ConnectError::Fatal(_)
        | ConnectError::Unusable(_)
        | ConnectError::TooFewQueues { .. } => FailureKind::Other,
    };
    kind.because(error)
}

fn failure_of_device(error: &DeviceError) -> Failure {
    let kind = match error {
        DeviceError::InUse { .. } => FailureKind::Busy,
        DeviceError::Unsupported { .. } => FailureKind::System,
        _ => FailureKind::Other,
    };
    kind.because(error)
}
