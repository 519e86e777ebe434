//! Subsystems and their namespaces.

use std::rc::Rc;

use nvmf_rpc::RpcError;
use nvmf_rpc::error::code;
use nvmf_rpc::types::ListenAddress;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::bdevs::check_uuid;
use super::{OneSubsystem, address, bdev_list, check_target, register, unsupported};
use crate::api::Methods;
use crate::api::manager::{Manager, parse_subsystem};
use crate::api::state::{NamespaceRecord, State, SubsystemRecord};
use crate::config::file::{DEFAULT_MODEL, MODEL_CHARS};
use crate::config::identity::SERIAL_CHARS;
use crate::config::{limits, rules};
use crate::control::live::{self, LiveError, Owner};
use crate::control::target::{Served, Target};
use crate::model::{HostAccess, Nqn};
use nvme_proto::wire::Cntlid;

pub(super) fn register(methods: &mut Methods, manager: &Rc<Manager>) {
    register!(methods, manager:
        "nvmf_get_subsystems" => get_subsystems,
        "nvmf_create_subsystem" => create_subsystem,
        "nvmf_delete_subsystem" => delete_subsystem,
        "nvmf_subsystem_add_ns" => add_ns,
        "nvmf_subsystem_remove_ns" => remove_ns,
    );
}

/// The subsystem's place in the state, if it is the API's; otherwise whose it is.
pub(super) fn find(manager: &Manager, state: &State, nqn: &str) -> Result<usize, RpcError> {
    if let Some(index) = state.subsystems.iter().position(|s| s.nqn == nqn) {
        return Ok(index);
    }
    Err(served(&manager.target, nqn)?
        .map_or_else(LiveError::NoSubsystem, |served| LiveError::NotOwner {
            nqn: served.info.nqn.clone(),
            owner: served.owner,
        })
        .into())
}

/// The subsystem that is served under this name, or the name as it was understood.
fn served(target: &Target, nqn: &str) -> Result<Result<Rc<Served>, Nqn>, RpcError> {
    let parsed: Nqn = nqn
        .parse()
        .map_err(|error| RpcError::invalid(format!("nqn {nqn:?}: {error}")))?;
    if parsed.is_discovery() {
        return Ok(Ok(Rc::clone(&target.discovery)));
    }
    Ok(target.find(&parsed).ok_or(parsed))
}

/// The subsystem that a reader asks about.
pub(super) fn reading(manager: &Manager, params: &OneSubsystem) -> Result<Rc<Served>, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let found = served(&manager.target, &params.nqn)?;
    Ok(found.map_err(LiveError::NoSubsystem)?)
}

/// Where hosts may connect to a subsystem.
pub(super) fn listen_addresses(target: &Target, served: &Served) -> Vec<ListenAddress> {
    let open = target.listeners.ports();
    let ports = served.ports.borrow().among(&open);
    let addresses = ports.iter().map(|port| address::describe(port.at()));
    addresses.collect()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GetSubsystems {
    nqn: Option<String>,
    tgt_name: Option<String>,
}

async fn get_subsystems(manager: Rc<Manager>, params: GetSubsystems) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let target = &manager.target;
    let all = match &params.nqn {
        Some(nqn) => vec![served(target, nqn)?.map_err(|nqn| {
            // The code is SPDK's.
            RpcError::new(code::NO_DEVICE, LiveError::NoSubsystem(nqn).to_string())
        })?],
        None => {
            let mut all = vec![Rc::clone(&target.discovery)];
            all.extend(target.subsystems());
            all
        }
    };
    Ok(all
        .iter()
        .map(|served| describe(&manager, served))
        .collect())
}

fn describe(manager: &Manager, served: &Rc<Served>) -> Value {
    let target = &manager.target;
    let subsystem = served.subsystem.borrow();
    if target.is_discovery(served) {
        return json!({
            "nqn": subsystem.nqn.as_str(), "subtype": "Discovery", "listen_addresses": [],
            "allow_any_host": true, "hosts": [],
        });
    }
    let state = manager.state();
    let record = state
        .subsystems
        .iter()
        .find(|record| served.owner == Owner::Api && record.nqn == subsystem.nqn.as_str());
    let (any, hosts): (bool, Vec<Value>) = match (record, &subsystem.hosts) {
        (Some(record), _) => {
            let hosts = record.hosts.iter().map(|host| json!({ "nqn": host }));
            (record.allow_any_host, hosts.collect())
        }
        (None, HostAccess::Any) => (true, Vec::new()),
        (None, HostAccess::Only(hosts)) => {
            let hosts = hosts.iter().map(|host| json!({ "nqn": host.as_str() }));
            (false, hosts.collect())
        }
    };
    let max_namespaces = record.map_or(*limits::NSID.end() as u32, |r| r.max_namespaces);
    let namespaces = subsystem.namespaces.iter().map(|namespace| {
        let bdev = bdev_list::name_of(manager, served, namespace);
        let mut value = json!({
            "nsid": namespace.nsid.0, "bdev_name": bdev, "name": bdev,
            "nguid": hex(&namespace.ids.nguid), "uuid": namespace.ids.uuid.to_string(),
        });
        if namespace.ids.eui64 != [0; 8] {
            value["eui64"] = hex(&namespace.ids.eui64).into();
        }
        value
    });
    json!({
        "nqn": subsystem.nqn.as_str(),
        "subtype": "NVMe",
        "listen_addresses": listen_addresses(target, served),
        "allow_any_host": any,
        "hosts": hosts,
        "serial_number": subsystem.serial,
        "model_number": subsystem.model,
        "max_namespaces": max_namespaces,
        "min_cntlid": 1,
        "max_cntlid": Cntlid::MAX.0,
        "namespaces": namespaces.collect::<Vec<_>>(),
    })
}

