//! Making and removing block devices.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use nvmf_rpc::RpcError;
use serde::Deserialize;
use uuid::Uuid;

use super::{bdev_list, register, unsupported};
use crate::api::Methods;
use crate::api::bdev::Wanted;
use crate::api::manager::{Manager, parse_subsystem};
use crate::api::state::{BdevKind, State};
use crate::config::rules;
use crate::control::live::{self, Owner};

/// More than any name that makes sense, less than would make lists unreadable.
const MAX_NAME_BYTES: usize = 256;
/// `bdev_null_resize` counts in these.
const MEBIBYTE: u64 = 1 << 20;

pub(super) fn register(methods: &mut Methods, manager: &Rc<Manager>) {
    register!(methods, manager:
        "bdev_malloc_create" => |m, p| create_sized(m, p, BdevKind::Malloc),
        "bdev_null_create" => |m, p| create_sized(m, p, BdevKind::Null),
        "bdev_aio_create" => |m, p| create_stored(m, p, BdevKind::Aio),
        "bdev_uring_create" => |m, p| create_stored(m, p, BdevKind::Uring),
        "bdev_malloc_delete" => |m, p| delete(m, p, BdevKind::Malloc),
        "bdev_null_delete" => |m, p| delete(m, p, BdevKind::Null),
        "bdev_aio_delete" => |m, p| delete(m, p, BdevKind::Aio),
        "bdev_uring_delete" => |m, p| delete(m, p, BdevKind::Uring),
        "bdev_aio_rescan" => |m, p| rescan(m, p, BdevKind::Aio),
        "bdev_uring_rescan" => |m, p| rescan(m, p, BdevKind::Uring),
        "bdev_null_resize" => null_resize,
    );
}

/// `bdev_malloc_create`, `bdev_null_create`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateSized {
    name: Option<String>,
    num_blocks: u64,
    block_size: u64,
    #[serde(rename = "physical_block_size")]
    _physical_block_size: Option<u64>,
    uuid: Option<Uuid>,
    #[serde(rename = "optimal_io_boundary")]
    _optimal_io_boundary: Option<u64>,
    #[serde(rename = "numa_id")]
    _numa_id: Option<i64>,
    md_size: Option<u64>,
    dif_type: Option<u64>,
    #[serde(rename = "md_interleave")]
    _md_interleave: Option<bool>,
    #[serde(rename = "dif_is_head_of_md")]
    _dif_is_head_of_md: Option<bool>,
    #[serde(rename = "dif_pi_format")]
    _dif_pi_format: Option<u64>,
    preferred_write_alignment: Option<u64>,
    preferred_write_granularity: Option<u64>,
}

async fn create_sized(
    manager: Rc<Manager>,
    params: CreateSized,
    kind: BdevKind,
) -> Result<String, RpcError> {
    unsupported(params.md_size.is_some_and(|size| size != 0), "md_size")?;
    unsupported(params.dif_type.is_some_and(|kind| kind != 0), "dif_type")?;
    let preferred = [
        params.preferred_write_alignment,
        params.preferred_write_granularity,
    ];
    unsupported(
        preferred.iter().flatten().any(|blocks| *blocks != 0),
        "preferred_write_*",
    )?;
    let block_bytes = check(rules::check_block_size(params.block_size))?;
    let size_bytes = params.num_blocks.checked_mul(u64::from(block_bytes));
    let size_bytes = size_bytes.unwrap_or(u64::MAX);
    check(rules::check_size(size_bytes))?;
    let wanted = Wanted {
        name: params.name.unwrap_or_default(),
        kind,
        path: None,
        size_bytes: Some(size_bytes),
        block_bytes: Some(block_bytes),
        read_only: false,
        uuid: params.uuid,
    };
    create(&manager, wanted).await
}

