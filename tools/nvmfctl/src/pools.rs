//! Commands about pools, volumes and snapshots.

use nvmf_rpc::error::code;
use nvmf_rpc::types::{
    AddHost, CreateSnapshot, CreateSnapshots, CreateVolume, DeleteSnapshot, DeleteVolume, GetPools,
    GetSnapshots, GetVolumes, Labels, Provisioning, RemoveHost, ResizeVolume, SnapshotSpec, Source,
};
use nvmf_rpc::{BlockingClient, Method};
use serde_json::{Value, json};

use crate::Output;
use crate::cli::{LabelFilter, Snapshot, Volume};
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

/// The volumes that have all of these labels.
fn find(
    client: &BlockingClient,
    pool: Option<&str>,
    wanted: &[LabelFilter],
) -> Result<Value, Error> {
    let params = GetVolumes {
        pool: pool.map(str::to_owned),
        name: None,
    };
    let mut found = call(client, &params)?;
    if let Some(volumes) = found.as_array_mut() {
        volumes.retain(|volume| {
            wanted.iter().all(|filter| {
                let has = volume["labels"].get(&filter.key).and_then(Value::as_str);
                has.is_some_and(|has| filter.value.as_deref().is_none_or(|value| value == has))
            })
        });
    }
    Ok(found)
}

fn labels(volume: &Value) -> String {
    let all = volume["labels"].as_object().into_iter().flatten();
    let all: Vec<String> = all
        .map(|(key, value)| format!("{key}={}", cell(value)))
        .collect();
    all.join(" ")
}

/// `nvmfctl volume prune`: the target refuses to remove what a host is connected to, whatever was seen here.
fn prune(
    client: &BlockingClient,
    pool: Option<&str>,
    wanted: &[LabelFilter],
    most: u32,
    yes: bool,
) -> Result<Output, Error> {
    let found = find(client, pool, wanted)?;
    let mut removed = 0;
    let mut outcomes = Vec::new();
    for volume in found.as_array().into_iter().flatten() {
        let is_used = volume["connected_hosts"]
            .as_array()
            .is_some_and(|hosts| !hosts.is_empty());
        let outcome = if is_used {
            "in use"
        } else if removed == most {
            "left for the next time (--most)"
        } else if yes {
            let params = DeleteVolume {
                pool: cell(&volume["pool"]),
                name: cell(&volume["name"]),
                force: false,
            };
            match client.request(&params) {
                Ok(_) => {
                    removed += 1;
                    "removed"
                }
                Err(error) if error.code() == Some(code::BUSY) => "in use",
                Err(error) if error.code() == Some(code::NOT_FOUND) => "removed by somebody else",
                Err(error) => return Err(error.into()),
            }
        } else {
            removed += 1;
            "removed with --yes"
        };
        outcomes.push(json!({
            "pool": volume["pool"], "name": volume["name"], "created": volume["created"],
            "labels": volume["labels"], "outcome": outcome,
        }));
    }
    let headings = ["POOL", "NAME", "CREATED", "OUTCOME", "LABELS"];
    Ok(list(Value::Array(outcomes), &headings, |volume| {
        vec![
            cell(&volume["pool"]),
            cell(&volume["name"]),
            cell(&volume["created"]),
            cell(&volume["outcome"]),
            labels(volume),
        ]
    }))
}

/// `nvmfctl volume`.
pub fn volume(client: &BlockingClient, command: &Volume) -> Result<Output, Error> {
    match command {
        Volume::List { pool, label } => {
            let found = find(client, pool.as_deref(), label)?;
            let mut headings = vec![
                "POOL",
                "NAME",
                "SIZE",
                "USED",
                "HOSTS",
                "CONNECTED",
                "NQN",
                "NSID",
            ];
            // Who looks for labels wants to see them; others have no room for them.
            if !label.is_empty() {
                headings.extend(["CREATED", "LABELS"]);
            }
            Ok(list(found, &headings, |volume| {
                let count = |key: &str| volume[key].as_array().map_or(0, Vec::len).to_string();
                let mut row = vec![
                    cell(&volume["pool"]),
                    cell(&volume["name"]),
                    bytes(&volume["size_bytes"]),
                    bytes(&volume["allocated_bytes"]),
                    count("hosts"),
                    count("connected_hosts"),
                    cell(&volume["nqn"]),
                    cell(&volume["nsid"]),
                ];
                if !label.is_empty() {
                    row.extend([cell(&volume["created"]), labels(volume)]);
                }
                row
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
        Volume::Prune {
            label,
            pool,
            most,
            yes,
        } => prune(client, pool.as_deref(), label, *most, *yes),
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