/// SPDK writes identifiers in capitals.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateSubsystem {
    nqn: String,
    serial_number: Option<String>,
    model_number: Option<String>,
    tgt_name: Option<String>,
    max_namespaces: Option<u32>,
    #[serde(default)]
    allow_any_host: bool,
    #[serde(default)]
    ana_reporting: bool,
    min_cntlid: Option<u16>,
    max_cntlid: Option<u16>,
    max_discard_size_kib: Option<u64>,
    max_write_zeroes_size_kib: Option<u64>,
    dmrsl: Option<u64>,
    wzsl: Option<u64>,
    #[serde(default)]
    passthrough: bool,
    #[serde(default)]
    enable_nssr: bool,
}

async fn create_subsystem(manager: Rc<Manager>, params: CreateSubsystem) -> Result<bool, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    unsupported(params.ana_reporting, "ana_reporting")?;
    let cntlids = (
        params.min_cntlid.unwrap_or(1),
        params.max_cntlid.unwrap_or(Cntlid::MAX.0),
    );
    unsupported(cntlids != (1, Cntlid::MAX.0), "a range of cntlids")?;
    for (size, option) in [
        (params.max_discard_size_kib, "max_discard_size_kib"),
        (
            params.max_write_zeroes_size_kib,
            "max_write_zeroes_size_kib",
        ),
        (params.dmrsl, "dmrsl"),
        (params.wzsl, "wzsl"),
    ] {
        unsupported(size.is_some_and(|size| size != 0), option)?;
    }
    unsupported(params.passthrough, "passthrough")?;
    unsupported(params.enable_nssr, "enable_nssr")?;
    parse_subsystem(&params.nqn)?;
    // SPDK takes an empty text for none.
    let serial = params.serial_number.filter(|serial| !serial.is_empty());
    if let Some(serial) = &serial {
        rules::check_identify_text(serial, SERIAL_CHARS)
            .map_err(|error| RpcError::invalid(format!("serial_number {error}")))?;
    }
    let model = params
        .model_number
        .unwrap_or_else(|| DEFAULT_MODEL.to_owned());
    rules::check_identify_text(&model, MODEL_CHARS)
        .map_err(|error| RpcError::invalid(format!("model_number {error}")))?;
    let most = *limits::NSID.end() as u32;
    let max_namespaces = match params.max_namespaces {
        None | Some(0) => most,
        Some(asked) if asked <= most => asked,
        Some(asked) => {
            return Err(RpcError::invalid(format!(
                "max_namespaces is {asked}; a subsystem holds at most {most}"
            )));
        }
    };
    let record = SubsystemRecord {
        nqn: params.nqn,
        serial,
        model,
        max_namespaces,
        allow_any_host: params.allow_any_host,
        hosts: Default::default(),
        listeners: Default::default(),
        namespaces: Vec::new(),
    };
    let change = manager.begin().await;
    let mut after = manager.state().clone();
    if after.subsystems.iter().any(|there| there.nqn == record.nqn) {
        let message = format!("there is a subsystem {} already", record.nqn);
        return Err(RpcError::exists(message, json!({ "nqn": record.nqn })));
    }
    let same_serial = |served: &Rc<Served>| {
        let served = served.subsystem.borrow();
        record.serial.as_ref() == Some(&served.serial)
    };
    if let Some(other) = manager.target.subsystems().into_iter().find(same_serial) {
        let message = format!(
            "the serial number belongs to {} already; give each its own, hosts take two with one for the same",
            other.info.nqn
        );
        return Err(RpcError::exists(message, Value::Null));
    }
    after.subsystems.push(record.clone());
    let add = async { manager.add_subsystem(&record).await.map(drop) };
    manager.commit(&change, after, add).await?;
    Ok(true)
}

