//! Commands about subsystems, namespaces, hosts, listeners and block devices.

use std::io::Read;

use nvmf_rpc::{BlockingClient, ClientError};
use serde_json::{Map, Value, json};

use crate::Output;
use crate::cli::{Bdev, CreateBdev, Host, ListenAt, Listener, Namespace, Sized, Subsystem};
use crate::error::Error;
use crate::lists;
use crate::size;

const MEBIBYTE: u64 = 1 << 20;

/// Calls a method without the parameters that are null, and says `done`.
fn call(
    client: &BlockingClient,
    method: &str,
    params: Value,
    done: impl FnOnce(&Value) -> String,
) -> Result<Output, Error> {
    let result = client.call(method, without_nulls(params));
    let result = result.map_err(called_by_flags)?;
    let line = done(&result);
    Ok(Output::Done(result, line))
}

/// Parameters that refusals begin with, and the flags that they are given by.
const FLAGS: [(&str, &str); 5] = [
    ("serial_number", "--serial"),
    ("model_number", "--model"),
    ("max_namespaces", "--max-namespaces"),
    ("nguid", "--nguid"),
    ("eui64", "--eui64"),
];

/// A refusal as the command line would say it.
fn called_by_flags(mut error: ClientError) -> ClientError {
    if let ClientError::Refused { error, .. } = &mut error
        && let Some((name, rest)) = error.message.split_once(' ')
        && let Some((_, flag)) = FLAGS.iter().find(|(parameter, _)| *parameter == name)
    {
        error.message = format!("{flag} {rest}");
    }
    error
}

fn without_nulls(params: Value) -> Value {
    match params {
        Value::Object(fields) => {
            let given = fields.into_iter().filter(|(_, value)| !value.is_null());
            let given = given.map(|(key, value)| (key, without_nulls(value)));
            Value::Object(given.collect::<Map<_, _>>())
        }
        other => other,
    }
}

/// `nvmfctl subsystem`.
pub fn subsystem(client: &BlockingClient, command: &Subsystem) -> Result<Output, Error> {
    match command {
        Subsystem::List => lists::subsystems(client),
        Subsystem::Create {
            nqn,
            serial,
            model,
            max_namespaces,
            any_host,
        } => call(
            client,
            "nvmf_create_subsystem",
            json!({
                "nqn": nqn, "serial_number": serial, "model_number": model,
                "max_namespaces": max_namespaces, "allow_any_host": any_host,
            }),
            |_| format!("{nqn} made; add a listener for hosts to connect"),
        ),
        Subsystem::Delete { nqn } => {
            let done = |_: &Value| format!("{nqn} removed");
            call(client, "nvmf_delete_subsystem", json!({ "nqn": nqn }), done)
        }
    }
}

/// `nvmfctl namespace`.
pub fn namespace(client: &BlockingClient, command: &Namespace) -> Result<Output, Error> {
    match command {
        Namespace::List { nqn } => lists::namespaces(client, nqn.as_deref()),
        Namespace::Add {
            nqn,
            bdev,
            nsid,
            uuid,
            nguid,
            eui64,
        } => call(
            client,
            "nvmf_subsystem_add_ns",
            json!({ "nqn": nqn, "namespace": {
                "bdev_name": bdev, "nsid": nsid, "uuid": uuid, "nguid": nguid, "eui64": eui64,
            }}),
            |nsid| format!("{bdev} is namespace {nsid} of {nqn}"),
        ),
        Namespace::Remove { nqn, nsid } => call(
            client,
            "nvmf_subsystem_remove_ns",
            json!({ "nqn": nqn, "nsid": nsid }),
            |_| format!("namespace {nsid} of {nqn} removed"),
        ),
    }
}

/// `nvmfctl host`.
pub fn host(client: &BlockingClient, command: &Host) -> Result<Output, Error> {
    match command {
        Host::List { nqn } => lists::hosts(client, nqn),
        Host::Add { nqn, host } => call(
            client,
            "nvmf_subsystem_add_host",
            json!({ "nqn": nqn, "host": host }),
            |_| format!("{host} may connect to {nqn}"),
        ),
        Host::Remove { nqn, host } => call(
            client,
            "nvmf_subsystem_remove_host",
            json!({ "nqn": nqn, "host": host }),
            |_| format!("{host} is gone from {nqn}"),
        ),
        Host::Any { nqn, on } => call(
            client,
            "nvmf_subsystem_allow_any_host",
            json!({ "nqn": nqn, "allow_any_host": on }),
            |_| match on {
                true => format!("any host may connect to {nqn}"),
                false => format!("only listed hosts may connect to {nqn}"),
            },
        ),
    }
}