/// `bdev_aio_create`, `bdev_uring_create`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateStored {
    name: String,
    filename: PathBuf,
    block_size: Option<u64>,
    #[serde(default)]
    readonly: bool,
    /// Unmap and write zeroes are always passed on where the storage can do it.
    #[serde(default, rename = "fallocate")]
    _fallocate: bool,
    uuid: Option<Uuid>,
}

async fn create_stored(
    manager: Rc<Manager>,
    params: CreateStored,
    kind: BdevKind,
) -> Result<String, RpcError> {
    if !params.filename.is_absolute() {
        return Err(RpcError::invalid(format!(
            "filename {} depends on where the target was started; write an absolute path",
            params.filename.display()
        )));
    }
    let block_bytes = match params.block_size {
        // SPDK's way of leaving it to the device.
        None | Some(0) => None,
        Some(bytes) => Some(check(rules::check_block_size(bytes))?),
    };
    let wanted = Wanted {
        name: params.name,
        kind,
        path: Some(params.filename),
        size_bytes: None,
        block_bytes,
        read_only: params.readonly,
        uuid: params.uuid,
    };
    create(&manager, wanted).await
}

fn check<T>(judged: Result<T, String>) -> Result<T, RpcError> {
    judged.map_err(RpcError::invalid)
}

async fn create(manager: &Rc<Manager>, mut wanted: Wanted) -> Result<String, RpcError> {
    let change = manager.begin().await;
    let mut after = manager.state().clone();
    if wanted.name.is_empty() {
        if wanted.kind != BdevKind::Malloc {
            return Err(RpcError::params("\"name\" is missing"));
        }
        wanted.name = free_name(&after);
    }
    if wanted.name.len() > MAX_NAME_BYTES || wanted.name.starts_with("nqn.") {
        return Err(RpcError::invalid(format!(
            "{:?} is no name for a bdev; choose up to {MAX_NAME_BYTES} bytes that do not begin with \"nqn.\", as declared namespaces do",
            wanted.name
        )));
    }
    if after.bdevs.iter().any(|bdev| bdev.name == wanted.name) {
        let existing = serde_json::json!({ "name": wanted.name });
        let message = format!("there is a bdev {:?} already", wanted.name);
        return Err(RpcError::exists(message, existing));
    }
    if let Some(uuid) = wanted.uuid {
        check_uuid(manager, uuid)?;
    }
    let shards = manager.target.shards.count();
    let bdev = wanted.open(Duration::ZERO, shards).await?;
    let name = bdev.record.name.clone();
    after.bdevs.push(bdev.record.clone());
    let put = async {
        manager.put_bdev(bdev);
        Ok(())
    };
    manager.commit(&change, after, put).await?;
    tracing::info!(bdev = name, "bdev made");
    Ok(name)
}

/// No two block devices or namespaces may have one UUID: hosts would take them for one.
pub(super) fn check_uuid(manager: &Manager, uuid: Uuid) -> Result<(), RpcError> {
    if uuid.is_nil() {
        return Err(RpcError::invalid("the UUID is all zeroes; leave it out"));
    }
    let taken = manager.bdevs().iter().any(|bdev| bdev.uuid == uuid);
    let served = manager.target.subsystems();
    let mut served = served.iter();
    let served = served.any(|served| {
        let subsystem = served.subsystem.borrow();
        subsystem.namespaces.iter().any(|n| n.ids.uuid == uuid)
    });
    if taken || served {
        return Err(RpcError::exists(
            format!("the UUID {uuid} is in use; give each its own"),
            serde_json::Value::Null,
        ));
    }
    Ok(())
}

fn free_name(state: &State) -> String {
    let taken = |name: &String| state.bdevs.iter().any(|bdev| bdev.name == *name);
    let mut names = (0..).map(|number| format!("Malloc{number}"));
    names
        .find(|name| !taken(name))
        .unwrap_or_else(|| unreachable!("there are fewer bdevs than numbers"))
}

/// Methods about one block device.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OneBdev {
    name: String,
}