async fn delete_subsystem(manager: Rc<Manager>, params: OneSubsystem) -> Result<bool, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let change = manager.begin().await;
    let mut after = manager.state().clone();
    after
        .subsystems
        .remove(find(&manager, &after, &params.nqn)?);
    let nqn = parse_subsystem(&params.nqn)?;
    let remove = async {
        match live::remove_subsystem(&manager.target, Owner::Api, &nqn).await {
            // It could not be brought back at start; now it is forgotten.
            Err(LiveError::NoSubsystem(_)) => Ok(()),
            outcome => Ok(outcome?),
        }
    };
    manager.commit(&change, after, remove).await?;
    manager.target.listeners.settle(&manager.target).await;
    Ok(true)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddNs {
    nqn: String,
    namespace: GivenNamespace,
    tgt_name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenNamespace {
    bdev_name: String,
    nsid: Option<u32>,
    nguid: Option<String>,
    eui64: Option<String>,
    uuid: Option<Uuid>,
    ptpl_file: Option<String>,
    anagrpid: Option<u32>,
    #[serde(default)]
    no_auto_visible: bool,
    /// There is no metadata to hide.
    #[serde(default, rename = "hide_metadata")]
    _hide_metadata: bool,
}

async fn add_ns(manager: Rc<Manager>, params: AddNs) -> Result<u32, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let given = params.namespace;
    unsupported(
        given.ptpl_file.is_some(),
        "ptpl_file (reservations that outlive power)",
    )?;
    unsupported(given.anagrpid.is_some_and(|group| group != 0), "anagrpid")?;
    unsupported(given.no_auto_visible, "no_auto_visible")?;
    let nguid = given.nguid.as_deref().map(|text| identifier("nguid", text));
    let eui64 = given.eui64.as_deref().map(|text| identifier("eui64", text));
    let change = manager.begin().await;
    let mut after = manager.state().clone();
    let subsystem = &after.subsystems[find(&manager, &after, &params.nqn)?];
    let name = &given.bdev_name;
    let bdev = manager
        .bdev(name)
        .map_err(|_| bdev_list::not_ours(&manager, name))?;
    let name = &bdev.record.name;
    for other in &after.subsystems {
        if let Some(user) = other.namespaces.iter().find(|n| n.bdev == *name) {
            return Err(RpcError::busy(format!(
                "the bdev {name} is namespace {} of {} already; give each namespace its own",
                user.nsid, other.nqn
            )));
        }
    }
    if let Some(uuid) = given.uuid.filter(|uuid| *uuid != bdev.uuid) {
        check_uuid(&manager, uuid)?;
    }
    let nsid = choose_nsid(subsystem, given.nsid.unwrap_or(0))?;
    let record = NamespaceRecord {
        nsid,
        bdev: name.clone(),
        uuid: given.uuid,
        nguid: nguid.transpose()?,
        eui64: eui64.transpose()?,
    };
    let nqn = parse_subsystem(&params.nqn)?;
    let index = find(&manager, &after, &params.nqn)?;
    after.subsystems[index].namespaces.push(record.clone());
    let add = manager.add_namespace(&nqn, &record);
    manager.commit(&change, after, add).await?;
    Ok(nsid)
}

/// The NSID that was asked for, or the first free one for 0.
fn choose_nsid(subsystem: &SubsystemRecord, asked: u32) -> Result<u32, RpcError> {
    let taken = |nsid: &u32| subsystem.namespaces.iter().any(|n| n.nsid == *nsid);
    let most = subsystem.max_namespaces;
    if asked == 0 {
        return (1..=most).find(|nsid| !taken(nsid)).ok_or_else(|| {
            RpcError::no_space(format!("the subsystem holds {most} namespaces, no more"))
        });
    }
    if asked > most {
        return Err(RpcError::invalid(format!(
            "{asked} is no NSID of this subsystem; choose 1 to {most}"
        )));
    }
    if taken(&asked) {
        let message = format!("the subsystem has a namespace {asked} already");
        return Err(RpcError::exists(message, json!({ "nsid": asked })));
    }
    Ok(asked)
}

fn identifier<const N: usize>(key: &str, text: &str) -> Result<[u8; N], RpcError> {
    let digits = text.as_bytes();
    let mut bytes = [0; N];
    let well_formed = digits.len() == 2 * N && digits.iter().all(u8::is_ascii_hexdigit);
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16).unwrap_or(0) as u8;
        *byte = digit(pair[0]) << 4 | digit(pair[1]);
    }
    if well_formed && bytes != [0; N] {
        return Ok(bytes);
    }
    Err(RpcError::invalid(format!(
        "{key} {text:?}: write {} hexadecimal digits, not all zeroes",
        2 * N
    )))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveNs {
    nqn: String,
    nsid: u32,
    tgt_name: Option<String>,
}

async fn remove_ns(manager: Rc<Manager>, params: RemoveNs) -> Result<bool, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let change = manager.begin().await;
    let mut after = manager.state().clone();
    let index = find(&manager, &after, &params.nqn)?;
    let namespaces = &mut after.subsystems[index].namespaces;
    let nqn = parse_subsystem(&params.nqn)?;
    let nsid = params.nsid;
    let Some(at) = namespaces.iter().position(|n| n.nsid == nsid) else {
        return Err(LiveError::NoNamespace { nqn, nsid }.into());
    };
    namespaces.remove(at);
    let remove = async {
        match live::remove_namespace(&manager.target, Owner::Api, &nqn, nsid).await {
            // It could not be brought back at start; now it is forgotten.
            Err(LiveError::NoNamespace { .. } | LiveError::NoSubsystem(_)) => Ok(()),
            outcome => Ok(outcome?),
        }
    };
    manager.commit(&change, after, remove).await?;
    Ok(true)
}
