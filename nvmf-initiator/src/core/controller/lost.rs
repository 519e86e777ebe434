//! No association: the old one is closed, I/O is held or fails, and new ones are tried, as [`LossPolicy`] says.
//!
//! [`LossPolicy`]: crate::core::policy::LossPolicy

use tokio::sync::oneshot;
use tokio::time::{Instant as TokioInstant, sleep_until};

use super::{ControllerCommand, ControllerEvent, ControllerInfo, Disconnect, Fresh, Task};
use crate::core::error::AdminError;
use crate::core::message::{HeadState, ToShard};
use crate::core::policy::{GiveUp, Loss, LossAction};
use crate::core::request::IoError;

impl Task {
    /// Closes every socket of the association, and waits until that is done.
    pub(super) async fn drop_association(&mut self) {
        self.close_queues().await;
        if let Some(association) = self.association.take() {
            association.admin.close().await;
        }
    }

    pub(super) async fn close_queues(&self) {
        let mut pending = Vec::new();
        for shard in &self.spec.shards {
            let (closed, answered) = oneshot::channel();
            if shard.post(ToShard::CloseQueues {
                controller: self.key,
                closed,
            }) {
                pending.push(answered);
            }
        }
        for answered in pending {
            // An error means that the shard is gone, and its sockets with it.
            let _ = answered.await;
        }
    }

    /// Waits, tries, fails I/O and gives up as the policy says, until an association stands.
    pub(super) async fn recover(&mut self, mut loss: Loss) -> Result<(), Disconnect> {
        loop {
            match loss.poll(self.now_ms()) {
                LossAction::FailIo => self.fail_io(),
                LossAction::WaitUntil(at_ms) => self.wait_until(at_ms).await?,
                LossAction::GiveUp(reason) => return Err(self.given_up(reason).await),
                LossAction::Reconnect => {
                    if let Some(info) = self.attempt(&mut loss).await? {
                        tracing::info!(
                            subnqn = self.spec.target.subnqn,
                            attempts = loss.attempts(),
                            "reconnected"
                        );
                        self.tell(ControllerEvent::Reconnected(info));
                        return Ok(());
                    }
                }
            }
        }
    }

    /// One attempt. `Ok(None)`: it failed, the policy knows.
    async fn attempt(&mut self, loss: &mut Loss) -> Result<Option<ControllerInfo>, Disconnect> {
        let spec = self.spec.clone();
        let needed = self.shards_in_use as u16;
        let mut establishing = Box::pin(Fresh::establish(&spec, needed));
        loop {
            // fast_io_fail_tmo may pass while an attempt hangs.
            let fail_io_at = loss.fail_io_deadline_ms().map(|at| self.instant(at));
            let result = tokio::select! {
                result = &mut establishing => result,
                () = async { sleep_until(fail_io_at.unwrap_or_else(TokioInstant::now)).await }, if fail_io_at.is_some() => {
                    loss.io_failed();
                    self.fail_io();
                    continue;
                }
                command = self.commands.recv() => {
                    while_lost(command)?;
                    continue;
                }
            };
            let adopted = match result {
                Ok(fresh) => self.adopt(fresh),
                Err(error) => Err(error),
            };
            return match adopted {
                Ok(info) => Ok(Some(info)),
                Err(error) => {
                    let (subnqn, attempt) = (&self.spec.target.subnqn, loss.attempts());
                    if loss.is_news(&error.to_string()) {
                        tracing::warn!(subnqn, attempt, %error, "no reconnect yet; said again when the reason changes");
                    } else {
                        tracing::debug!(subnqn, attempt, %error, "no reconnect yet");
                    }
                    self.drop_association().await;
                    loss.attempt_failed(self.now_ms(), error.status());
                    Ok(None)
                }
            };
        }
    }

    async fn wait_until(&mut self, at_ms: u64) -> Result<(), Disconnect> {
        let at = self.instant(at_ms);
        loop {
            tokio::select! {
                () = sleep_until(at) => return Ok(()),
                command = self.commands.recv() => while_lost(command)?,
            }
        }
    }

    fn fail_io(&mut self) {
        tracing::warn!(
            subnqn = self.spec.target.subnqn,
            "fast_io_fail_tmo passed, I/O fails until the reconnect"
        );
        self.set_all(HeadState::Failing(IoError::FastIoFail));
        self.tell(ControllerEvent::FailingIo);
    }

    async fn given_up(&mut self, reason: GiveUp) -> Disconnect {
        tracing::error!(subnqn = self.spec.target.subnqn, %reason, "controller given up");
        self.set_all(HeadState::Failing(IoError::Lost));
        self.tell(ControllerEvent::GivenUp {
            cause: reason.to_string(),
        });
        loop {
            if let Err(disconnect) = while_lost(self.commands.recv().await) {
                return disconnect;
            }
        }
    }
}

/// What a command means while there is no association.
fn while_lost(command: Option<ControllerCommand>) -> Result<(), Disconnect> {
    const NOT_NOW: &str = "the controller is not connected at the moment";
    match command {
        None => return Err(Disconnect(None)),
        Some(ControllerCommand::Disconnect(end)) => return Err(Disconnect(Some(end))),
        // Whoever asked may have gone.
        Some(ControllerCommand::Rescan(reply)) => drop(reply.send(Err(NOT_NOW.to_owned()))),
        Some(ControllerCommand::Identify(_, _, reply)) => {
            drop(reply.send(Err(AdminError::Ended(NOT_NOW.to_owned()))));
        }
    }
    Ok(())
}
