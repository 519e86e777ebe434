//! Commands about pools, volumes and snapshots.

use nvmf_rpc::types::{
    AddHost, CreateSnapshot, CreateSnapshots, CreateVolume, DeleteSnapshot, DeleteVolume, GetPools,
    GetSnapshots, GetVolumes, Labels, Provisioning, RemoveHost, ResizeVolume, SnapshotSpec, Source,
};
use nvmf_rpc::{BlockingClient, Method};
use serde_json::Value;

use crate::Output;
use crate::cli::{Snapshot, Volume};
use crate::error::Error;
use crate::lists::cell;
use crate::size;
use crate::table::Table;

/// Calls a method; the result as it came, so that what a newer target tells is not lost.
fn call<M: Method>(client: &BlockingClient, params: &M) -> Result<Value, Error> {
    let params = serde_json::to_value(params).map_err(|error| Error::Usage(error.to_string()))?;
    Ok(client.call(M::NAME, params)?)
}

fn done<M: Method>(client: &BlockingClient, params: &M, line: String) -> Result<Output, Error> {
    Ok(Output::Done(call(client, params)?, line))
}

fn bytes(value: &Value) -> String {
    value.as_u64().map(size::show).unwrap_or_default()
}

fn list(value: Value, headings: &[&'static str], row: impl Fn(&Value) -> Vec<String>) -> Output {
    let mut table = Table::new(headings);
    for item in value.as_array().into_iter().flatten() {
        table.row(row(item));
    }
    Output::Listed(value, table)
}

/// `nvmfctl pools`.
pub fn pools(client: &BlockingClient, name: Option<String>) -> Result<Output, Error> {
    let headings = [
        "NAME",
        "FS",
        "REFLINK",
        "SIZE",
        "FREE",
        "PROMISED",
        "VOLUMES",
        "SNAPSHOTS",
        "PATH",
    ];
    Ok(list(call(client, &GetPools { name })?, &headings, |pool| {
        vec![
            cell(&pool["name"]),
            cell(&pool["fs_type"]),
            if pool["reflink"] == true { "yes" } else { "no" }.to_owned(),
            bytes(&pool["total_bytes"]),
            bytes(&pool["free_bytes"]),
            bytes(&pool["provisioned_bytes"]),
            cell(&pool["volumes"]),
            cell(&pool["snapshots"]),
            cell(&pool["path"]),
        ]
    }))
}

/// `nvmfctl volume`.
pub fn volume(client: &BlockingClient, command: &Volume) -> Result<Output, Error> {
    match command {
        Volume::List { pool } => {
            let params = GetVolumes {
                pool: pool.clone(),
                name: None,
            };
            let headings = [
                "POOL",
                "NAME",
                "SIZE",
                "USED",
                "HOSTS",
                "CONNECTED",
                "NQN",
                "NSID",
            ];
            Ok(list(call(client, &params)?, &headings, |volume| {
                let count = |key: &str| volume[key].as_array().map_or(0, Vec::len).to_string();
                vec![
                    cell(&volume["pool"]),
                    cell(&volume["name"]),
                    bytes(&volume["size_bytes"]),
                    bytes(&volume["allocated_bytes"]),
                    count("hosts"),
                    count("connected_hosts"),
                    cell(&volume["nqn"]),
                    cell(&volume["nsid"]),
                ]
            }))
        }
        Volume::Create {
            pool,
            name,
            size,
            from_volume,
            from_snapshot,
            host,
            block_size,
            thick,
            read_only,
            subsystem,
            label,
        } => {
            let from_volume = from_volume.clone().map(Source::Volume);
            let params = CreateVolume {
                pool: pool.clone(),
                name: name.clone(),
                size_bytes: *size,
                block_size: *block_size,
                provisioning: match thick {
                    true => Provisioning::Thick,
                    false => Provisioning::Thin,
                },
                source: from_volume.or(from_snapshot.clone().map(Source::Snapshot)),
                read_only: *read_only,
                hosts: host.clone(),
                labels: label.iter().cloned().collect(),
                subsystem: subsystem.clone(),
            };
            let volume = call(client, &params)?;
            let line = format!(
                "{} namespace {}",
                cell(&volume["nqn"]),
                cell(&volume["nsid"])
            );
            Ok(Output::Done(volume, line))
        }
        Volume::Delete { pool, name, force } => {
            let params = DeleteVolume {
                pool: pool.clone(),
                name: name.clone(),
                force: *force,
            };
            done(client, &params, format!("{name} removed"))
        }
        Volume::Resize { pool, name, size } => {
            let params = ResizeVolume {
                pool: pool.clone(),
                name: name.clone(),
                size_bytes: *size,
            };
            done(client, &params, format!("{name} has {}", size::show(*size)))
        }
        Volume::Grant { pool, name, host } => {
            let params = AddHost {
                pool: pool.clone(),
                name: name.clone(),
                host: host.clone(),
            };
            done(client, &params, format!("{host} may connect to {name}"))
        }
        Volume::Revoke { pool, name, host } => {
            let params = RemoveHost {
                pool: pool.clone(),
                name: name.clone(),
                host: host.clone(),
            };
            done(client, &params, format!("{host} is gone from {name}"))
        }
    }
}

/// `nvmfctl snapshot`.
pub fn snapshot(client: &BlockingClient, command: &Snapshot) -> Result<Output, Error> {
    match command {
        Snapshot::List { pool, volume } => {
            let params = GetSnapshots {
                pool: pool.clone(),
                volume: volume.clone(),
                name: None,
            };
            let headings = ["POOL", "NAME", "VOLUME", "SIZE", "USED", "CREATED", "GROUP"];
            Ok(list(call(client, &params)?, &headings, |snapshot| {
                vec![
                    cell(&snapshot["pool"]),
                    cell(&snapshot["name"]),
                    cell(&snapshot["volume"]),
                    bytes(&snapshot["size_bytes"]),
                    bytes(&snapshot["allocated_bytes"]),
                    cell(&snapshot["created"]),
                    cell(&snapshot["group"]),
                ]
            }))
        }
        Snapshot::Create { pool, snapshot } => {
            let names: Vec<&str> = snapshot.iter().map(|(_, name)| name.as_str()).collect();
            let line = format!("{} taken", names.join(", "));
            let labels = Labels::new();
            if let [(volume, name)] = &snapshot[..] {
                let params = CreateSnapshot {
                    pool: pool.clone(),
                    volume: volume.clone(),
                    name: name.clone(),
                    labels,
                };
                return done(client, &params, line);
            }
            let spec = |(volume, name): &(String, String)| SnapshotSpec {
                volume: volume.clone(),
                name: name.clone(),
                labels: Labels::new(),
            };
            let params = CreateSnapshots {
                pool: pool.clone(),
                snapshots: snapshot.iter().map(spec).collect(),
            };
            done(client, &params, line)
        }
        Snapshot::Delete { pool, name } => {
            let params = DeleteSnapshot {
                pool: pool.clone(),
                name: name.clone(),
            };
            done(client, &params, format!("{name} removed"))
        }
    }
}
