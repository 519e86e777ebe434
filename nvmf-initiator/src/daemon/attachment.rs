//! One controller with the devices of its namespaces.
//!
//! Everything that changes it (a connect's end, the controller's events, a disconnect) holds its lock, so that a device is
//! made, resized and removed by one at a time; what `list` shows is a copy that is renewed after each change.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nvme_proto::wire::Cntlid;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;

use super::api::{ConnectRequest, ControllerStatus, NamespaceStatus};
use super::names;
use super::node::Node;
use super::shard::{NewFrontEnd, ToDeviceShard};
use super::state::{ControllerRecord, DeviceRecord, NamespaceRecord};
use crate::address::Address;
use crate::block::{
    BlockForm, BlockLimits, Device, DeviceError, DeviceSpec, DeviceState, Kept, QueueSetup,
};
use crate::core::controller::{ControllerEvent, ControllerHandle, ControllerInfo};
use crate::core::message::{HeadKey, HeadState, ToShard};
use crate::core::namespace::NamespaceInfo;
use crate::core::request::IoError;

/// Largest read or write of a device; the shard splits it as the controller's MDTS asks.
const MAX_TRANSFER_BYTES: u32 = 1 << 20;
/// Largest discard or write-zeroes of a device; the shard splits it.
const MAX_RANGE_BYTES: u32 = 1 << 30;
/// How long front ends may take to finish once their device is gone and their namespace closed.
const FINISH_LIMIT: Duration = Duration::from_secs(10);

/// What makes two associations of this node the same.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Association<'a> {
    pub address: &'a Address,
    pub subnqn: &'a str,
    pub hostnqn: &'a str,
}

impl<'a> Association<'a> {
    pub fn of(request: &'a ConnectRequest) -> Self {
        Association {
            address: &request.target.address,
            subnqn: &request.target.subnqn,
            hostnqn: &request.host.hostnqn,
        }
    }
}

/// What an attachment is made from.
pub(crate) struct AttachmentSpec {
    pub name: String,
    pub request: ConnectRequest,
    /// A form that [`BlockForm::resolve`] gave.
    pub form: BlockForm,
    pub first_shard: usize,
    pub handle: ControllerHandle,
    /// What the controller said of itself; when it is taken up again, what is known without it.
    pub info: ControllerInfo,
    pub state: String,
    /// What the daemon before wrote down; it stands until the namespaces are adopted.
    pub remembered: Vec<NamespaceRecord>,
}

