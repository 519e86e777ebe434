//! An admin queue over RDMA: one task posts, takes completions and listens to the connection manager.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use nvme_proto::queue::SlotId;
use nvme_proto::wire::Sqe;
use nvmf_io::Buf;
use nvmf_io::verbs::{LinkFailure, VerbsError};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::link::rdma::{RdmaLink, end_of};
use super::super::queue::FLUSH_WAIT_MS;
use super::super::rdma::{Answer, Memory, NotTaken as LinkNotTaken};
use super::{NotTaken, Shared, Wire};

/// See the module's text.
pub(super) struct RdmaAdmin {
    /// `None` once the queue pair is destroyed.
    link: RefCell<Option<Rc<RdmaLink>>>,
    /// Where data come in, by slot.
    data: RefCell<Vec<Option<Buf>>>,
}

/// Starts the task.
pub(super) fn start(shared: &Rc<Shared>) -> Vec<JoinHandle<()>> {
    let shared = shared.clone();
    vec![tokio_uring::spawn(async move {
        if let Wire::Rdma(rdma) = &shared.wire
            && let Some(link) = rdma.link()
        {
            let cause = rdma.serve(&shared, &link).await;
            shared.end(cause);
            let limit = Duration::from_millis(FLUSH_WAIT_MS.into());
            // What does not come back in time goes with the queue pair.
            let _ = timeout(limit, rdma.drain(&link)).await;
            rdma.link.borrow_mut().take();
        }
    })]
}

fn explain(failure: LinkFailure) -> String {
    match failure {
        LinkFailure::Violation(violation) => {
            format!("the target broke the protocol: {violation}")
        }
        LinkFailure::Broken(cause) => cause,
        LinkFailure::Flushed => "closed by the target".to_owned(),
    }
}

impl RdmaAdmin {
    /// Also how many commands can be open.
    pub(super) fn new(link: RdmaLink) -> (Self, usize) {
        let capacity = link.link.borrow().conn().capacity();
        let rdma = RdmaAdmin {
            link: RefCell::new(Some(Rc::new(link))),
            data: RefCell::new(vec![None; capacity]),
        };
        (rdma, capacity)
    }

    fn link(&self) -> Option<Rc<RdmaLink>> {
        self.link.borrow().clone()
    }

    pub(super) fn submit(&self, sqe: &Sqe, expected_in: u32) -> Result<SlotId, NotTaken> {
        let failed = |error: VerbsError| NotTaken::Failed(error.to_string());
        let Some(link) = self.link() else {
            return Err(NotTaken::Failed("closed".to_owned()));
        };
        let buf = match expected_in {
            0 => None,
            bytes => {
                let buf = link.device.alloc(bytes).map_err(failed)?;
                // What is not written must not be what the buffer's last user left.
                buf.fill(0..bytes, 0);
                Some(buf)
            }
        };
        let memory = match &buf {
            None => Memory::None,
            Some(buf) => Memory::In(buf, 0..expected_in),
        };
        match link.link.borrow_mut().submit(sqe, memory) {
            Ok(slot) => {
                self.data.borrow_mut()[slot.index()] = buf;
                Ok(slot)
            }
            Err(LinkNotTaken::Full) => Err(NotTaken::Full),
            Err(LinkNotTaken::Failed(failure)) => Err(NotTaken::Failed(explain(failure))),
        }
    }

    /// The queue ended.
    pub(super) fn end(&self) {
        if let Some(link) = self.link() {
            link.link.borrow_mut().close();
        }
    }

    async fn serve(&self, shared: &Shared, link: &RdmaLink) -> String {
        let served = link.link.borrow_mut().serve();
        if let Err(error) = served {
            return error.to_string();
        }
        loop {
            if let Err(cause) = self.turn(shared, link) {
                return cause;
            }
            let went_wrong = |error: VerbsError| error.to_string();
            tokio::select! {
                woken = link.signals.completion(&link.link) => if let Err(error) = woken {
                    return went_wrong(error);
                },
                event = link.signals.event() => match event {
                    Ok(event) => if let Some(cause) = end_of(&event) {
                        return cause.to_owned();
                    },
                    Err(error) => return went_wrong(error),
                },
                () = shared.send.notified() => {}
            }
            if shared.has_ended() {
                return "closed by this host".to_owned();
            }
        }
    }

    /// Has the completion queue tell of what comes, takes what came, and sends what there is.
    fn turn(&self, shared: &Shared, link: &RdmaLink) -> Result<(), String> {
        let mut answers = Vec::new();
        {
            let mut link = link.link.borrow_mut();
            // What came before it was armed is not told of: it is taken right after.
            link.qp().queue().arm().map_err(|error| error.to_string())?;
            link.poll(|answer| answers.push(answer)).map_err(explain)?;
            link.post().map_err(|error| error.to_string())?;
        }
        for Answer { slot, cqe, .. } in answers {
            shared.heard.set(true);
            let data = self.data.borrow_mut()[slot.index()].take();
            let waiting = shared.slots.borrow_mut()[slot.index()].take();
            if let Some(mut waiting) = waiting {
                if let Some(buf) = data {
                    buf.copy_out(0, &mut waiting.data);
                }
                // How much was written is not told; a controller that succeeds has written all.
                let got = waiting.expected_in;
                shared.answer(waiting, cqe, got);
            }
        }
        Ok(())
    }

    /// Waits until what is posted has come back.
    async fn drain(&self, link: &RdmaLink) {
        loop {
            {
                let mut link = link.link.borrow_mut();
                if link.qp().queue().arm().is_err() || link.poll(|_| {}).is_err() || link.is_quiet()
                {
                    return;
                }
            }
            if link.signals.completion(&link.link).await.is_err() {
                return;
            }
        }
    }
}