/// The record's place in the state, if it is of this kind: each module of SPDK knows its own.
fn find(manager: &Manager, state: &State, name: &str, kind: BdevKind) -> Result<usize, RpcError> {
    let found = state.bdevs.iter().position(|bdev| bdev.name == name);
    let index = found.ok_or_else(|| bdev_list::not_ours(manager, name))?;
    if state.bdevs[index].kind == kind {
        Ok(index)
    } else {
        let other = state.bdevs[index].kind;
        Err(RpcError::invalid(format!(
            "the bdev {name:?} is of the kind {other:?}; use the methods of that"
        )))
    }
}

/// Removes a block device, and first the namespaces that are on it, as SPDK does.
async fn delete(manager: Rc<Manager>, params: OneBdev, kind: BdevKind) -> Result<bool, RpcError> {
    let name = params.name;
    let change = manager.begin().await;
    let mut after = manager.state().clone();
    let index = find(&manager, &after, &name, kind)?;
    after.bdevs.remove(index);
    let mut users = Vec::new();
    for subsystem in &mut after.subsystems {
        subsystem.namespaces.retain(|namespace| {
            let goes = namespace.bdev == name;
            if goes {
                users.push((subsystem.nqn.clone(), namespace.nsid));
            }
            !goes
        });
    }
    let remove = async {
        for (nqn, nsid) in users {
            let nqn = parse_subsystem(&nqn)?;
            let removed = live::remove_namespace(&manager.target, Owner::Api, &nqn, nsid).await;
            if let Err(error) = removed {
                // It was not served in the first place, because its subsystem could not be brought back.
                tracing::warn!("{error}");
            }
        }
        manager.drop_bdev(&name);
        Ok(())
    };
    manager.commit(&change, after, remove).await?;
    tracing::info!(bdev = name, "bdev removed");
    Ok(true)
}

async fn rescan(manager: Rc<Manager>, params: OneBdev, kind: BdevKind) -> Result<bool, RpcError> {
    let _change = manager.begin().await;
    find(&manager, &manager.state(), &params.name, kind)?;
    resize(&manager, &params.name, None).await?;
    Ok(true)
}

/// Looks at the size again, and lets hosts know.
async fn resize(manager: &Manager, name: &str, size_bytes: Option<u64>) -> Result<(), RpcError> {
    manager.bdev(name)?.resize(size_bytes).await?;
    let users: Vec<(String, u32)> = {
        let state = manager.state();
        let all = state.subsystems.iter().flat_map(|subsystem| {
            let namespaces = subsystem.namespaces.iter();
            namespaces.map(move |namespace| (subsystem, namespace))
        });
        all.filter(|(_, namespace)| namespace.bdev == name)
            .map(|(subsystem, namespace)| (subsystem.nqn.clone(), namespace.nsid))
            .collect()
    };
    for (nqn, nsid) in users {
        let nqn = parse_subsystem(&nqn)?;
        live::resize_namespace(&manager.target, Owner::Api, &nqn, nsid, None).await?;
    }
    Ok(())
}

/// `bdev_null_resize`: `new_size` in MiB.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NullResize {
    name: String,
    new_size: u64,
}

async fn null_resize(manager: Rc<Manager>, params: NullResize) -> Result<bool, RpcError> {
    let change = manager.begin().await;
    let mut after = manager.state().clone();
    let index = find(&manager, &after, &params.name, BdevKind::Null)?;
    let wanted = params.new_size.saturating_mul(MEBIBYTE);
    check(rules::check_size(wanted))?;
    let now = manager.bdev(&params.name)?.backing.size_bytes();
    if wanted < now {
        return Err(RpcError::invalid(format!(
            "the bdev {:?} has {now} bytes; {wanted} would cut off blocks that hosts use, and it can only grow",
            params.name
        )));
    }
    after.bdevs[index].size_bytes = Some(wanted);
    let grow = resize(&manager, &params.name, Some(wanted));
    manager.commit(&change, after, grow).await?;
    Ok(true)
}
