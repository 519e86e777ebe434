//! What there is, as tables.

use nvmf_rpc::BlockingClient;
use serde_json::{Value, json};

use crate::Output;
use crate::error::Error;
use crate::size;
use crate::table::Table;

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A field as a cell: texts without quotes, nothing for null.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn address(value: &Value) -> String {
    let (ip, port) = (cell(&value["traddr"]), cell(&value["trsvcid"]));
    match ip.contains(':') {
        true => format!("[{ip}]:{port}"),
        false => format!("{ip}:{port}"),
    }
}

fn get_subsystems(client: &BlockingClient, nqn: Option<&str>) -> Result<Value, Error> {
    let params = match nqn {
        Some(nqn) => json!({ "nqn": nqn }),
        None => Value::Null,
    };
    Ok(client.call("nvmf_get_subsystems", params)?)
}

/// The names of the subsystems that a command is about, discovery only when it is named.
fn names(client: &BlockingClient, nqn: Option<&str>) -> Result<Vec<String>, Error> {
    if let Some(nqn) = nqn {
        return Ok(vec![nqn.to_owned()]);
    }
    let all = get_subsystems(client, None)?;
    let nvm = items(&all).filter(|subsystem| subsystem["subtype"] == "NVMe");
    Ok(nvm.map(|subsystem| cell(&subsystem["nqn"])).collect())
}

/// `nvmfctl subsystem list`.
pub fn subsystems(client: &BlockingClient) -> Result<Output, Error> {
    let all = get_subsystems(client, None)?;
    let mut table = Table::new(&["NQN", "SERIAL", "NAMESPACES", "HOSTS", "LISTENERS"]);
    for subsystem in items(&all).filter(|subsystem| subsystem["subtype"] == "NVMe") {
        let hosts = match subsystem["allow_any_host"].as_bool() {
            Some(true) => "any".to_owned(),
            _ => items(&subsystem["hosts"]).count().to_string(),
        };
        let listeners: Vec<String> = items(&subsystem["listen_addresses"])
            .map(|given| match given["trtype"].as_str() {
                Some("TCP") => address(given),
                _ => format!(
                    "{}://{}",
                    cell(&given["trtype"]).to_lowercase(),
                    address(given)
                ),
            })
            .collect();
        table.row([
            cell(&subsystem["nqn"]),
            cell(&subsystem["serial_number"]),
            items(&subsystem["namespaces"]).count().to_string(),
            hosts,
            listeners.join(" "),
        ]);
    }
    Ok(Output::Listed(all, table))
}

/// `nvmfctl namespace list`.
pub fn namespaces(client: &BlockingClient, nqn: Option<&str>) -> Result<Output, Error> {
    let all = get_subsystems(client, nqn)?;
    let mut table = Table::new(&["NQN", "NSID", "BDEV", "UUID"]);
    for subsystem in items(&all) {
        for namespace in items(&subsystem["namespaces"]) {
            table.row([
                cell(&subsystem["nqn"]),
                cell(&namespace["nsid"]),
                cell(&namespace["bdev_name"]),
                cell(&namespace["uuid"]),
            ]);
        }
    }
    Ok(Output::Listed(all, table))
}

/// `nvmfctl host list`.
pub fn hosts(client: &BlockingClient, nqn: &str) -> Result<Output, Error> {
    let mut all = get_subsystems(client, Some(nqn))?;
    let subsystem = all[0].take();
    let mut table = Table::new(&["HOST"]);
    if subsystem["allow_any_host"] == true {
        table.row(["(any)".to_owned()]);
    }
    for host in items(&subsystem["hosts"]) {
        table.row([cell(&host["nqn"])]);
    }
    let value = json!({
        "allow_any_host": subsystem["allow_any_host"], "hosts": subsystem["hosts"],
    });
    Ok(Output::Listed(value, table))
}

/// `nvmfctl listener list`.
pub fn listeners(client: &BlockingClient, nqn: &str) -> Result<Output, Error> {
    let all = client.call("nvmf_subsystem_get_listeners", json!({ "nqn": nqn }))?;
    let mut table = Table::new(&["TRANSPORT", "ADDRESS", "LISTENING"]);
    for listener in items(&all) {
        let given = &listener["address"];
        let listening = match listener["reason"].as_str() {
            Some(why) => format!("no: {why}"),
            None => "yes".to_owned(),
        };
        table.row([cell(&given["trtype"]), address(given), listening]);
    }
    Ok(Output::Listed(all, table))
}

/// `nvmfctl controllers`.
pub fn controllers(client: &BlockingClient, nqn: Option<&str>) -> Result<Output, Error> {
    let mut table = Table::new(&["NQN", "CNTLID", "HOST", "HOSTID", "QUEUES"]);
    let mut all = Vec::new();
    for nqn in names(client, nqn)? {
        let mut found = client.call("nvmf_subsystem_get_controllers", json!({ "nqn": nqn }))?;
        for controller in items(&found) {
            table.row([
                nqn.clone(),
                cell(&controller["cntlid"]),
                cell(&controller["hostnqn"]),
                cell(&controller["hostid"]),
                cell(&controller["num_io_qpairs"]),
            ]);
        }
        for controller in found.as_array_mut().into_iter().flatten() {
            controller["nqn"] = nqn.clone().into();
            all.push(controller.take());
        }
    }
    Ok(Output::Listed(Value::Array(all), table))
}

/// `nvmfctl queues`.
pub fn queues(client: &BlockingClient, nqn: Option<&str>) -> Result<Output, Error> {
    let mut table = Table::new(&["NQN", "CNTLID", "QID", "THREAD", "HOST", "FROM", "TO"]);
    let mut all = Vec::new();
    for nqn in names(client, nqn)? {
        let mut found = client.call("nvmf_subsystem_get_qpairs", json!({ "nqn": nqn }))?;
        for queue in items(&found) {
            table.row([
                nqn.clone(),
                cell(&queue["cntlid"]),
                cell(&queue["qid"]),
                cell(&queue["thread"]),
                cell(&queue["hostnqn"]),
                address(&queue["peer_address"]),
                address(&queue["listen_address"]),
            ]);
        }
        for queue in found.as_array_mut().into_iter().flatten() {
            queue["nqn"] = nqn.clone().into();
            all.push(queue.take());
        }
    }
    Ok(Output::Listed(Value::Array(all), table))
}

/// `nvmfctl bdev list`.
pub fn bdevs(client: &BlockingClient) -> Result<Output, Error> {
    let all = client.call("bdev_get_bdevs", Value::Null)?;
    let mut table = Table::new(&["NAME", "KIND", "SIZE", "BLOCK", "OWNER", "USED", "FILE"]);
    for bdev in items(&all) {
        let number = |key: &str| bdev[key].as_u64().unwrap_or(0);
        let specific = &bdev["driver_specific"];
        let modules = specific.as_object().into_iter().flatten();
        let file = modules.map(|(_, module)| &module["filename"]);
        let file = file.filter(|file| !file.is_null()).map(cell).next();
        table.row([
            cell(&bdev["name"]),
            cell(&bdev["product_name"]),
            size::show(number("block_size") * number("num_blocks")),
            cell(&bdev["block_size"]),
            cell(&specific["owner"]),
            if bdev["claimed"] == true { "yes" } else { "no" }.to_owned(),
            file.unwrap_or_default(),
        ]);
    }
    Ok(Output::Listed(all, table))
}
