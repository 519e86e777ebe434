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
use crate::control::association::{Association, Stage};
use crate::control::target::Served;

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
        let pair = |qid: u16, thread: String, local: SocketAddr, peer: SocketAddr| {
            json!({
                "cntlid": association.shared.key.cntlid.0,
                "qid": qid,
                "state": "enabled",
                "thread": thread,
                "hostnqn": association.shared.host_nqn.as_str(),
                "listen_address": address::describe(local),
                "peer_address": address::describe(peer),
            })
        };
        all.push(pair(
            0,
            CONTROL.to_owned(),
            association.local(),
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
        "transports": [{ "trtype": "TCP" }],
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
            "transports": [{ "trtype": "TCP", "pending_data_buffer": stats.waiting_for_buffer }],
        }));
    }
    Ok(json!({ "tick_rate": TICK_RATE, "poll_groups": groups }))
}
