//! The device of a namespace: made or taken up again, its queues given to shards, named, kept, resized and removed.
//!
//! Whatever of this may block runs on a thread of its own, which has the device meanwhile.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::names;
use super::shard::{DeviceShard, NewFrontEnd, ToDeviceShard};
use super::shared::Shared;
use super::state::DeviceRecord;
use crate::block::{
    BlockForm, BlockLimits, Device, DeviceError, DeviceSpec, DeviceState, Kept, QueueSetup, Use,
};
use crate::core::message::{HeadKey, ToShard};
use crate::core::namespace::NamespaceInfo;

/// Largest read or write of a device; the shard splits it as the controller's MDTS asks.
const MAX_TRANSFER_BYTES: u32 = 1 << 20;
/// Largest discard or write-zeroes of a device; the shard splits it.
const MAX_RANGE_BYTES: u32 = 1 << 30;
/// How long front ends may take to finish once their device is gone and their namespace closed.
const FINISH_LIMIT: Duration = Duration::from_secs(10);

/// How the devices of one controller are made, and who serves them.
pub(super) struct Place {
    pub shared: Rc<Shared>,
    /// A form that [`BlockForm::resolve`] gave.
    pub form: BlockForm,
    /// Of the controller; devices without an identity are named after it.
    pub subnqn: String,
    /// Requests that a queue of a device has at once.
    pub queue_depth: u16,
    /// The first shard that has queues of the controller.
    pub first_shard: usize,
    /// How many have, from that one on; at least one.
    pub shards: usize,
}

/// A device and what belongs to it.
pub(super) struct Served {
    device: Device,
    head: HeadKey,
    /// Unique on the node.
    name: String,
    pub path: PathBuf,
    pub uri: Option<String>,
    pub by_id: Option<PathBuf>,
    /// What the next daemon needs, and how many descriptors are held for it.
    kept: Option<(DeviceState, usize)>,
    finished: Vec<oneshot::Receiver<()>>,
}

/// What a device is taken up again from.
pub(super) struct Remains {
    pub record: DeviceRecord,
    pub fds: Vec<OwnedFd>,
}

/// Ends when the front ends of a device that was removed have.
#[must_use]
pub(super) struct Ending(Vec<oneshot::Receiver<()>>);

impl Ending {
    pub async fn wait(self) {
        for end in self.0 {
            if timeout(FINISH_LIMIT, end).await.is_err() {
                tracing::warn!("a queue of a device that was removed does not finish");
            }
        }
    }
}

impl Place {
    /// A device for the namespace, or the one that remained.
    pub async fn serve(
        &self,
        head: HeadKey,
        info: &NamespaceInfo,
        remains: Option<Remains>,
    ) -> Result<Served, String> {
        let name = match &remains {
            Some(remains) => self.shared.reserve_name(&remains.record.name),
            None => self
                .shared
                .reserve_name(&names::device_name(&self.subnqn, info)),
        };
        let result = self.serve_as(&name, head, info, remains).await;
        if result.is_err() {
            self.shared.free_name(&name);
        }
        result
    }

    async fn serve_as(
        &self,
        name: &str,
        head: HeadKey,
        info: &NamespaceInfo,
        remains: Option<Remains>,
    ) -> Result<Served, String> {
        let (form, spec) = (self.form, self.spec(info, name));
        let made = blocking(move || match remains {
            None => Device::create(form, &spec),
            Some(remains) => Device::resume(&remains.record.state, remains.fds, &spec),
        });
        let (device, queues) = made.await.map_err(|error| error.to_string())?;
        let finished = match self.serve_queues(head, info, queues).await {
            Ok(finished) => finished,
            Err(error) => {
                self.stop_serving(head);
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
                self.stop_serving(head);
                return Err(error.to_string());
            }
        };
        let path = device.path().unwrap_or_default();
        let by_id = match names::link(&self.shared.run.by_id(), name, &path) {
            Ok(link) => Some(link),
            Err(error) => {
                tracing::warn!(device = %path.display(), %error, "no stable name");
                None
            }
        };
        let kept = kept.map(|Kept { state, fds }| {
            if let Err(error) = self.shared.keeper.hold(name, &fds) {
                tracing::warn!(device = %path.display(), %error, "the device will not survive this process");
            }
            (state, fds.len())
        });
        Ok(Served {
            uri: device.uri(),
            device,
            head,
            name: name.to_owned(),
            path,
            by_id,
            kept,
            finished,
        })
    }

