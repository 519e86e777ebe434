//! [`Initiator`]: the control thread of a process that embeds this library.
//!
//! One thread serves the admin queues of any number of controllers; it sleeps but for keep-alives and events. Sessions and
//! handles share it, or start one of their own.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::core::association::SHUTDOWN_LIMIT;
use crate::core::controller::{Connected, ControllerSpec, connect};
use crate::core::error::ConnectError;

type Reply = Box<dyn FnOnce(Result<Connected, ConnectError>) + Send>;

/// See the module's text. Clones share the thread, which ends with the last of them and the last controller.
#[derive(Debug, Clone)]
pub struct Initiator {
    thread: Arc<ControlThread>,
}

#[derive(Debug)]
struct ControlThread {
    requests: Option<mpsc::UnboundedSender<(ControllerSpec, Reply)>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Initiator {
    /// Starts the control thread.
    pub fn start() -> io::Result<Initiator> {
        let (requests, inbox) = mpsc::unbounded_channel::<(ControllerSpec, Reply)>();
        let (started, start) = std::sync::mpsc::channel();
        let thread = thread::Builder::new()
            .name("nvmf-control".to_owned())
            .spawn(move || {
                let runtime = match runtime() {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(started.send(Err(error))),
                };
                // Whoever started us waits for this.
                let _ = started.send(Ok(()));
                runtime.block_on(serve(inbox));
            })?;
        start
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the control thread died at its start")))?;
        Ok(Initiator {
            thread: Arc::new(ControlThread {
                requests: Some(requests),
                thread: Some(thread),
            }),
        })
    }

    /// Connects a controller and waits for the outcome.
    pub fn connect(&self, spec: ControllerSpec) -> Result<Connected, ConnectError> {
        let (reply, answered) = std::sync::mpsc::channel();
        let requests = self
            .thread
            .requests
            .as_ref()
            .expect("taken only when the last clone is dropped");
        // Whether it failed shows in the answer that does not come.
        let _ = requests.send((spec, Box::new(move |result| drop(reply.send(result)))));
        answered.recv().unwrap_or(Err(ConnectError::ShardGone))
    }
}

async fn serve(mut inbox: mpsc::UnboundedReceiver<(ControllerSpec, Reply)>) {
    let controllers = Rc::new(RefCell::new(Vec::new()));
    while let Some((spec, reply)) = inbox.recv().await {
        let controllers = controllers.clone();
        tokio_uring::spawn(async move {
            match connect(spec).await {
                Ok((connected, served)) => {
                    controllers
                        .borrow_mut()
                        .retain(|served: &JoinHandle<()>| !served.is_finished());
                    controllers.borrow_mut().push(served);
                    reply(Ok(connected));
                }
                Err(error) => reply(Err(error)),
            }
        });
    }
    // Those that are disconnecting get time to do it in order.
    let all = controllers.take();
    let _ = tokio::time::timeout(SHUTDOWN_LIMIT, async {
        for served in all {
            let _ = served.await;
        }
    })
    .await;
}

impl Drop for ControlThread {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            // It panicked, if at all, where everybody could see it.
            let _ = thread.join();
        }
    }
}

/// The runtime of a control thread.
pub(crate) fn runtime() -> io::Result<tokio_uring::Runtime> {
    tokio_uring::Runtime::new(&tokio_uring::builder()).map_err(|error| match error.raw_os_error() {
        Some(libc_eperm @ (1 | 38)) => io::Error::other(format!(
            "io_uring is not allowed here (error {libc_eperm}): set kernel.io_uring_disabled to 0, or let the container's \
             seccomp profile allow io_uring_setup, io_uring_enter and io_uring_register"
        )),
        Some(12) => io::Error::other("not enough locked memory for io_uring: raise RLIMIT_MEMLOCK (ulimit -l)"),
        _ => error,
    })
}
