//! `bdev_get_bdevs`: what the API made, and the storage of the namespaces that others declared, which is read-only here.

use std::rc::Rc;

use nvmf_rpc::RpcError;
use nvmf_rpc::error::code;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::register;
use crate::api::Methods;
use crate::api::bdev::no_bdev;
use crate::api::manager::Manager;
use crate::api::state::BdevKind;
use crate::backend::{Backing, BackingSpec};
use crate::config::rules;
use crate::control::live::Owner;
use crate::control::target::Served;
use crate::model::{IoTotals, Namespace};

pub(super) fn register(methods: &mut Methods, manager: &Rc<Manager>) {
    register!(methods, manager: "bdev_get_bdevs" => get_bdevs,);
}

/// One block device as lists show it.
pub(super) struct Listed {
    /// Its name: the API's, or the subsystem's and the NSID.
    pub(super) name: String,
    /// Its I/O so far.
    pub(super) totals: IoTotals,
    uuid: Uuid,
    product: &'static str,
    blocks: u64,
    block_bytes: u32,
    read_only: bool,
    claimed: bool,
    zeroes: bool,
    owner: Owner,
    module: &'static str,
    path: Option<String>,
}

/// The name of the block device that a namespace lies on.
pub(super) fn name_of(manager: &Manager, served: &Served, namespace: &Namespace) -> String {
    let nqn = served.info.nqn.as_str();
    let nsid = namespace.nsid.0;
    if served.owner == Owner::Api {
        let state = manager.state();
        let subsystem = state.subsystems.iter().find(|record| record.nqn == nqn);
        let record = subsystem.and_then(|s| s.namespaces.iter().find(|n| n.nsid == nsid));
        if let Some(record) = record {
            return record.bdev.clone();
        }
    }
    format!("{nqn}:{nsid}")
}

/// All block devices, those of the API first.
pub(super) fn all(manager: &Manager) -> Vec<Listed> {
    let state = manager.state();
    let used = |name: &str| {
        let mut all = state.subsystems.iter();
        all.any(|subsystem| subsystem.namespaces.iter().any(|n| n.bdev == name))
    };
    let mut listed: Vec<Listed> = manager
        .bdevs()
        .into_iter()
        .map(|bdev| {
            let (product, module) = match bdev.record.kind {
                BdevKind::Malloc => ("Malloc disk", "malloc"),
                BdevKind::Null => ("Null disk", "null"),
                BdevKind::Aio => ("AIO disk", "aio"),
                BdevKind::Uring => ("URING bdev", "uring"),
            };
            Listed {
                totals: bdev.counters.totals(),
                uuid: bdev.uuid,
                product,
                blocks: bdev.backing.size_bytes() / u64::from(bdev.record.block_bytes),
                block_bytes: bdev.record.block_bytes,
                read_only: bdev.record.read_only,
                claimed: used(&bdev.record.name),
                zeroes: bdev.backing.zeroes_after_deallocate(),
                owner: Owner::Api,
                module,
                path: path_of(&bdev.backing),
                name: bdev.record.name,
            }
        })
        .collect();
    let target = &manager.target;
    for served in target.subsystems() {
        if served.owner == Owner::Api {
            continue;
        }
        let subsystem = served.subsystem.borrow();
        listed.extend(subsystem.namespaces.iter().map(|namespace| {
            let (product, module) = match namespace.backing.spec() {
                BackingSpec::Memory { .. } => ("Malloc disk", "malloc"),
                BackingSpec::Null { .. } => ("Null disk", "null"),
                BackingSpec::File { .. } | BackingSpec::Block { .. } => ("URING bdev", "uring"),
                BackingSpec::Passthrough { .. } => ("NVMe disk", "nvme"),
            };
            Listed {
                name: name_of(manager, &served, namespace),
                totals: namespace.counters.totals(),
                uuid: namespace.ids.uuid,
                product,
                blocks: namespace.geometry.blocks(),
                block_bytes: namespace.geometry.block_bytes(),
                read_only: namespace.read_only,
                claimed: true,
                zeroes: namespace.backing.zeroes_after_deallocate(),
                owner: served.owner,
                module,
                path: path_of(&namespace.backing),
            }
        }));
    }
    listed
}

fn path_of(backing: &Backing) -> Option<String> {
    rules::path_of(backing.spec()).map(|path| path.display().to_string())
}

/// Those with one of these names or UUIDs; one that is not there is an error.
pub(super) fn named(manager: &Manager, names: &[String]) -> Result<Vec<Listed>, RpcError> {
    let mut all = all(manager);
    let mut found = Vec::new();
    for name in names {
        let is_it =
            |bdev: &Listed| bdev.name == *name || bdev.uuid.to_string().eq_ignore_ascii_case(name);
        let index = all.iter().position(is_it).ok_or_else(|| no_bdev(name))?;
        found.push(all.swap_remove(index));
    }
    Ok(found)
}

/// Why a name is none of a block device that the API made: it is somebody else's, or nobody's.
pub(super) fn not_ours(manager: &Manager, name: &str) -> RpcError {
    match named(manager, &[name.to_owned()]) {
        Ok(found) if found[0].owner != Owner::Api => {
            RpcError::not_permitted(format!("the bdev {name} is {}", found[0].owner))
        }
        _ => no_bdev(name),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GetBdevs {
    name: Option<String>,
    /// Milliseconds that SPDK waits for the bdev to appear. Nothing appears here by itself.
    timeout: Option<u64>,
}

async fn get_bdevs(manager: Rc<Manager>, params: GetBdevs) -> Result<Value, RpcError> {
    let bdevs = match params.name {
        Some(name) => named(&manager, &[name])?,
        None if params.timeout.is_some_and(|timeout| timeout != 0) => {
            let message = "timeout is for one bdev; give its name";
            return Err(RpcError::new(code::INVALID_PARAMS, message));
        }
        None => all(&manager),
    };
    Ok(bdevs.iter().map(describe).collect())
}

fn describe(bdev: &Listed) -> Value {
    let mut specific = json!({
        "owner": match bdev.owner {
            Owner::File => "file",
            Owner::Api => "api",
            Owner::Pool => "pool",
        },
    });
    if let Some(path) = &bdev.path {
        specific[bdev.module] = json!({ "filename": path, "readonly": bdev.read_only });
    }
    let mut value = json!({
        "name": bdev.name,
        "aliases": [bdev.uuid.to_string()],
        "product_name": bdev.product,
        "block_size": bdev.block_bytes,
        "num_blocks": bdev.blocks,
        "uuid": bdev.uuid.to_string(),
        "assigned_rate_limits": {
            "rw_ios_per_sec": 0, "rw_mbytes_per_sec": 0,
            "r_mbytes_per_sec": 0, "w_mbytes_per_sec": 0,
        },
        "claimed": bdev.claimed,
        "zoned": false,
        "supported_io_types": {
            "read": true, "write": !bdev.read_only, "unmap": bdev.zeroes && !bdev.read_only,
            "flush": true, "reset": false, "nvme_admin": false, "nvme_io": false,
            "nvme_io_md": false, "write_zeroes": !bdev.read_only, "zcopy": false,
            "get_zone_info": false, "zone_management": false, "zone_append": false,
            "compare": true, "compare_and_write": false, "abort": true, "seek_hole": false,
            "seek_data": false, "copy": false, "nvme_iov_md": false,
        },
        "driver_specific": specific,
    });
    if bdev.claimed {
        value["claim_type"] = "exclusive_write".into();
    }
    value
}
