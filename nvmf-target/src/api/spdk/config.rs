//! `framework_get_subsystems`, `framework_get_config`: what the API made, as requests that would make it again. SPDK's `save_config` is
//! made of the two.

use std::rc::Rc;

use nvmf_rpc::RpcError;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{address, register};
use crate::api::manager::Manager;
use crate::api::state::{BdevKind, BdevRecord, SubsystemRecord, TransportRecord};
use crate::api::{Methods, NoParams};
use crate::config::Carrier;

pub(super) fn register(methods: &mut Methods, manager: &Rc<Manager>) {
    register!(methods, manager:
        "framework_get_subsystems" => get_subsystems,
        "framework_get_config" => get_config,
    );
}

async fn get_subsystems(_: Rc<Manager>, _: NoParams) -> Result<Value, RpcError> {
    Ok(json!([
        { "subsystem": "bdev", "depends_on": [] },
        { "subsystem": "nvmf", "depends_on": ["bdev"] },
    ]))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GetConfig {
    name: String,
}

async fn get_config(manager: Rc<Manager>, params: GetConfig) -> Result<Value, RpcError> {
    let state = manager.state();
    let requests: Vec<Value> = match params.name.as_str() {
        "bdev" => state.bdevs.iter().map(bdev).collect(),
        "nvmf" => state
            .transports()
            .map(transport)
            .chain(state.subsystems.iter().flat_map(subsystem))
            .collect(),
        other => {
            return Err(RpcError::params(format!(
                "there is no subsystem {other:?} of the program; framework_get_subsystems lists all"
            )));
        }
    };
    Ok(Value::Array(requests))
}

fn request(method: &str, params: Value) -> Value {
    // What is not given is left out.
    let given = match params {
        Value::Object(params) => params
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .collect(),
        _ => Map::new(),
    };
    json!({ "method": method, "params": Value::Object(given) })
}

fn bdev(record: &BdevRecord) -> Value {
    let num_blocks = record
        .size_bytes
        .map(|size| size / u64::from(record.block_bytes));
    let (method, filename) = match record.kind {
        BdevKind::Malloc => ("bdev_malloc_create", None),
        BdevKind::Null => ("bdev_null_create", None),
        BdevKind::Aio => ("bdev_aio_create", record.path.as_ref()),
        BdevKind::Uring => ("bdev_uring_create", record.path.as_ref()),
    };
    let params = json!({
        "name": record.name, "num_blocks": num_blocks, "block_size": record.block_bytes,
        "filename": filename, "readonly": record.read_only.then_some(true), "uuid": record.uuid,
    });
    request(method, params)
}

fn transport((carrier, record): (Carrier, &TransportRecord)) -> Value {
    let params = json!({
        "trtype": address::trtype(carrier),
        "max_queue_depth": record.queue_depth,
        "max_io_qpairs_per_ctrlr": record.io_queues,
        "in_capsule_data_size": record.in_capsule_bytes,
        "max_io_size": record.max_transfer_bytes,
        "c2h_success": record.success_flag,
    });
    request("nvmf_create_transport", params)
}

fn subsystem(record: &SubsystemRecord) -> Vec<Value> {
    let nqn = &record.nqn;
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02X}")).collect() };
    let mut requests = vec![request(
        "nvmf_create_subsystem",
        json!({
            "nqn": nqn, "serial_number": record.serial, "model_number": record.model,
            "max_namespaces": record.max_namespaces, "allow_any_host": record.allow_any_host,
        }),
    )];
    for host in &record.hosts {
        let params = json!({ "nqn": nqn, "host": host });
        requests.push(request("nvmf_subsystem_add_host", params));
    }
    for namespace in &record.namespaces {
        let given = json!({
            "nsid": namespace.nsid, "bdev_name": namespace.bdev, "uuid": namespace.uuid,
            "nguid": namespace.nguid.map(|bytes| hex(&bytes)),
            "eui64": namespace.eui64.map(|bytes| hex(&bytes)),
        });
        let params = json!({ "nqn": nqn, "namespace": request("", given)["params"] });
        requests.push(request("nvmf_subsystem_add_ns", params));
    }
    for listener in &record.listeners {
        let params = json!({ "nqn": nqn, "listen_address": listener });
        requests.push(request("nvmf_subsystem_add_listener", params));
    }
    requests
}
