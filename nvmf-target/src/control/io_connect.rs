//! Connect of an I/O queue: is there such a controller, does the host own it, may the queue exist; then over to a shard, which
//! answers the host.

use std::rc::Rc;
use std::time::Duration;

use nvme_proto::controller::Fault;
use nvme_proto::queue::QueueLimits;
use nvme_proto::wire::Status;
use tokio::time::{Instant, timeout_at};

use super::admin;
use super::association::{Association, Stage};
use super::connecting::{Carried, Connecting, Refusal, Refused};
use super::target::Target;
use crate::shard::{Adopt, Connection};

/// How long a queue of the same identifier has to go away: a host that reconnects a queue races the end of its own old connection.
const OLD_QUEUE_PATIENCE: Duration = Duration::from_secs(2);

/// Hands the connection to a shard. An error leaves it as it was.
pub async fn start(
    target: &Rc<Target>,
    connecting: Connecting,
    deadline: Instant,
) -> Result<(), Refused> {
    match admit(target, &connecting, deadline).await {
        Ok((association, shard)) => hand_over(target, &association, shard, connecting),
        Err(refusal) => Err(Box::new((refusal, connecting))),
    }
}

/// Checks the request against what there is, waits for the fence, and reserves queue identifier and shard.
async fn admit(
    target: &Target,
    connecting: &Connecting,
    deadline: Instant,
) -> Result<(Rc<Association>, usize), Refusal> {
    let request = &connecting.request;
    let association = find(target, connecting)?;
    match association.check_io_connect(request) {
        Ok(()) | Err(Fault::QidInUse(_)) => {}
        Err(fault) => return Err(fault.into()),
    }
    // The deadline of the handshake bounds the wait; a host that still waits then is told to come again.
    if timeout_at(deadline, association.fenced()).await.is_err() {
        return Err(Refusal::for_now(
            Status::CONNECT_CONTROLLER_BUSY,
            "an older association of the host did not end in time",
        ));
    }
    let shard = target.shards.place();
    let reserved = association
        .reserve_queue(request, shard, OLD_QUEUE_PATIENCE)
        .await;
    match reserved {
        Ok(()) => Ok((association, shard)),
        Err(fault) => {
            target.shards.unplace(shard);
            let mut refusal = Refusal::from(fault);
            if matches!(fault, Fault::QidInUse(_)) {
                // The old queue will go; a host told not to come again would give its whole controller up.
                refusal.status = Status::COMMAND_SEQUENCE_ERROR;
            }
            Err(refusal)
        }
    }
}

/// The association that the request is for, if it is live and the host may still use it.
fn find(target: &Target, connecting: &Connecting) -> Result<Rc<Association>, Fault> {
    let request = &connecting.request;
    let local = connecting.local();
    let served = admin::find_subsystem(target, request, local)?;
    served
        .association(request.cntlid)
        .filter(|association| association.stage() == Stage::Live)
        // What a controller announced holds for one transport.
        .filter(|association| association.local().carrier == local.carrier)
        .ok_or(Fault::UnknownController(request.cntlid))
}

fn hand_over(
    target: &Rc<Target>,
    association: &Rc<Association>,
    shard: usize,
    connecting: Connecting,
) -> Result<(), Refused> {
    let request = &connecting.request;
    let undo = |reason: String| {
        association.release_queue(request.qid);
        target.shards.unplace(shard);
        Refusal::for_now(Status::INTERNAL_ERROR, reason)
    };
    let addresses = connecting.addresses();
    let peer = addresses.1;
    // What the controller announced, not what the configuration says by now.
    let announced = association.limits();
    let limits = QueueLimits {
        // At most the controller's limit, which is 16 bits.
        depth: request.entries as u16,
        in_capsule_bytes: announced.controller.in_capsule_bytes,
        max_transfer_bytes: announced.controller.max_transfer_bytes,
        r2t_window_bytes: announced.r2t_window_bytes,
        flow_control: !request.disable_sq_flow_control,
        success_flag: announced.success_flag,
        admin: false,
    };
    // The stream's socket is closed here once the shard has its own descriptor.
    let (connection, _stream) = match connecting.carried {
        Carried::Tcp {
            stream,
            params,
            rest,
        } => match stream.to_owned_fd() {
            Ok(fd) => {
                let received = rest;
                let connection = Connection::Tcp {
                    fd,
                    received,
                    params,
                };
                (connection, Some(stream))
            }
            Err(error) => {
                let refusal = undo(format!("the socket cannot be handed to a shard: {error}"));
                let carried = Carried::Tcp {
                    stream,
                    params,
                    rest,
                };
                return Err(Box::new((
                    refusal,
                    Connecting {
                        carried,
                        ..connecting
                    },
                )));
            }
        },
        Carried::Rdma(greeted) => match greeted.into_idle() {
            Some((qp, service)) => {
                service.give_to_shard(qp.id().key(), shard);
                (Connection::Rdma(Box::new(qp)), None)
            }
            None => {
                undo(String::new());
                tracing::debug!(%peer, queue = %request.qid, "the host closed the connection while its Connect was judged");
                return Ok(());
            }
        },
    };
    let adopt = Adopt {
        connection,
        limits,
        qid: request.qid,
        connect_cid: request.cid,
        controller: association.shared.clone(),
    };
    if let Err(gone) = target.shards.adopt(shard, adopt) {
        // Without the shard the process ends; the host sees its connection closed.
        undo(String::new());
        tracing::error!(%peer, "an I/O queue cannot be served: {gone}");
        return Ok(());
    }
    tracing::debug!(
        %peer, host = %request.hostnqn, controller = %request.cntlid,
        queue = %request.qid, entries = request.entries, shard, "I/O queue connected"
    );
    association.keep_connection(request.qid, connecting.counted, addresses);
    Ok(())
}