    fn spec(&self, info: &NamespaceInfo, name: &str) -> DeviceSpec {
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
            queues: u16::try_from(self.shards).unwrap_or(u16::MAX),
            queue_depth: self.queue_depth,
            fuse_readers: DeviceSpec::MAX_FUSE_READERS,
            runtime_dir: self.shared.run.path().to_owned(),
        }
    }

    /// Hands the queues to shards, each to one that has a queue of the controller.
    async fn serve_queues(
        &self,
        head: HeadKey,
        info: &NamespaceInfo,
        queues: Vec<QueueSetup>,
    ) -> Result<Vec<oneshot::Receiver<()>>, String> {
        let mut ends = Vec::new();
        for (index, setup) in queues.into_iter().enumerate() {
            // Devices with fewer queues than there are shards begin at different ones.
            let at = (info.nsid.0 as usize + index) % self.shards;
            let (started, start) = oneshot::channel();
            let (finished, end) = oneshot::channel();
            let new = NewFrontEnd {
                head,
                setup,
                started,
                finished,
            };
            self.shared
                .shard(self.first_shard + at)
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

    /// Removes a device. Without `force` one that is in use is given back.
    pub async fn remove(
        &self,
        served: Served,
        force: bool,
    ) -> Result<Ending, (Served, DeviceError)> {
        let (served, result) = served.call(move |device| device.detach(force)).await;
        if let Err(error) = result {
            return Err((served, error));
        }
        self.stop_serving(served.head);
        if let Some(by_id) = &served.by_id {
            names::unlink(by_id, &served.path);
        }
        if let Some((_, count)) = served.kept
            && let Err(error) = self.shared.keeper.release(&served.name, count)
        {
            tracing::warn!(device = %served.path.display(), %error, "its descriptors stay held");
        }
        self.shared.free_name(&served.name);
        Ok(Ending(served.finished))
    }

    fn stop_serving(&self, head: HeadKey) {
        for shard in self.shards() {
            shard.post(ToDeviceShard::StopServing(head));
        }
    }

    /// Tells all shards of the controller.
    pub fn post(&self, message: impl Fn() -> ToShard) {
        for shard in self.shards() {
            shard.post(ToDeviceShard::Core(message()));
        }
    }

    fn shards(&self) -> impl Iterator<Item = &DeviceShard> {
        (0..self.shards).map(|at| self.shared.shard(self.first_shard + at))
    }
}

impl Served {
    /// What the next daemon needs, where the device survives this one.
    pub fn record(&self) -> Option<DeviceRecord> {
        let (state, _) = self.kept.as_ref()?;
        Some(DeviceRecord {
            name: self.name.clone(),
            state: state.clone(),
        })
    }

    /// Gives a new keeper what the one before held.
    pub fn hold_again(&self, shared: &Shared) {
        let held = match self.device.keep() {
            Ok(Some(kept)) => shared.keeper.hold(&self.name, &kept.fds),
            Ok(None) => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        };
        if let Err(error) = held {
            tracing::warn!(device = %self.path.display(), %error, "the device will not survive this process");
        }
    }

    /// Who uses the device, which is to go: see [`Device::lasting_uses`].
    pub async fn lasting_uses(self) -> (Served, io::Result<Vec<Use>>) {
        self.call(|device| device.lasting_uses()).await
    }

    /// Gives the device another size.
    pub async fn resize(self, size_bytes: u64) -> (Served, Result<(), DeviceError>) {
        self.call(move |device| device.resize(size_bytes)).await
    }

    async fn call<R: Send + 'static>(
        mut self,
        work: impl FnOnce(&mut Device) -> R + Send + 'static,
    ) -> (Served, R) {
        blocking(move || {
            let result = work(&mut self.device);
            (self, result)
        })
        .await
    }
}

/// Runs what may block on a thread that may.
async fn blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
