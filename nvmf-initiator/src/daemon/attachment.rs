//! One controller with the devices of its namespaces.
//!
//! Everything that changes it (a connect's end, the controller's events, a disconnect) holds its lock, so that a device is
//! made, resized and removed by one at a time; what `list` shows is a copy that is renewed after each change.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use nvme_proto::wire::Cntlid;
use tokio::sync::{Mutex, mpsc};

use super::api::{ConnectRequest, ControllerStatus, DEAD, LIVE, NamespaceStatus};
use super::served::{Ending, Place, Remains, Served};
use super::shared::Shared;
use super::state::{ControllerRecord, NamespaceRecord};
use crate::address::Address;
use crate::block::{BlockForm, DeviceError};
use crate::core::controller::{ControllerEvent, ControllerHandle, ControllerInfo};
use crate::core::message::{HeadKey, HeadState, ToShard};
use crate::core::namespace::NamespaceInfo;
use crate::core::request::IoError;

/// What makes two associations of this node the same.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AssociationKey<'a> {
    pub address: &'a Address,
    pub subnqn: &'a str,
    pub hostnqn: &'a str,
}

impl<'a> AssociationKey<'a> {
    pub fn of(request: &'a ConnectRequest) -> Self {
        AssociationKey {
            address: &request.target.address,
            subnqn: &request.target.subnqn,
            hostnqn: &request.host.hostnqn,
        }
    }
}

/// What an attachment is made from.
pub(super) struct AttachmentSpec {
    pub name: String,
    pub request: ConnectRequest,
    /// A form that [`BlockForm::resolve`] gave.
    pub form: BlockForm,
    pub first_shard: usize,
    pub handle: ControllerHandle,
    /// What the controller said of itself; when it is taken up again, what is known without it.
    pub info: ControllerInfo,
    pub state: String,
}

/// See the module's text.
pub(super) struct Attachment {
    name: String,
    request: ConnectRequest,
    place: Place,
    handle: ControllerHandle,
    inner: Mutex<Inner>,
    status: RefCell<ControllerStatus>,
}

struct Inner {
    info: ControllerInfo,
    state: String,
    live: bool,
    namespaces: Vec<Namespace>,
}

struct Namespace {
    head: HeadKey,
    info: Arc<NamespaceInfo>,
    served: Option<Served>,
    problem: Option<String>,
}

impl Attachment {
    pub fn new(shared: Rc<Shared>, spec: AttachmentSpec) -> Rc<Attachment> {
        let target = &spec.request.target;
        let place = Place {
            shared,
            form: spec.form,
            subnqn: target.subnqn.clone(),
            queue_depth: target.options.queue_size,
            first_shard: spec.first_shard,
            shards: spec.info.shards.max(1),
        };
        let status = ControllerStatus {
            name: spec.name.clone(),
            subnqn: target.subnqn.clone(),
            address: target.address.to_string(),
            hostnqn: spec.request.host.hostnqn.clone(),
            state: String::new(),
            cntlid: 0,
            serial: String::new(),
            model: String::new(),
            firmware: String::new(),
            queues: 0,
            namespaces: Vec::new(),
        };
        let inner = Inner {
            live: spec.state == LIVE,
            info: spec.info,
            state: spec.state,
            namespaces: Vec::new(),
        };
        Rc::new(Attachment {
            name: spec.name,
            request: spec.request,
            place,
            handle: spec.handle,
            inner: Mutex::new(inner),
            status: RefCell::new(status),
        })
    }

