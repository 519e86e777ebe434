//! The node: which controllers there are, and what is asked of them.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Child;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nvme_proto::wire::identify::Cns;
use nvme_proto::wire::{Cntlid, Nsid};

use super::api::{ConnectRequest, Failure, FailureKind, LIVE, Reply, Request, Selection};
use super::attachment::{AssociationKey, Attachment, AttachmentSpec};
use super::keeper::{Held, pause_after};
use super::served::Remains;
use super::shared::Shared;
use super::state::ControllerRecord;
use crate::block::{BlockForm, DeviceError};
use crate::core::controller::{self, Connected, ControllerInfo, ControllerSpec, Resumed};
use crate::core::error::ConnectError;
use crate::core::message::ShardPort;
use crate::core::scan::Which;

/// See the module's text.
pub(super) struct Node {
    pub shared: Rc<Shared>,
    attachments: RefCell<Vec<Rc<Attachment>>>,
    /// Targets that are being connected: a second connect meanwhile is a duplicate as well.
    connecting: RefCell<Vec<ConnectRequest>>,
}

impl Node {
    pub fn new(shared: Rc<Shared>) -> Rc<Node> {
        Rc::new(Node {
            shared,
            attachments: RefCell::default(),
            connecting: RefCell::default(),
        })
    }

    /// Whether anything is connected or about to be.
    pub fn is_idle(&self) -> bool {
        self.attachments.borrow().is_empty() && self.connecting.borrow().is_empty()
    }

    /// Has a keeper for as long as the daemon lives: another one when it dies, which is given everything once more.
    pub async fn keep_a_keeper(&self) {
        let (mut pause, mut since) = (Duration::ZERO, Instant::now());
        let mut child = None::<Child>;
        loop {
            if let Err(error) = self.shared.keeper.lost().await {
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
            match self.shared.keeper.replace(&self.shared.run) {
                Ok(started) => child = started,
                Err(error) => {
                    tracing::error!(%error, "cannot start a keeper: devices may not survive this process");
                    continue;
                }
            }
            let attachments = self.attachments.borrow().clone();
            for attachment in attachments {
                attachment.hold_again().await;
            }
        }
    }

    /// Takes up what the daemon before left.
    pub async fn resume(&self, mut held: Held) {
        let mut resumed = Vec::new();
        for record in self.shared.records() {
            match self.resume_controller(&record) {
                Ok((attachment, resuming)) => {
                    self.attachments.borrow_mut().push(attachment.clone());
                    resumed.push((attachment, record, resuming));
                }
                Err(failure) => {
                    tracing::error!(controller = record.name, %failure, "cannot be taken up again");
                    self.shared.forget(&record.name).await;
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
            adopting.push(tokio_uring::spawn(async move {
                for problem in attachment.adopt(with_remains).await {
                    tracing::error!(
                        controller = attachment.name(),
                        problem,
                        "device not taken up again"
                    );
                }
                tokio_uring::spawn(attachment.follow(events));
            }));
        }
        for adopted in adopting {
            if let Err(error) = adopted.await {
                tracing::error!(%error, "a controller was not taken up again");
            }
        }
        for (name, fds) in held {
            tracing::warn!(
                name,
                "descriptors of an unknown device are held; they are closed"
            );
            if let Err(error) = self.shared.keeper.release(&name, fds.len()) {
                tracing::warn!(name, %error, "cannot release descriptors");
            }
        }
        self.shared.taken_up().await;
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
        let shards = record.shards.clamp(1, self.shared.shards());
        let resumed = controller::resume(spec, shards, known);
        let info = ControllerInfo {
            cntlid: Cntlid::DYNAMIC,
            serial: String::new(),
            model: String::new(),
            firmware: String::new(),
            queues: 0,
            shards,
        };
        let spec = AttachmentSpec {
            name: record.name.clone(),
            request: record.request.clone(),
            form,
            first_shard: record.first_shard,
            handle: resumed.handle.clone(),
            info,
            state: "connecting".to_owned(),
        };
        Ok((Attachment::new(self.shared.clone(), spec), resumed))
    }

    fn spec(&self, request: &ConnectRequest, first_shard: usize) -> ControllerSpec {
        let ports = (0..self.shared.shards()).map(|at| self.shared.shard(first_shard + at).port());
        ControllerSpec {
            target: request.target.clone(),
            host: request.host.clone(),
            shards: ports.collect::<Vec<ShardPort>>(),
            which: Which::All,
        }
    }

    /// Does what is asked.
    pub async fn answer(&self, request: Request) -> Reply {
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
    pub(super) fn attached(&self, association: &AssociationKey<'_>) -> Option<Rc<Attachment>> {
        let attachments = self.attachments.borrow();
        let it = attachments
            .iter()
            .find(|a| AssociationKey::of(a.request()) == *association);
        it.cloned()
    }

    /// Whether it is being connected.
    pub(super) fn is_connecting(&self, association: &AssociationKey<'_>) -> bool {
        let connecting = self.connecting.borrow();
        connecting
            .iter()
            .any(|request| AssociationKey::of(request) == *association)
    }

    pub(super) async fn connect(&self, request: ConnectRequest) -> Result<Reply, Failure> {
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
                .attached(&AssociationKey::of(&request))
                .map(|a| a.name().to_owned());
            if let Some(name) = attached {
                let message = format!(
                    "{} at {} is connected already, as {name}; --duplicate-connect makes another",
                    target.subnqn, target.address
                );
                return Err(FailureKind::Busy.because(message));
            }
            if self.is_connecting(&AssociationKey::of(&request)) {
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
        self.shared.changed.notify_waiters();
        result
    }

    async fn connect_new(
        &self,
        request: ConnectRequest,
        form: BlockForm,
    ) -> Result<Reply, Failure> {
        let number = self.shared.next_number();
        let first_shard = number as usize % self.shared.shards();
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
            .map_err(|error| Failure::from(&error))?;
        tracing::info!(subnqn = request.target.subnqn, address = %request.target.address, queues = info.queues, "connected");
        let spec = AttachmentSpec {
            name: format!("nvmf{number}"),
            request,
            form,
            first_shard,
            handle,
            info,
            state: LIVE.to_owned(),
        };
        let attachment = Attachment::new(self.shared.clone(), spec);
        self.attachments.borrow_mut().push(attachment.clone());
        let count = namespaces.len();
        let namespaces = namespaces
            .into_iter()
            .map(|(head, info)| (head, info, None))
            .collect();
        let problems = attachment.adopt(namespaces).await;
        if count > 0 && problems.len() == count {
            // Nothing of it is of any use: leave nothing behind.
            if let Err(error) = attachment.disconnect(true).await {
                tracing::warn!(%error, "a device is left behind");
            }
            self.forget(&attachment).await;
            return Err(FailureKind::System.because(problems.join("; ")));
        }
        tokio_uring::spawn(attachment.clone().follow(events));
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
                let association = AssociationKey {
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
                .disconnect(force)
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
        self.shared.forget(attachment.name()).await;
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
            Failure::from(&ConnectError::Admin {
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

fn failure_of_device(error: &DeviceError) -> Failure {
    let kind = match error {
        DeviceError::InUse { .. } => FailureKind::Busy,
        DeviceError::Unsupported { .. } => FailureKind::System,
        _ => FailureKind::Other,
    };
    kind.because(error)
}