/// `nvmfctl listener`.
pub fn listener(client: &BlockingClient, command: &Listener) -> Result<Output, Error> {
    let params = |nqn: &str, at: &ListenAt| {
        let socket = at.socket;
        json!({ "nqn": nqn, "listen_address": {
            "trtype": at.trtype, "adrfam": if socket.is_ipv4() { "IPv4" } else { "IPv6" },
            "traddr": socket.ip().to_string(), "trsvcid": socket.port().to_string(),
        }})
    };
    match command {
        Listener::List { nqn } => lists::listeners(client, nqn),
        Listener::Add { nqn, address } => call(
            client,
            "nvmf_subsystem_add_listener",
            params(nqn, address),
            |_| format!("{nqn} is served at {address}"),
        ),
        Listener::Remove { nqn, address } => call(
            client,
            "nvmf_subsystem_remove_listener",
            params(nqn, address),
            |_| format!("{nqn} is not served at {address} any more"),
        ),
    }
}

/// `nvmfctl bdev`.
pub fn bdev(client: &BlockingClient, command: &Bdev) -> Result<Output, Error> {
    match command {
        Bdev::List => lists::bdevs(client),
        Bdev::Create(CreateBdev::Memory(sized)) => create(client, "bdev_malloc_create", sized),
        Bdev::Create(CreateBdev::Null(sized)) => create(client, "bdev_null_create", sized),
        Bdev::Create(CreateBdev::File {
            name,
            path,
            block_size,
            read_only,
            uuid,
        }) => call(
            client,
            "bdev_uring_create",
            json!({
                "name": name, "filename": std::path::absolute(path)?, "block_size": block_size,
                "readonly": read_only.then_some(true), "uuid": uuid,
            }),
            |_| format!("{name} made"),
        ),
        Bdev::Delete { name } => {
            let method = format!("bdev_{}_delete", module_of(client, name)?);
            call(client, &method, json!({ "name": name }), |_| {
                format!("{name} removed")
            })
        }
        Bdev::Rescan { name } => {
            let method = format!("bdev_{}_rescan", module_of(client, name)?);
            call(client, &method, json!({ "name": name }), |_| {
                format!("{name} looked at")
            })
        }
        Bdev::Resize { name, size } => {
            if !size.is_multiple_of(MEBIBYTE) {
                let message = "the size is no whole number of MiB, which is what the API counts in";
                return Err(Error::Usage(message.to_owned()));
            }
            call(
                client,
                "bdev_null_resize",
                json!({ "name": name, "new_size": size / MEBIBYTE }),
                |_| format!("{name} has {}", size::show(*size)),
            )
        }
    }
}

fn create(client: &BlockingClient, method: &str, sized: &Sized) -> Result<Output, Error> {
    let block = u64::from(sized.block_size.max(1));
    if !sized.size.is_multiple_of(block) {
        return Err(Error::Usage(format!(
            "{} bytes are no whole number of blocks of {block}",
            sized.size
        )));
    }
    let params = json!({
        "name": sized.name, "num_blocks": sized.size / block, "block_size": sized.block_size,
        "uuid": sized.uuid,
    });
    call(client, method, params, |name| {
        format!("{} made", name.as_str().unwrap_or(&sized.name))
    })
}

/// The module of SPDK whose methods know the block device.
fn module_of(client: &BlockingClient, name: &str) -> Result<&'static str, Error> {
    let found = client.call("bdev_get_bdevs", json!({ "name": name }))?;
    match found[0]["product_name"].as_str() {
        Some("Malloc disk") => Ok("malloc"),
        Some("Null disk") => Ok("null"),
        Some("AIO disk") => Ok("aio"),
        Some("URING bdev") => Ok("uring"),
        other => Err(Error::Usage(format!(
            "{name} is of a kind that is not known: {other:?}"
        ))),
    }
}

/// `nvmfctl rpc`.
pub fn raw(client: &BlockingClient, method: &str, params: Option<&str>) -> Result<Output, Error> {
    let text = match params {
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
        }
        Some(text) => text.to_owned(),
        None => String::new(),
    };
    let params = match text.trim() {
        "" => Value::Null,
        text => serde_json::from_str(text)
            .map_err(|error| Error::Usage(format!("the parameters are no JSON: {error}")))?,
    };
    if !params.is_object() && !params.is_null() {
        return Err(Error::Usage("the parameters are no JSON object".to_owned()));
    }
    Ok(Output::Raw(client.call(method, params)?))
}

/// `nvmfctl version`.
pub fn version(client: &BlockingClient) -> Result<Output, Error> {
    call(client, "spdk_get_version", Value::Null, |version| {
        version["version"].as_str().unwrap_or_default().to_owned()
    })
}