    /// The daemon's name for it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn handle(&self) -> &ControllerHandle {
        &self.handle
    }

    pub fn request(&self) -> &ConnectRequest {
        &self.request
    }

    pub fn status(&self) -> ControllerStatus {
        self.status.borrow().clone()
    }

    /// Takes the namespaces in, with a device for each: a new one, or the one that remained. From then on the next daemon will find
    /// the controller. Returns what did not work.
    pub async fn adopt(
        &self,
        namespaces: Vec<(HeadKey, Arc<NamespaceInfo>, Option<Remains>)>,
    ) -> Vec<String> {
        let mut inner = self.inner.lock().await;
        let mut problems = Vec::new();
        for (head, info, remains) in namespaces {
            let is_resumed = remains.is_some();
            let namespace = self.attach(head, info, remains).await;
            if let Some(problem) = &namespace.problem {
                problems.push(format!("namespace {}: {problem}", namespace.info.nsid));
            }
            tracing::info!(
                controller = self.name,
                nsid = %namespace.info.nsid,
                device = namespace.served.as_ref().map(|served| served.path.display().to_string()),
                is_resumed,
                problem = namespace.problem,
                "namespace"
            );
            inner.namespaces.push(namespace);
        }
        self.place.shared.enter(self.record(&inner)).await;
        self.show(&inner);
        problems
    }

    /// Gives a new keeper what the one before held.
    pub async fn hold_again(&self) {
        let inner = self.inner.lock().await;
        for served in inner.namespaces.iter().filter_map(|ns| ns.served.as_ref()) {
            served.hold_again(&self.place.shared);
        }
    }

    /// Follows the controller until it ends.
    pub async fn follow(self: Rc<Self>, mut events: mpsc::UnboundedReceiver<ControllerEvent>) {
        while let Some(event) = events.recv().await {
            self.on_event(event).await;
        }
    }

    async fn on_event(&self, event: ControllerEvent) {
        let mut inner = self.inner.lock().await;
        match event {
            ControllerEvent::Added { head, info } => {
                let namespace = self.attach(head, info, None).await;
                tracing::info!(controller = self.name, nsid = %namespace.info.nsid, problem = namespace.problem, "namespace added");
                inner.namespaces.push(namespace);
            }
            ControllerEvent::Changed { head, info } => {
                if let Some(namespace) = inner.namespaces.iter_mut().find(|ns| ns.head == head) {
                    namespace.change(info).await;
                }
            }
            ControllerEvent::Gone { head, error } => {
                let Some(at) = inner.namespaces.iter().position(|ns| ns.head == head) else {
                    return;
                };
                let mut namespace = inner.namespaces.remove(at);
                namespace.problem = Some(error.to_string());
                match namespace.detach(&self.place, false).await {
                    Ok(ending) => {
                        self.place.post(|| ToShard::CloseHead { head });
                        if let Some(ending) = ending {
                            ending.wait().await;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(controller = self.name, %error, "the device of a namespace that is gone stays");
                        inner.namespaces.insert(at, namespace);
                    }
                }
            }
            ControllerEvent::Lost { cause } => {
                inner.live = false;
                inner.state = format!("lost: {cause}");
            }
            ControllerEvent::FailingIo => inner.state.push_str("; I/O fails (fast_io_fail_tmo)"),
            ControllerEvent::GivenUp { cause } => {
                inner.live = false;
                inner.state = format!("{DEAD}{cause}");
            }
            ControllerEvent::Reconnected(info) => {
                inner.live = true;
                inner.state = LIVE.to_owned();
                inner.info = info;
            }
        }
        self.publish(&inner).await;
    }

    /// Who uses the devices, if anybody does.
    pub async fn refuse_if_used(&self) -> Result<(), DeviceError> {
        let mut inner = self.inner.lock().await;
        for namespace in &mut inner.namespaces {
            let Some(served) = namespace.served.take() else {
                continue;
            };
            let (served, uses) = served.lasting_uses().await;
            let path = served.path.clone();
            namespace.served = Some(served);
            // Where it cannot be told, detaching will tell.
            if let Ok(uses) = uses
                && !uses.is_empty()
            {
                return Err(DeviceError::InUse { path, uses });
            }
        }
        Ok(())
    }

    /// Removes every device and ends the controller. Without `force` it stops at the first device that is in use.
    pub async fn disconnect(&self, force: bool) -> Result<(), DeviceError> {
        let mut inner = self.inner.lock().await;
        if !inner.live {
            // Nothing can be waited for any more: what the kernel still wants to write back fails.
            let state = HeadState::Failing(IoError::Closed);
            for namespace in &inner.namespaces {
                let head = namespace.head;
                self.place.post(|| ToShard::SetState { head, state });
            }
        }
        let mut endings = Vec::new();
        let mut namespaces = std::mem::take(&mut inner.namespaces);
        for namespace in &mut namespaces {
            match namespace.detach(&self.place, force).await {
                Ok(ending) => endings.extend(ending),
                Err(error) => {
                    inner.namespaces = namespaces;
                    self.publish(&inner).await;
                    return Err(error);
                }
            }
        }
        self.handle.disconnect().await;
        for ending in endings {
            ending.wait().await;
        }
        Ok(())
    }

    /// The namespace with its device, or with what is wrong.
    async fn attach(
        &self,
        head: HeadKey,
        info: Arc<NamespaceInfo>,
        remains: Option<Remains>,
    ) -> Namespace {
        let (mut served, mut problem) = (None, None);
        if self.place.form != BlockForm::None {
            match self.place.serve(head, &info, remains).await {
                Ok(device) => served = Some(device),
                Err(error) => problem = Some(error),
            }
        }
        Namespace {
            head,
            info,
            served,
            problem,
        }
    }

    /// Renews what the next daemon will find, and then what `list` shows and others wait for.
    async fn publish(&self, inner: &Inner) {
        self.place.shared.update(self.record(inner)).await;
        self.show(inner);
    }

    fn record(&self, inner: &Inner) -> ControllerRecord {
        ControllerRecord {
            name: self.name.clone(),
            request: self.request.clone(),
            form: self.place.form.name().to_owned(),
            shards: self.place.shards,
            first_shard: self.place.first_shard,
            namespaces: inner.namespaces.iter().map(Namespace::record).collect(),
        }
    }

    fn show(&self, inner: &Inner) {
        let mut status = self.status.borrow_mut();
        status.state.clone_from(&inner.state);
        let Cntlid(cntlid) = inner.info.cntlid;
        status.cntlid = cntlid;
        status.serial.clone_from(&inner.info.serial);
        status.model.clone_from(&inner.info.model);
        status.firmware.clone_from(&inner.info.firmware);
        status.queues = inner.info.queues;
        let form = self.place.form;
        status.namespaces = inner.namespaces.iter().map(|ns| ns.status(form)).collect();
        drop(status);
        self.place.shared.changed.notify_waiters();
    }
}

