//! What the owner of a controller holds, is told and can ask.

use std::fmt;
use std::sync::Arc;

use nvme_proto::wire::identify::Cns;
use nvme_proto::wire::{Cntlid, Nsid};
use tokio::sync::{mpsc, oneshot};

use crate::core::error::AdminError;
use crate::core::message::HeadKey;
use crate::core::namespace::NamespaceInfo;
use crate::core::request::IoError;

/// What is known of a controller once it is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerInfo {
    /// The identifier of this association's controller.
    pub cntlid: Cntlid,
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// I/O queues.
    pub queues: u16,
    /// How many of the shards, from the first, have at least one queue.
    pub shards: usize,
}

/// What happens to a controller after it was connected.
#[derive(Debug)]
pub enum ControllerEvent {
    /// A namespace appeared; its head is open on the first [`ControllerInfo::shards`] shards.
    Added {
        /// Its key.
        head: HeadKey,
        /// What it is.
        info: Arc<NamespaceInfo>,
    },
    /// A namespace changed its size or its limits.
    Changed {
        /// Its key.
        head: HeadKey,
        /// What it is now.
        info: Arc<NamespaceInfo>,
    },
    /// A namespace is gone, or another one is in its place; its I/O fails with this error. Close its head
    /// ([`CloseHead`](crate::core::message::ToShard::CloseHead)) when nobody uses it any more.
    Gone {
        /// Its key.
        head: HeadKey,
        /// What its I/O fails with.
        error: IoError,
    },
    /// The association is lost; I/O is held.
    Lost {
        /// Why.
        cause: String,
    },
    /// `fast_io_fail_tmo` has passed: I/O fails until the controller is back.
    FailingIo,
    /// A new association stands; I/O goes on.
    Reconnected(ControllerInfo),
    /// The controller is given up; all its I/O fails. It waits to be disconnected.
    GivenUp {
        /// Why.
        cause: String,
    },
}

/// What a controller can be told.
#[derive(Debug)]
pub(crate) enum ControllerCommand {
    /// End the association in order, close all heads, and end the task.
    Disconnect(OnEnd),
    /// Look for changed namespaces.
    Rescan(oneshot::Sender<Result<(), String>>),
    /// One of the structures of Identify.
    Identify(Cns, Nsid, oneshot::Sender<Result<Vec<u8>, AdminError>>),
}

/// Called once when the controller has ended, or dropped when it had ended before.
pub(crate) struct OnEnd(pub(super) Box<dyn FnOnce() + Send>);

impl fmt::Debug for OnEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnEnd")
    }
}

/// The owner's end of a controller.
#[derive(Debug, Clone)]
pub struct ControllerHandle {
    pub(super) commands: mpsc::UnboundedSender<ControllerCommand>,
}

impl ControllerHandle {
    /// Ends the association in order and closes all heads; returns when that is done.
    pub async fn disconnect(&self) {
        let (done, answered) = oneshot::channel();
        self.begin_disconnect(move || _ = done.send(()));
        // An error means that it had ended before.
        let _ = answered.await;
    }

    /// As [`ControllerHandle::disconnect`], without waiting: `ended` is called by the control thread when that is done,
    /// and dropped when there is nothing to end any more.
    pub fn begin_disconnect(&self, ended: impl FnOnce() + Send + 'static) {
        let _ = self
            .commands
            .send(ControllerCommand::Disconnect(OnEnd(Box::new(ended))));
    }

    /// Looks for changed namespaces now; what is found comes as events.
    pub async fn rescan(&self) -> Result<(), String> {
        let (done, answered) = oneshot::channel();
        let _ = self.commands.send(ControllerCommand::Rescan(done));
        answered
            .await
            .unwrap_or_else(|_| Err("the controller is disconnected".to_owned()))
    }

    /// One of the 4096-byte structures of Identify.
    pub async fn identify(&self, cns: Cns, nsid: Nsid) -> Result<Vec<u8>, AdminError> {
        let (done, answered) = oneshot::channel();
        let _ = self
            .commands
            .send(ControllerCommand::Identify(cns, nsid, done));
        answered
            .await
            .unwrap_or_else(|_| Err(AdminError::Ended("disconnected".to_owned())))
    }
}

/// A controller that was just connected.
#[derive(Debug)]
pub struct Connected {
    /// To command it with.
    pub handle: ControllerHandle,
    /// What it says of itself.
    pub info: ControllerInfo,
    /// Its namespaces, with their heads.
    pub namespaces: Vec<(HeadKey, Arc<NamespaceInfo>)>,
    /// What happens to it.
    pub events: mpsc::UnboundedReceiver<ControllerEvent>,
}

/// A controller that was taken up again and is not connected yet.
#[derive(Debug)]
pub struct Resumed {
    /// To command it with.
    pub handle: ControllerHandle,
    /// Its namespaces as they were, with their heads.
    pub namespaces: Vec<(HeadKey, Arc<NamespaceInfo>)>,
    /// What happens to it; a first [`ControllerEvent::Reconnected`] says that it is connected.
    pub events: mpsc::UnboundedReceiver<ControllerEvent>,
}
