//! Who may connect to a subsystem.

use std::rc::Rc;

use nvmf_rpc::RpcError;
use serde::Deserialize;
use serde_json::json;

use super::subsystems::find;
use super::{check_target, register, unsupported};
use crate::api::Methods;
use crate::api::manager::{Manager, hosts_of, parse_host, parse_subsystem};
use crate::api::state::SubsystemRecord;
use crate::control::live::{self, LiveError, Owner};

pub(super) fn register(methods: &mut Methods, manager: &Rc<Manager>) {
    register!(methods, manager:
        "nvmf_subsystem_add_host" => add_host,
        "nvmf_subsystem_remove_host" => remove_host,
        "nvmf_subsystem_allow_any_host" => allow_any_host,
    );
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddHost {
    nqn: String,
    host: String,
    tgt_name: Option<String>,
    psk: Option<String>,
    dhchap_key: Option<String>,
    dhchap_ctrlr_key: Option<String>,
}

async fn add_host(manager: Rc<Manager>, params: AddHost) -> Result<bool, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    unsupported(params.psk.is_some(), "psk (TLS)")?;
    let keys = params.dhchap_key.is_some() || params.dhchap_ctrlr_key.is_some();
    unsupported(keys, "dhchap_key (authentication)")?;
    parse_host(&params.host)?;
    change(&manager, &params.nqn, |subsystem| {
        if subsystem.hosts.insert(params.host.clone()) {
            return Ok(());
        }
        let message = format!("{} may connect to {} already", params.host, subsystem.nqn);
        Err(RpcError::exists(message, json!({ "nqn": params.host })))
    })
    .await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveHost {
    nqn: String,
    host: String,
    tgt_name: Option<String>,
    /// SPDK gives up after this long; here the answer always means that the host is gone, so it is waited for.
    #[serde(rename = "timeout_ms")]
    _timeout_ms: Option<u64>,
}

async fn remove_host(manager: Rc<Manager>, params: RemoveHost) -> Result<bool, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    change(&manager, &params.nqn, |subsystem| {
        if subsystem.hosts.remove(&params.host) {
            return Ok(());
        }
        let message = format!("{} is not in the list of {}", params.host, subsystem.nqn);
        Err(RpcError::not_found(message))
    })
    .await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AllowAnyHost {
    nqn: String,
    allow_any_host: bool,
    tgt_name: Option<String>,
}

async fn allow_any_host(manager: Rc<Manager>, params: AllowAnyHost) -> Result<bool, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    change(&manager, &params.nqn, |subsystem| {
        subsystem.allow_any_host = params.allow_any_host;
        Ok(())
    })
    .await
}

/// Changes who may connect. Returns once whoever may not any more is gone and has written its last.
async fn change(
    manager: &Rc<Manager>,
    nqn: &str,
    edit: impl FnOnce(&mut SubsystemRecord) -> Result<(), RpcError>,
) -> Result<bool, RpcError> {
    let changed = {
        let change = manager.begin().await;
        let mut after = manager.state().clone();
        let index = find(manager, &after, nqn)?;
        edit(&mut after.subsystems[index])?;
        let hosts = hosts_of(&after.subsystems[index])?;
        let nqn = parse_subsystem(nqn)?;
        let apply = async {
            match live::admit(&manager.target, Owner::Api, &nqn, hosts).await {
                Ok(served) => Ok(Some(served)),
                // It could not be brought back at start; it is changed for the next one.
                Err(LiveError::NoSubsystem(_)) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        manager.commit(&change, after, apply).await?
    };
    // Outside of the change: a host with writes on slow storage must not hold up others.
    if let Some(served) = changed {
        live::fence_strangers(&served).await;
    }
    Ok(true)
}
