//! Controllers, their queues, and counters of the threads that serve them.

use std::net::SocketAddr;
use std::rc::Rc;

use nvmf_rpc::RpcError;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::iostat::TICK_RATE;
use super::subsystems::reading;
use super::{OneSubsystem, address, check_target, register};
use crate::api::Methods;
use crate::api::manager::Manager;
use crate::config::Address;
use crate::control::association::{Association, Stage};
use crate::control::target::Served;
use crate::rdma::DeviceStats;

/// Where admin queues are.
const CONTROL: &str = "control";

pub(super) fn register(methods: &mut Methods, manager: &Rc<Manager>) {
    register!(methods, manager:
        "nvmf_subsystem_get_controllers" => get_controllers,
        "nvmf_subsystem_get_qpairs" => get_qpairs,
        "nvmf_get_stats" => get_stats,
    );
}

fn live(served: &Served) -> Vec<Rc<Association>> {
    served.associations_where(|association| association.stage() == Stage::Live)
}

async fn get_controllers(manager: Rc<Manager>, params: OneSubsystem) -> Result<Value, RpcError> {
    let served = reading(&manager, &params)?;
    let kind = match manager.target.is_discovery(&served) {
        true => "discovery",
        false => "io",
    };
    let all = live(&served).into_iter().map(|association| {
        json!({
            "cntlid": association.shared.key.cntlid.0,
            "cntrltype": kind,
            "hostnqn": association.shared.host_nqn.as_str(),
            "hostid": Uuid::from_bytes(association.shared.host_id).to_string(),
            "num_io_qpairs": association.queue_count(),
        })
    });
    Ok(all.collect())
}

async fn get_qpairs(manager: Rc<Manager>, params: OneSubsystem) -> Result<Value, RpcError> {
    let served = reading(&manager, &params)?;
    let mut all = Vec::new();
    for association in live(&served) {
        let carrier = association.local().carrier;
        let at = |socket| address::describe(Address { carrier, socket });
        let pair = |qid: u16, thread: String, local: SocketAddr, peer: SocketAddr| {
            json!({
                "cntlid": association.shared.key.cntlid.0,
                "qid": qid,
                "state": "enabled",
                "thread": thread,
                "hostnqn": association.shared.host_nqn.as_str(),
                "listen_address": at(local),
                "peer_address": at(peer),
            })
        };
        all.push(pair(
            0,
            CONTROL.to_owned(),
            association.local().socket,
            association.peer(),
        ));
        for (qid, shard, local, peer) in association.queues() {
            all.push(pair(qid.0, format!("shard-{shard}"), local, peer));
        }
    }
    Ok(Value::Array(all))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GetStats {
    tgt_name: Option<String>,
}

/// A poll group is a thread: the control thread has the admin queues, the shards the I/O queues.
async fn get_stats(manager: Rc<Manager>, params: GetStats) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let target = &manager.target;
    let mut served = target.subsystems();
    served.push(Rc::clone(&target.discovery));
    let admin: usize = served.iter().map(|served| live(served).len()).sum();
    let mut groups = vec![json!({
        "name": CONTROL,
        "admin_qpairs": target.admin_queues_so_far.get(),
        "io_qpairs": 0,
        "current_admin_qpairs": admin,
        "current_io_qpairs": 0,
        "pending_bdev_io": 0,
        "completed_nvme_io": 0,
        "buffers_in_use": target.rdma.buffers_in_use(),
        "transports": transports(None, &target.rdma.stats()),
    })];
    let placed = target.shards.placed_so_far();
    for (index, stats) in target.shards.stats().await.into_iter().enumerate() {
        let mut completed = 0;
        for served in target.subsystems() {
            for namespace in served.subsystem.borrow().namespaces.iter() {
                completed += namespace.counters.shard(index).completed();
            }
        }
        let pending: u64 = stats
            .queues
            .iter()
            .map(|queue| u64::from(queue.in_flight))
            .sum();
        groups.push(json!({
            "name": format!("shard-{index}"),
            "admin_qpairs": 0,
            "io_qpairs": placed.get(index).copied().unwrap_or(0),
            "current_admin_qpairs": 0,
            "current_io_qpairs": stats.queues.len(),
            "pending_bdev_io": pending,
            "completed_nvme_io": completed,
            "buffers_in_use": stats.buffers_in_use,
            "copied_bytes": stats.copied_bytes,
            "transports": transports(Some(stats.waiting_for_buffer), &stats.rdma),
        }));
    }
    Ok(json!({ "tick_rate": TICK_RATE, "poll_groups": groups }))
}

/// What a thread did, by transport. Names of counters are SPDK's as far as it has them; the rest is about what a command costs.
fn transports(waiting: Option<u64>, rdma: &[DeviceStats]) -> Value {
    let transport = |trtype: &str| {
        let mut transport = json!({ "trtype": trtype });
        // Commands of all transports wait for one pool.
        if let Some(waiting) = waiting {
            transport["pending_data_buffer"] = waiting.into();
        }
        transport
    };
    let mut transports = vec![transport("TCP")];
    if !rdma.is_empty() {
        let mut over_rdma = transport("RDMA");
        over_rdma["devices"] = rdma.iter().map(device).collect();
        transports.push(over_rdma);
    }
    Value::Array(transports)
}

fn device(stats: &DeviceStats) -> Value {
    let counts = &stats.counts;
    json!({
        "name": stats.device,
        "polls": counts.polls,
        "idle_polls": counts.idle_polls,
        "completions": counts.completions,
        "total_send_wrs": counts.work_requests(),
        "send_doorbell_updates": counts.posts,
        "total_recv_wrs": counts.receives,
        "recv_doorbell_updates": counts.receives,
        "send_wrs": counts.sends,
        "read_wrs": counts.reads,
        "write_wrs": counts.writes,
        "other_wrs": counts.others,
        "signalled_wrs": counts.signalled,
        "failed_wrs": counts.failed,
        "registrations": stats.registrations,
        "current_qpairs": stats.queue_pairs,
        "current_qpair_bytes": stats.queue_pair_bytes,
    })
}
