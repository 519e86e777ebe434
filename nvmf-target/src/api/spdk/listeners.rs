//! Where hosts may connect to a subsystem. One that the API made is served only where it was told to be.

use std::rc::Rc;

use nvmf_rpc::RpcError;
use serde::Deserialize;
use serde_json::{Value, json};

use super::address::{self, GivenAddress};
use super::subsystems::{find, reading};
use super::{OneSubsystem, check_target, register, unsupported};
use crate::api::Methods;
use crate::api::manager::{Manager, parse_subsystem, ports_of};
use crate::api::state::State;
use crate::control::association::{Association, EndReason};
use crate::control::discovery::Port;
use crate::control::listeners;
use crate::control::live::{self, LiveError, Owner};

pub(super) fn register(methods: &mut Methods, manager: &Rc<Manager>) {
    register!(methods, manager:
        "nvmf_subsystem_add_listener" => add_listener,
        "nvmf_subsystem_remove_listener" => remove_listener,
        "nvmf_subsystem_get_listeners" => get_listeners,
    );
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddListener {
    nqn: String,
    listen_address: GivenAddress,
    tgt_name: Option<String>,
    #[serde(default)]
    secure_channel: bool,
    ana_state: Option<String>,
    /// Which socket library SPDK uses.
    #[serde(rename = "sock_impl")]
    _sock_impl: Option<String>,
}

async fn add_listener(manager: Rc<Manager>, params: AddListener) -> Result<bool, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    unsupported(params.secure_channel, "secure_channel (TLS)")?;
    let ana = params.ana_state.is_some_and(|state| state != "optimized");
    unsupported(ana, "an ana_state other than optimized")?;
    let given = params.listen_address.complete()?;
    let address = address::parse(&given)?;
    let change = manager.begin().await;
    let mut after = manager.state().clone();
    let index = find(&manager, &after, &params.nqn)?;
    if !after.subsystems[index].listeners.insert(given.clone()) {
        let message = format!("{} is served at {address} already", params.nqn);
        return Err(RpcError::exists(message, json!(given)));
    }
    let target = &manager.target;
    // Before it is written down: a port that cannot be had is no part of the state.
    let bound = match target.listeners.covers(address) {
        true => None,
        false => {
            let bound = listeners::bind_one(&target.rdma, address);
            Some(bound.map_err(|error| RpcError::system("listen_address", &error))?)
        }
    };
    // Started first, so that discovery tells of it as soon as the subsystem is served there.
    if let Some(bound) = bound {
        target.listeners.start(target, address, bound, false);
    }
    let applied = apply(&manager, &change, after, index).await;
    if applied.is_err() {
        target.listeners.settle(target).await;
    }
    applied.map(|()| true)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveListener {
    nqn: String,
    listen_address: GivenAddress,
    tgt_name: Option<String>,
}

async fn remove_listener(manager: Rc<Manager>, params: RemoveListener) -> Result<bool, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let given = params.listen_address.complete()?;
    let change = manager.begin().await;
    let mut after = manager.state().clone();
    let index = find(&manager, &after, &params.nqn)?;
    if !after.subsystems[index].listeners.remove(&given) {
        let address = address::parse(&given)?;
        let message = format!("{} is not served at {address}", params.nqn);
        return Err(RpcError::not_found(message));
    }
    apply(&manager, &change, after, index).await?;
    let target = &manager.target;
    target.listeners.settle(target).await;
    drop(change);
    // As SPDK does: whoever came that way is cut off.
    if let Some(served) = target.find(&parse_subsystem(&params.nqn)?) {
        let ports = served.ports.borrow().clone();
        let open = target.listeners.ports();
        let gone = |association: &Association| !ports.allow(association.local(), &open);
        served.end_where(gone, EndReason::NotAllowed).await;
    }
    Ok(true)
}

async fn apply(
    manager: &Rc<Manager>,
    change: &crate::api::manager::Change<'_>,
    after: State,
    index: usize,
) -> Result<(), RpcError> {
    let record = &after.subsystems[index];
    let (nqn, ports) = (parse_subsystem(&record.nqn)?, ports_of(record)?);
    let set = async {
        match live::set_ports(&manager.target, Owner::Api, &nqn, ports).await {
            // It could not be brought back at start; it is changed for the next one.
            Err(LiveError::NoSubsystem(_)) => Ok(()),
            outcome => Ok(outcome?),
        }
    };
    manager.commit(change, after, set).await
}

async fn get_listeners(manager: Rc<Manager>, params: OneSubsystem) -> Result<Value, RpcError> {
    let served = reading(&manager, &params)?;
    let listeners = &manager.target.listeners;
    let ports = served.ports.borrow().among(&listeners.ports());
    let describe = |port: &Port| {
        let mut listener = json!({ "address": address::describe(port.at()) });
        let waits_for = listeners.waits_for(port.id);
        listener["listening"] = waits_for.is_none().into();
        if let Some(why) = waits_for {
            listener["reason"] = why.into();
        }
        listener
    };
    Ok(ports.iter().map(describe).collect())
}
