//! Connect of an I/O queue: is there such a controller, does the host own it, may the queue exist; then over to a shard, which
//! answers the host. Where the host has to authenticate it is answered here, and nothing is reserved before it has: a name can be claimed by anybody.

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

/// Hands the connection to a shard, at once or when its host has authenticated. An error leaves it as it was.
pub async fn start(
    target: &Rc<Target>,
    connecting: Connecting,
    deadline: Instant,
) -> Result<(), Refused> {
    let request = &connecting.request;
    let found = find(target, &connecting).and_then(|(association, gate)| {
        check(&association, request)?;
        Ok((association, gate))
    });
    let refusal = match found {
        Ok((association, Some(gate))) => {
            authenticate(target, association, connecting, gate, deadline).await;
            return Ok(());
        }
        Ok((association, None)) => match reserve(target, association, request, deadline).await {
            Ok(place) => return hand_over(target, &place, connecting),
            Err(refusal) => refusal,
        },
        Err(refusal) => refusal,
    };
    Err(Box::new((refusal, connecting)))
}

/// Checks the request against what there is. A queue of the same identifier may still go.
fn check(association: &Association, request: &ConnectRequest) -> Result<(), Refusal> {
    match association.check_io_connect(request) {
        Ok(()) | Err(Fault::QidInUse(_)) => Ok(()),
        Err(fault) => Err(fault.into()),
    }
}

/// Waits for the fence, and reserves queue identifier and shard if the queue may still exist.
async fn reserve(
    target: &Target,
    association: Rc<Association>,
    request: &ConnectRequest,
    deadline: Instant,
) -> Result<Place, Refusal> {
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
        Ok(()) => Ok(Place { association, shard }),
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

/// What a new queue is made with: what the controller announced, not what the configuration says by now.
fn limits(association: &Association, request: &ConnectRequest) -> QueueLimits {
    let announced = association.limits();
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

/// What is reserved for a new queue.
struct Place {
    association: Rc<Association>,
    shard: usize,
}

impl Place {
    /// Gives up what was reserved for the queue.
    fn undo(&self, target: &Target, qid: Qid) {
        self.association.release_queue(qid);
        target.shards.unplace(self.shard);
    }
}

/// Has the host authenticate on the queue, and hands it to its shard then. Otherwise the connection ends.
async fn authenticate(
    target: &Rc<Target>,
    association: Rc<Association>,
    connecting: Connecting,
    mut gate: Gate,
    deadline: Instant,
) {
    let (limits, addresses) = (
        limits(&association, &connecting.request),
        connecting.addresses(),
    );
    let Connecting {
        carried,
        counted,
        request,
    } = connecting;
    let (peer, qid) = (addresses.1, request.qid);
    let Carried::Tcp {
        stream,
        params,
        rest,
    } = carried
    else {
        // The gate refuses RDMA.
        return;
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
        () = association.ended() => return pump.close().await,
    };
    if let Err(why) = passed {
        if association.stage() == Stage::Live
            && let Some(suppressed) = target.auth_failures.allow(&why, Instant::now())
        {
            tracing::warn!(%peer, host = %request.hostnqn, queue = %qid, suppressed, "an I/O queue ends: the host did not authenticate on it: {why}");
        }
        return pump.close().await;
    }
    // The host waits for its last message meanwhile, and sends nothing.
    let place = match reserve(target, association, &request, deadline).await {
        Ok(place) => place,
        Err(Refusal { reason, .. }) => {
            tracing::warn!(%peer, host = %request.hostnqn, queue = %qid, "an I/O queue ends: {reason}");
            return pump.close().await;
        }
    };
    let Some(mut pump) = auth::over_tcp(pump) else {
        return place.undo(target, qid);
    };
    let is_sent = tokio::select! {
        sent = timeout_at(deadline, pump.drain()) => sent.unwrap_or(false),
        () = place.association.ended() => false,
    };
    // From here to the shard nothing is awaited, so that the association's end cannot overtake the queue.
    if place.association.stage() != Stage::Live {
        place.undo(target, qid);
        return pump.close().await;
    }
    if !is_sent || !pump.is_quiet() {
        tracing::warn!(%peer, host = %request.hostnqn, queue = %qid, "an I/O queue ends: it failed, or the host sent commands before it had authenticated");
        place.undo(target, qid);
        return pump.close().await;
    }
    let (stream, conn) = pump.into_parts();
    match stream.to_owned_fd() {
        Ok(fd) => {
            let connection = Connection::Tcp {
                fd,
                received: Vec::new(),
                conn: Box::new(conn),
            };
            adopt(
                target, &place, connection, limits, &request, counted, addresses,
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
    let limits = limits(&place.association, request);
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
