//! A live association: its events, Keep Alive, Aborts and namespaces, until it is lost or the owner ends it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use nvme_proto::wire::event::{AsyncEvent, async_event_request_sqe};
use nvme_proto::wire::log::LogId;
use tokio::time::{Instant as TokioInstant, sleep_until};

use super::{ControllerCommand, ControllerEvent, Disconnect, Over, Task};
use crate::core::aborts::Aborts;
use crate::core::admin::AdminData;
use crate::core::association::Association;
use crate::core::error::{AdminError, ConnectError};
use crate::core::keep_alive::unless_silent;
use crate::core::message::{FromShard, HeadState, ToShard};
use crate::core::namespace::NamespaceInfo;
use crate::core::request::IoError;
use crate::core::scan::scan;

impl Task {
    pub(super) async fn serve(&mut self) -> Over {
        let Some(association) = self.association.take() else {
            return Over::Lost("there is no association".to_owned());
        };
        let over = self.serve_association(&association).await;
        self.association = Some(association);
        over
    }

    async fn serve_association(&mut self, association: &Association) -> Over {
        let keep_alive_every = association.keep_alive_period();
        let mut keep_alive_at = TokioInstant::now() + keep_alive_every;
        // What was heard until now was heard before the first period.
        association.admin.take_heard();
        let mut just_said = false;
        let request_event = || {
            Box::pin(
                association
                    .admin
                    .command_untimed(async_event_request_sqe(), AdminData::None),
            )
        };
        let mut event = request_event();
        let mut events_work = true;
        let mut aborts = Aborts::new(&association.admin, association.identify.acl);
        loop {
            tokio::select! {
                cause = association.admin.wait_ended() => return Over::Lost(format!("admin queue: {cause}")),
                Some(event) = self.queue_events.recv() => match event {
                    FromShard::QueueFailed { association: number, qid, error } if number == self.number => {
                        return Over::Lost(format!("I/O queue {qid}: {error}"));
                    }
                    FromShard::CommandLate { association: number, qid, cid } if number == self.number => {
                        aborts.ask(qid, cid);
                    }
                    // Of an association that is over.
                    FromShard::QueueFailed { .. } | FromShard::CommandLate { .. } => {}
                },
                error = aborts.failed() => return Over::Lost(format!("Abort: {error}")),
                result = &mut event, if events_work => match result {
                    Ok(reply) => {
                        if let Err(error) = self.on_event(association, AsyncEvent(reply.cqe.dw0.get())).await {
                            return Over::Lost(error.to_string());
                        }
                        event = request_event();
                    }
                    Err(AdminError::Status(status)) => {
                        tracing::warn!(%status, "Asynchronous Event Request refused; changes will not be noticed");
                        events_work = false;
                    }
                    Err(error) => return Over::Lost(format!("admin queue: {error}")),
                },
                () = sleep_until(keep_alive_at), if !keep_alive_every.is_zero() => {
                    keep_alive_at = TokioInstant::now() + keep_alive_every;
                    just_said = match self.keep_alive(association, just_said).await {
                        Ok(said) => said,
                        Err(error) => return Over::Lost(format!("keep-alive: {error}")),
                    };
                }
                command = self.commands.recv() => match command {
                    None => return Over::Disconnect(Disconnect(None)),
                    Some(ControllerCommand::Disconnect(end)) => return Over::Disconnect(Disconnect(Some(end))),
                    Some(ControllerCommand::Rescan(reply)) => {
                        let result = self.rescan(association).await.map_err(|error| error.to_string());
                        let _ = reply.send(result);
                    }
                    Some(ControllerCommand::Identify(cns, nsid, reply)) => {
                        let _ = reply.send(association.identify_raw(cns, nsid).await);
                    }
                },
            }
        }
    }

    /// Keep Alive, unless traffic has said the same since the last look, or Keep Alive at the last look; whether it was sent.
    async fn keep_alive(
        &self,
        association: &Association,
        just_said: bool,
    ) -> Result<bool, AdminError> {
        let heard = || association.admin.take_heard() | self.traffic.swap(false, Ordering::Relaxed);
        if heard() | just_said && association.has_traffic_based_keep_alive() {
            return Ok(false);
        }
        let limit = association.keep_alive_limit();
        unless_silent(limit, heard, association.keep_alive())
            .await
            .unwrap_or(Err(AdminError::Timeout(limit.as_millis() as u32)))?;
        // Its own answer is no traffic that could stand in for the next one.
        association.admin.take_heard();
        Ok(true)
    }

    async fn on_event(
        &mut self,
        association: &Association,
        event: AsyncEvent,
    ) -> Result<(), ConnectError> {
        tracing::debug!(?event, "asynchronous event");
        match event.log() {
            LogId::CHANGED_NAMESPACES => {
                // Reading the page lets the next event through; what changed is found by looking at everything, since
                // the page may have overflowed.
                const LIST_BYTES: u32 = 4096;
                association
                    .log_page(LogId::CHANGED_NAMESPACES, LIST_BYTES, 0)
                    .await
                    .map_err(|source| ConnectError::Admin {
                        command: "Get Log Page (changed namespaces)",
                        source,
                    })?;
                self.rescan(association).await
            }
            log => {
                tracing::info!(
                    ?event,
                    log = log.0,
                    "event without consequence for this host"
                );
                Ok(())
            }
        }
    }

    async fn rescan(&mut self, association: &Association) -> Result<(), ConnectError> {
        let found = scan(association, self.spec.which).await?;
        self.reconcile(found);
        Ok(())
    }

    /// Compares what is there with what was there.
    pub(super) fn reconcile(&mut self, found: Vec<NamespaceInfo>) {
        let mut found: Vec<_> = found.into_iter().map(Some).collect();
        for mut attached in std::mem::take(&mut self.namespaces) {
            let now = found.iter_mut().find(|now| {
                now.as_ref()
                    .is_some_and(|now| now.nsid == attached.info.nsid)
            });
            let error = match now {
                None => IoError::Removed,
                Some(now) => {
                    let is_same = |now: &mut NamespaceInfo| {
                        now.identity == attached.info.identity
                            && now.block_bytes == attached.info.block_bytes
                    };
                    match now.take_if(is_same) {
                        Some(now) => {
                            if now != *attached.info {
                                attached.info = Arc::new(now);
                                self.post(|| ToShard::Reshape {
                                    head: attached.head,
                                    info: attached.info.clone(),
                                });
                                let (head, info) = (attached.head, attached.info.clone());
                                self.tell(ControllerEvent::Changed { head, info });
                            }
                            self.namespaces.push(attached);
                            continue;
                        }
                        None => IoError::IdentityChanged,
                    }
                }
            };
            tracing::warn!(nsid = %attached.info.nsid, identity = %attached.info.identity, %error, "namespace gone");
            self.post(|| ToShard::SetState {
                head: attached.head,
                state: HeadState::Failing(error),
            });
            self.tell(ControllerEvent::Gone {
                head: attached.head,
                error,
            });
        }
        for info in found.into_iter().flatten() {
            let (head, info) = self.open(info, HeadState::Live);
            self.tell(ControllerEvent::Added { head, info });
        }
    }
}