impl Namespace {
    /// Takes in what the controller says of it now.
    async fn change(&mut self, info: Arc<NamespaceInfo>) {
        let (before, size_bytes) = (self.info.size_bytes(), info.size_bytes());
        self.info = info;
        if before == size_bytes {
            return;
        }
        let Some(served) = self.served.take() else {
            return;
        };
        let (served, result) = served.resize(size_bytes).await;
        tracing::info!(device = %served.path.display(), before, size_bytes, "namespace resized");
        self.served = Some(served);
        self.problem = result.err().map(|error| error.to_string());
    }

    /// Removes its device, if it has one.
    async fn detach(&mut self, place: &Place, force: bool) -> Result<Option<Ending>, DeviceError> {
        let Some(served) = self.served.take() else {
            return Ok(None);
        };
        match place.remove(served, force).await {
            Ok(ending) => Ok(Some(ending)),
            Err((served, error)) => {
                self.served = Some(served);
                Err(error)
            }
        }
    }

    fn status(&self, form: BlockForm) -> NamespaceStatus {
        NamespaceStatus {
            nsid: self.info.nsid.0,
            identity: self.info.identity,
            size_bytes: self.info.size_bytes(),
            block_bytes: self.info.block_bytes,
            read_only: self.info.read_only,
            block: form.name().to_owned(),
            device: self.served.as_ref().map(|served| served.path.clone()),
            uri: self.served.as_ref().and_then(|served| served.uri.clone()),
            by_id: self.served.as_ref().and_then(|served| served.by_id.clone()),
            problem: self.problem.clone(),
        }
    }

    fn record(&self) -> NamespaceRecord {
        NamespaceRecord {
            info: (*self.info).clone(),
            device: self.served.as_ref().and_then(Served::record),
        }
    }
}
