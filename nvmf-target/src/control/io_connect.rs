//! Connect of an I/O queue: is there such a controller, does the host own it, may the queue exist; then over to a shard, which
//! answers the host.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use nvme_proto::controller::{ConnectRequest, Fault};
use nvme_proto::queue::QueueLimits;
use nvme_proto::tcp::ControllerConn;
use nvme_proto::wire::fabrics::ConnectResult;
use nvme_proto::wire::{Qid, Status};
use tokio::time::{Instant, timeout_at};

use super::accept::Counted;
use super::admin;
use super::association::{Association, Stage};
use super::auth::{self, Gate, NotPassed};
use super::connecting::{Carried, Connecting, Refusal, Refused};
use super::pump::{AdminPump, Pump};
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
        Ok((place, None)) => hand_over(target, &place, connecting),
        Ok((place, Some(gate))) => {
            authenticate(target, &place, connecting, gate, deadline).await;
            Ok(())
        }
        Err(refusal) => Err(Box::new((refusal, connecting))),
    }
}

/// Checks the request against what there is, waits for the fence, and reserves queue identifier and shard.
async fn admit(
    target: &Target,
    connecting: &Connecting,
    deadline: Instant,
) -> Result<(Place, Option<Gate>), Refusal> {
    let request = &connecting.request;
    let (association, gate) = find(target, connecting)?;
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
        Ok(()) => Ok((Place { association, shard }, gate)),
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

/// The association that the request is for, if it is live and the host may still use it, and what the host has to pass.
fn find(
    target: &Target,
    connecting: &Connecting,
) -> Result<(Rc<Association>, Option<Gate>), Refusal> {
    let request = &connecting.request;
    let local = connecting.local();
    let served = admin::find_subsystem(target, request, local)?;
    let association = served
        .association(request.cntlid)
        .filter(|association| association.stage() == Stage::Live)
        // What a controller announced holds for one transport.
        .filter(|association| association.local().carrier == local.carrier)
        .ok_or(Fault::UnknownController(request.cntlid))?;
    let gate = auth::gate(target, &served, request, local.carrier)?;
    Ok((association, gate))
}

/// What a new queue belongs to.
struct Place {
    association: Rc<Association>,
    shard: usize,
}

impl Place {
    /// What the queue is made with: what the controller announced, not what the configuration says by now.
    fn limits(&self, connecting: &Connecting) -> QueueLimits {
        let request = &connecting.request;
        let announced = self.association.limits();
        QueueLimits {
            // At most the controller's limit, which is 16 bits.
            depth: request.entries as u16,
            in_capsule_bytes: announced.controller.in_capsule_bytes,
            max_transfer_bytes: announced.controller.max_transfer_bytes,
            r2t_window_bytes: announced.r2t_window_bytes,
            flow_control: !request.disable_sq_flow_control,
            success_flag: announced.success_flag,
            admin: false,
        }
    }

    /// Gives up what was reserved for the queue.
    fn undo(&self, target: &Target, qid: Qid) {
        self.association.release_queue(qid);
        target.shards.unplace(self.shard);
    }
}

/// Has the host authenticate on the queue, and hands it to its shard then. Otherwise the connection ends.
async fn authenticate(
    target: &Rc<Target>,
    place: &Place,
    connecting: Connecting,
    mut gate: Gate,
    deadline: Instant,
) {
    let limits = place.limits(&connecting);
    let addresses = connecting.addresses();
    let Connecting {
        carried,
        counted,
        request,
    } = connecting;
    let Carried::Tcp {
        stream,
        params,
        rest,
    } = carried
    else {
        // The gate refuses RDMA.
        return place.undo(target, request.qid);
    };
    let mut conn = ControllerConn::new(params, limits);
    let result = ConnectResult {
        cntlid: request.cntlid,
        authentication_required: true,
        secure_channel_required: false,
    };
    conn.accept_connect(request.cid, result.to_result() as u32);
    let pump = Pump::new(stream, conn, limits.depth, &rest);
    let mut pump = AdminPump::Tcp(Box::new(pump));
    let passed = tokio::select! {
        passed = timeout_at(deadline, auth::pass(&mut gate, &mut pump)) => {
            passed.unwrap_or(Err(NotPassed::TimedOut))
        }
        () = place.association.ended() => Err(NotPassed::Gone),
    };
    let (peer, qid) = (addresses.1, request.qid);
    if let Err(why) = passed {
        place.undo(target, qid);
        if place.association.stage() == Stage::Live {
            tracing::error!(%peer, host = %request.hostnqn, queue = %qid, "an I/O queue ends: the host did not authenticate on it: {why}");
        }
        return pump.close().await;
    }
    let parts = match auth::over_tcp(pump) {
        Some(pump) => pump.into_parts().await,
        None => None,
    };
    let Some((stream, conn)) = parts else {
        tracing::warn!(%peer, host = %request.hostnqn, queue = %qid, "an I/O queue ends: it failed, or the host sent commands before it had authenticated");
        return place.undo(target, qid);
    };
    // From here to the shard nothing is awaited, so that the association's end cannot overtake the queue.
    if place.association.stage() != Stage::Live {
        return place.undo(target, qid);
    }
    match stream.to_owned_fd() {
        Ok(fd) => {
            let connection = Connection::Tcp {
                fd,
                received: Vec::new(),
                conn: Box::new(conn),
            };
            adopt(
                target, place, connection, limits, &request, counted, addresses,
            );
        }
        Err(error) => {
            tracing::error!(%peer, queue = %qid, "the socket cannot be handed to a shard: {error}");
            place.undo(target, qid);
        }
    }
}

fn hand_over(target: &Rc<Target>, place: &Place, connecting: Connecting) -> Result<(), Refused> {
    let request = &connecting.request;
    let addresses = connecting.addresses();
    let peer = addresses.1;
    let limits = place.limits(&connecting);
    // The stream's socket is closed here once the shard has its own descriptor.
    let (connection, _stream) = match connecting.carried {
        Carried::Tcp {
            stream,
            params,
            rest,
        } => match stream.to_owned_fd() {
            Ok(fd) => {
                let mut conn = ControllerConn::new(params, limits);
                let result = place.association.shared.key.cntlid.0;
                conn.accept_connect(request.cid, result.into());
                let connection = Connection::Tcp {
                    fd,
                    received: rest,
                    conn: Box::new(conn),
                };
                (connection, Some(stream))
            }
            Err(error) => {
                place.undo(target, request.qid);
                let refusal = Refusal::for_now(
                    Status::INTERNAL_ERROR,
                    format!("the socket cannot be handed to a shard: {error}"),
                );
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
                service.give_to_shard(qp.id().key(), place.shard);
                (Connection::Rdma(Box::new(qp)), None)
            }
            None => {
                place.undo(target, request.qid);
                tracing::debug!(%peer, queue = %request.qid, "the host closed the connection while its Connect was judged");
                return Ok(());
            }
        },
    };
    let counted = connecting.counted;
    adopt(
        target, place, connection, limits, request, counted, addresses,
    );
    Ok(())
}

/// Sends the queue to its shard.
fn adopt(
    target: &Target,
    place: &Place,
    connection: Connection,
    limits: QueueLimits,
    request: &ConnectRequest,
    counted: Counted,
    addresses: (SocketAddr, SocketAddr),
) {
    let Place { association, shard } = place;
    let peer = addresses.1;
    let adopt = Adopt {
        connection,
        limits,
        qid: request.qid,
        connect_cid: request.cid,
        controller: association.shared.clone(),
    };
    if let Err(gone) = target.shards.adopt(*shard, adopt) {
        // Without the shard the process ends; the host sees its connection closed.
        place.undo(target, request.qid);
        tracing::error!(%peer, "an I/O queue cannot be served: {gone}");
        return;
    }
    tracing::debug!(
        %peer, host = %request.hostnqn, controller = %request.cntlid,
        queue = %request.qid, entries = request.entries, shard, "I/O queue connected"
    );
    association.keep_connection(request.qid, counted, addresses);
}
