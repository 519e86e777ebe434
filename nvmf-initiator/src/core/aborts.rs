//! Abort for commands that have no answer in time.
//!
//! No more are open at once than the controller takes (ACL); the others wait for their turn. Whether a command was aborted shows in
//! its own completion, so the answer to Abort is only told to the log; what counts is that there is one.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use nvme_proto::wire::event::AbortCommand;
use nvme_proto::wire::{Cid, Qid};

use super::admin::{AdminData, AdminQueue, AdminReply};
use super::error::AdminError;

/// No more at once even where a controller takes more: the admin queue has other users.
const MAX_OPEN: usize = 8;

type Answer = Result<AdminReply, AdminError>;

/// See the module's text.
pub(crate) struct Aborts<'a> {
    admin: &'a AdminQueue,
    limit: usize,
    waiting: VecDeque<AbortCommand>,
    open: Vec<Open<'a>>,
}

struct Open<'a> {
    what: AbortCommand,
    answer: Pin<Box<dyn Future<Output = Answer> + 'a>>,
}

impl<'a> Aborts<'a> {
    /// `acl` is the controller's limit, 0's based.
    pub fn new(admin: &'a AdminQueue, acl: u8) -> Self {
        Aborts {
            admin,
            limit: (usize::from(acl) + 1).min(MAX_OPEN),
            waiting: VecDeque::new(),
            open: Vec::new(),
        }
    }

    /// Asks for a command's end.
    pub fn ask(&mut self, sqid: Qid, cid: Cid) {
        self.waiting.push_back(AbortCommand { sqid, cid });
        self.begin();
    }

    fn begin(&mut self) {
        while self.open.len() < self.limit
            && let Some(what) = self.waiting.pop_front()
        {
            tracing::warn!(queue = %what.sqid, cid = %what.cid, "no answer in time, aborting the command");
            let answer = Box::pin(self.admin.command(what.to_sqe(), AdminData::None));
            self.open.push(Open { what, answer });
        }
    }

    /// Waits for answers; for ever, while none is to come. An error is the end of the controller: it does not even answer this.
    pub async fn failed(&mut self) -> AdminError {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<AdminError> {
        let mut at = 0;
        while at < self.open.len() {
            let Poll::Ready(answer) = self.open[at].answer.as_mut().poll(cx) else {
                at += 1;
                continue;
            };
            let AbortCommand { sqid, cid } = self.open.swap_remove(at).what;
            match answer {
                Ok(reply) => {
                    let aborted = reply.cqe.result() == AbortCommand::result(true);
                    tracing::info!(queue = %sqid, %cid, aborted, "Abort answered");
                }
                // One that does not know Abort, or had too many: the command's second time-out decides.
                Err(AdminError::Status(status)) => {
                    tracing::warn!(queue = %sqid, %cid, %status, "Abort refused");
                }
                Err(error) => return Poll::Ready(error),
            }
            self.begin();
            // Those that were just begun have to be polled once.
            at = 0;
        }
        Poll::Pending
    }
}