/// See the module's text.
pub(crate) struct Attachment {
    name: String,
    request: ConnectRequest,
    form: BlockForm,
    first_shard: usize,
    handle: ControllerHandle,
    inner: Mutex<Inner>,
    status: RefCell<ControllerStatus>,
    record: RefCell<ControllerRecord>,
    /// Whether the next daemon will find it at all.
    is_written: Cell<bool>,
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

/// A device and what belongs to it.
struct Served {
    device: Device,
    /// Unique on the node.
    name: String,
    path: PathBuf,
    uri: Option<String>,
    by_id: Option<PathBuf>,
    /// What the next daemon needs, and how many descriptors are held for it.
    kept: Option<(DeviceState, usize)>,
    finished: Vec<oneshot::Receiver<()>>,
}

/// What a device is taken up again from.
pub(crate) struct Remains {
    pub record: DeviceRecord,
    pub fds: Vec<OwnedFd>,
}

impl Attachment {
    pub fn new(spec: AttachmentSpec) -> Rc<Attachment> {
        let inner = Inner {
            live: spec.state == LIVE,
            info: spec.info,
            state: spec.state,
            namespaces: Vec::new(),
        };
        let attachment = Attachment {
            status: RefCell::new(ControllerStatus {
                name: spec.name.clone(),
                subnqn: spec.request.target.subnqn.clone(),
                address: spec.request.target.address.to_string(),
                hostnqn: spec.request.host.hostnqn.clone(),
                state: String::new(),
                cntlid: 0,
                serial: String::new(),
                model: String::new(),
                firmware: String::new(),
                queues: 0,
                namespaces: Vec::new(),
            }),
            record: RefCell::new(ControllerRecord {
                name: spec.name.clone(),
                request: spec.request.clone(),
                form: spec.form.name().to_owned(),
                shards: inner.info.shards,
                first_shard: spec.first_shard,
                namespaces: spec.remembered,
            }),
            is_written: Cell::new(false),
            name: spec.name,
            request: spec.request,
            form: spec.form,
            first_shard: spec.first_shard,
            handle: spec.handle,
            inner: Mutex::new(inner),
        };
        Rc::new(attachment)
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

    pub fn record(&self) -> ControllerRecord {
        self.record.borrow().clone()
    }

    /// Takes the namespaces in, with a device for each: a new one, or the one that remained. Returns what did not work.
    pub async fn adopt(
        &self,
        node: &Node,
        namespaces: Vec<(HeadKey, Arc<NamespaceInfo>, Option<Remains>)>,
    ) -> Vec<String> {
        let mut inner = self.inner.lock().await;
        let mut problems = Vec::new();
        for (head, info, remains) in namespaces {
            let is_resumed = remains.is_some();
            let namespace = self.attach(node, &inner, head, info, remains).await;
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
        self.publish(node, &inner).await;
        problems
    }

    /// Gives a new keeper what the one before held.
    pub async fn hold_again(&self, node: &Node) {
        let inner = self.inner.lock().await;
        for served in inner.namespaces.iter().filter_map(|ns| ns.served.as_ref()) {
            let held = match served.device.keep() {
                Ok(Some(kept)) => node.keeper().hold(&served.name, &kept.fds),
                Ok(None) => Ok(()),
                Err(error) => Err(std::io::Error::other(error)),
            };
            if let Err(error) = held {
                tracing::warn!(device = %served.path.display(), %error, "the device will not survive this process");
            }
        }
    }

    /// Follows the controller until it ends.
    pub async fn follow(
        self: Rc<Self>,
        node: Rc<Node>,
        mut events: mpsc::UnboundedReceiver<ControllerEvent>,
    ) {
        while let Some(event) = events.recv().await {
            self.on_event(&node, event).await;
        }
    }

    async fn on_event(&self, node: &Node, event: ControllerEvent) {
        let mut inner = self.inner.lock().await;
        match event {
            ControllerEvent::Added { head, info } => {
                let namespace = self.attach(node, &inner, head, info, None).await;
                tracing::info!(controller = self.name, nsid = %namespace.info.nsid, problem = namespace.problem, "namespace added");
                inner.namespaces.push(namespace);
            }
            ControllerEvent::Changed { head, info } => {
                if let Some(namespace) = inner.namespaces.iter_mut().find(|ns| ns.head == head) {
                    resize(namespace, info).await;
                }
            }
            ControllerEvent::Gone { head, error } => {
                let Some(at) = inner.namespaces.iter().position(|ns| ns.head == head) else {
                    return;
                };
                let mut namespace = inner.namespaces.remove(at);
                namespace.problem = Some(error.to_string());
                match self.detach(node, &inner, &mut namespace, false).await {
                    Ok(finished) => {
                        self.post(node, &inner, || ToShard::CloseHead { head });
                        wait_finished(finished).await;
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
                inner.state = format!("dead: {cause}");
            }
            ControllerEvent::Reconnected(info) => {
                inner.live = true;
                inner.state = LIVE.to_owned();
                inner.info = info;
            }
        }
        self.publish(node, &inner).await;
    }

    /// Who uses the devices, if anybody does.
    pub async fn refuse_if_used(&self) -> Result<(), DeviceError> {
        let mut inner = self.inner.lock().await;
        for namespace in &mut inner.namespaces {
            let Some(served) = namespace.served.take() else {
                continue;
            };
            let (served, uses) = blocking(move || {
                let uses = served.device.lasting_uses();
                (served, uses)
            })
            .await;
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
    pub async fn disconnect(&self, node: &Node, force: bool) -> Result<(), DeviceError> {
        let mut inner = self.inner.lock().await;
        let mut finished = Vec::new();
        if !inner.live {
            // Nothing can be waited for any more: what the kernel still wants to write back fails.
            let failing = HeadState::Failing(IoError::Closed);
            for namespace in &inner.namespaces {
                self.post(node, &inner, || ToShard::SetState {
                    head: namespace.head,
                    state: failing,
                });
            }
        }
        let mut namespaces = std::mem::take(&mut inner.namespaces);
        let mut result = Ok(());
        for namespace in &mut namespaces {
            match self.detach(node, &inner, namespace, force).await {
                Ok(ended) => finished.extend(ended),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if result.is_err() {
            inner.namespaces = namespaces;
            self.publish(node, &inner).await;
            return result;
        }
        self.handle.disconnect().await;
        wait_finished(finished).await;
        Ok(())
    }

    // --- devices ---------------------------------------------------------------------------------------------------

    /// The namespace with its device, or with what is wrong.
    async fn attach(
        &self,
        node: &Node,
        inner: &Inner,
        head: HeadKey,
        info: Arc<NamespaceInfo>,
        remains: Option<Remains>,
    ) -> Namespace {
        let mut namespace = Namespace {
            head,
            info,
            served: None,
            problem: None,
        };
        if self.form != BlockForm::None {
            match self.serve(node, inner, &namespace, remains).await {
                Ok(served) => namespace.served = Some(served),
                Err(error) => namespace.problem = Some(error),
            }
        }
        namespace
    }

    async fn serve(
        &self,
        node: &Node,
        inner: &Inner,
        namespace: &Namespace,
        remains: Option<Remains>,
    ) -> Result<Served, String> {
        let info = &namespace.info;
        let name = match &remains {
            Some(remains) => node.reserve_name(&remains.record.name),
            None => node.reserve_name(&names::device_name(&self.request.target.subnqn, info)),
        };
        let result = self.serve_as(node, inner, namespace, remains, &name).await;
        if result.is_err() {
            node.free_name(&name);
        }
        result
    }

    async fn serve_as(
        &self,
        node: &Node,
        inner: &Inner,
        namespace: &Namespace,
        remains: Option<Remains>,
        name: &str,
    ) -> Result<Served, String> {
        let (form, spec) = (
            self.form,
            self.device_spec(node, inner, &namespace.info, name),
        );
        let made = blocking(move || match remains {
            None => Device::create(form, &spec),
            Some(remains) => Device::resume(&remains.record.state, remains.fds, &spec),
        });
        let (device, queues) = made.await.map_err(|error| error.to_string())?;
        let finished = match self.serve_queues(node, inner, namespace, queues).await {
            Ok(finished) => finished,
            Err(error) => {
                self.stop_serving(node, inner, namespace.head);
                // Its drop may block.
                blocking(move || drop(device)).await;
                return Err(error);
            }
        };
        let attached = blocking(move || {
            let mut device = device;
            device.attach()?;
            let kept = device.keep()?;
            Ok::<_, DeviceError>((device, kept))
        });
        let (device, kept) = match attached.await {
            Ok(attached) => attached,
            Err(error) => {
                self.stop_serving(node, inner, namespace.head);
                return Err(error.to_string());
            }
        };
        let path = device.path().unwrap_or_default();
        let by_id = match names::link(&node.run().by_id(), name, &path) {
            Ok(link) => Some(link),
            Err(error) => {
                tracing::warn!(device = %path.display(), %error, "no stable name");
                None
            }
        };
        let kept = kept.map(|Kept { state, fds }| {
            if let Err(error) = node.keeper().hold(name, &fds) {
                tracing::warn!(device = %path.display(), %error, "the device will not survive this process");
            }
            (state, fds.len())
        });
        Ok(Served {
            uri: device.uri(),
            device,
            name: name.to_owned(),
            path,
            by_id,
            kept,
            finished,
        })
    }

    fn device_spec(
        &self,
        node: &Node,
        inner: &Inner,
        info: &NamespaceInfo,
        name: &str,
    ) -> DeviceSpec {
        let range = |supported: u32| if supported == 0 { 0 } else { MAX_RANGE_BYTES };
        DeviceSpec {
            name: name.to_owned(),
            size_bytes: info.size_bytes(),
            block_size_bytes: info.block_bytes,
            read_only: info.read_only,
            limits: BlockLimits {
                max_transfer_bytes: MAX_TRANSFER_BYTES,
                max_discard_bytes: range(info.limits.max_discard_blocks),
                max_write_zeroes_bytes: range(info.limits.max_write_zeroes_blocks),
            },
            queues: inner.info.shards.clamp(1, u16::MAX.into()) as u16,
            queue_depth: self.request.target.options.queue_size,
            fuse_readers: DeviceSpec::MAX_FUSE_READERS,
            runtime_dir: node.run().path().to_owned(),
        }
    }

    /// Hands the queues to shards, each to one that has a queue of the controller.
    async fn serve_queues(
        &self,
        node: &Node,
        inner: &Inner,
        namespace: &Namespace,
        queues: Vec<QueueSetup>,
    ) -> Result<Vec<oneshot::Receiver<()>>, String> {
        let mut ends = Vec::new();
        for (index, setup) in queues.into_iter().enumerate() {
            // Devices with fewer queues than there are shards begin at different ones.
            let at = (namespace.info.nsid.0 as usize + index) % inner.info.shards.max(1);
            let (started, start) = oneshot::channel();
            let (finished, end) = oneshot::channel();
            let new = NewFrontEnd {
                head: namespace.head,
                setup,
                started,
                finished,
            };
            node.shard(self.first_shard + at)
                .post(ToDeviceShard::Serve(Box::new(new)));
            match start.await {
                Ok(Ok(())) => ends.push(end),
                Ok(Err(error)) => {
                    return Err(format!("cannot serve a queue of the device: {error}"));
                }
                Err(_) => return Err("the shard is gone".to_owned()),
            }
        }
        Ok(ends)
    }

    /// Removes the device of a namespace; what is returned ends with its front ends.
    async fn detach(
        &self,
        node: &Node,
        inner: &Inner,
        namespace: &mut Namespace,
        force: bool,
    ) -> Result<Vec<oneshot::Receiver<()>>, DeviceError> {
        let Some(mut served) = namespace.served.take() else {
            return Ok(Vec::new());
        };
        let (served, result) = blocking(move || {
            let result = served.device.detach(force);
            (served, result)
        })
        .await;
        if let Err(error) = result {
            namespace.served = Some(served);
            return Err(error);
        }
        self.stop_serving(node, inner, namespace.head);
        if let Some(by_id) = &served.by_id {
            names::unlink(by_id, &served.path);
        }
        if let Some((_, count)) = served.kept
            && let Err(error) = node.keeper().release(&served.name, count)
        {
            tracing::warn!(device = %served.path.display(), %error, "its descriptors stay held");
        }
        node.free_name(&served.name);
        Ok(served.finished)
    }

    fn stop_serving(&self, node: &Node, inner: &Inner, head: HeadKey) {
        for at in 0..inner.info.shards {
            node.shard(self.first_shard + at)
                .post(ToDeviceShard::StopServing(head));
        }
    }

    fn post(&self, node: &Node, inner: &Inner, message: impl Fn() -> ToShard) {
        for at in 0..inner.info.shards {
            node.shard(self.first_shard + at)
                .post(ToDeviceShard::Core(message()));
        }
    }

    /// Renews what the next daemon will find, and then what `list` shows and others wait for.
    async fn publish(&self, node: &Node, inner: &Inner) {
        let namespaces = inner.namespaces.iter().map(Namespace::record).collect();
        if self.remember(namespaces) || !self.is_written.replace(true) {
            node.save().await;
        }
        let mut status = self.status.borrow_mut();
        status.state.clone_from(&inner.state);
        let Cntlid(cntlid) = inner.info.cntlid;
        status.cntlid = cntlid;
        status.serial.clone_from(&inner.info.serial);
        status.model.clone_from(&inner.info.model);
        status.firmware.clone_from(&inner.info.firmware);
        status.queues = inner.info.queues;
        status.namespaces = inner
            .namespaces
            .iter()
            .map(|ns| ns.status(self.form))
            .collect();
        drop(status);
        node.changed.notify_waiters();
    }

    /// Whether this is anything new.
    fn remember(&self, namespaces: Vec<NamespaceRecord>) -> bool {
        let mut record = self.record.borrow_mut();
        if record.namespaces == namespaces {
            return false;
        }
        record.namespaces = namespaces;
        true
    }
}

/// The state of a controller that works.
pub(crate) const LIVE: &str = "live";

impl Namespace {
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
        let device = self.served.as_ref().and_then(|served| {
            let (state, _) = served.kept.as_ref()?;
            Some(DeviceRecord {
                name: served.name.clone(),
                state: state.clone(),
            })
        });
        NamespaceRecord {
            info: (*self.info).clone(),
            device,
        }
    }
}

async fn resize(namespace: &mut Namespace, info: Arc<NamespaceInfo>) {
    let (before, size_bytes) = (namespace.info.size_bytes(), info.size_bytes());
    namespace.info = info;
    if before == size_bytes {
        return;
    }
    let Some(mut served) = namespace.served.take() else {
        return;
    };
    let (served, result) = blocking(move || {
        let result = served.device.resize(size_bytes);
        (served, result)
    })
    .await;
    tracing::info!(device = %served.path.display(), before, size_bytes, "namespace resized");
    namespace.served = Some(served);
    namespace.problem = result.err().map(|error| error.to_string());
}

async fn wait_finished(finished: Vec<oneshot::Receiver<()>>) {
    for end in finished {
        if timeout(FINISH_LIMIT, end).await.is_err() {
            tracing::warn!("a queue of a device that was removed does not finish");
        }
    }
}

/// Runs what may block on a thread that may.
async fn blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
