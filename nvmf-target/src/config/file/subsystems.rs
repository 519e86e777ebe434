//! `[[subsystem]]` and `[[subsystem.namespace]]` of the file.

use std::path::PathBuf;

use nvmf_size::ByteSize;
use serde::Deserialize;
use toml::Spanned;
use uuid::Uuid;

use super::{DEFAULT_MODEL, MODEL_CHARS, ranged};
use crate::backend::BackingSpec;
use crate::config::identity::SERIAL_CHARS;
use crate::config::limits;
use crate::config::nqn::subsystem_nqn;
use crate::config::problem::{Collector, Place};
use crate::config::rules::{self, StorageUsers, Unique};
use crate::config::{NamespaceConfig, SubsystemConfig};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawSubsystem {
    nqn: Spanned<String>,
    serial: Option<Spanned<String>>,
    model: Option<Spanned<String>>,
    allow_any_host: Option<Spanned<bool>>,
    #[serde(default)]
    allowed_hosts: Vec<Spanned<String>>,
    #[serde(default)]
    namespace: Vec<Spanned<RawNamespace>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawNamespace {
    nsid: Option<Spanned<u64>>,
    kind: RawKind,
    path: Option<Spanned<PathBuf>>,
    size: Option<Spanned<ByteSize>>,
    block_size: Option<Spanned<u64>>,
    #[serde(default)]
    read_only: bool,
    uuid: Option<Spanned<String>>,
    nguid: Option<Spanned<String>>,
    eui64: Option<Spanned<String>>,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum RawKind {
    File,
    Block,
    Passthru,
    Memory,
    Null,
}

pub(super) fn check(
    raw: Vec<Spanned<RawSubsystem>>,
    problems: &mut Collector,
) -> Vec<SubsystemConfig> {
    let mut nqns = Unique::new("NQN");
    let mut serials = Unique::new("serial number");
    let mut taken = Taken {
        uuids: Unique::new("UUID"),
        storage: StorageUsers::default(),
    };
    let mut subsystems = Vec::new();
    for raw in raw {
        let raw = raw.into_inner();
        let place = Place::at("nqn", raw.nqn.span());
        let name = problems.ok(&place, subsystem_nqn(raw.nqn.get_ref()));
        let nqn = raw.nqn.into_inner();
        nqns.check(nqn.clone(), "another subsystem", &place, problems);
        let serial = raw.serial.map(|serial| {
            let place = Place::at("serial", serial.span());
            let serial = serial.into_inner();
            problems.ok(&place, rules::check_identify_text(&serial, SERIAL_CHARS));
            serials.check(serial.clone(), &nqn, &place, problems);
            serial
        });
        let model = match raw.model {
            Some(model) => {
                let place = Place::at("model", model.span());
                problems.ok(
                    &place,
                    rules::check_identify_text(model.get_ref(), MODEL_CHARS),
                );
                model.into_inner()
            }
            None => DEFAULT_MODEL.to_owned(),
        };
        let any_place = match &raw.allow_any_host {
            Some(any) => Place::at("allow-any-host", any.span()),
            None => Place::key("allow-any-host"),
        };
        let any = raw.allow_any_host.is_some_and(Spanned::into_inner);
        let hosts = raw
            .allowed_hosts
            .into_iter()
            .map(|host| {
                let place = Place::at("allowed-hosts", host.span());
                (host.into_inner(), place)
            })
            .collect();
        let hosts = rules::host_access(any, hosts, &any_place, problems);
        let namespaces = check_namespaces(&nqn, raw.namespace, &mut taken, problems);
        let Some(nqn) = name else { continue };
        subsystems.push(SubsystemConfig {
            nqn,
            serial,
            model,
            hosts,
            namespaces,
        });
    }
    subsystems
}

/// What no two namespaces of all subsystems may share.
struct Taken {
    uuids: Unique<Uuid>,
    storage: StorageUsers,
}

fn check_namespaces(
    nqn: &str,
    raw: Vec<Spanned<RawNamespace>>,
    taken: &mut Taken,
    problems: &mut Collector,
) -> Vec<NamespaceConfig> {
    let mut nsids = Unique::new("NSID");
    let mut last_nsid = 0;
    let mut namespaces = Vec::new();
    for raw in raw {
        let whole = Place::at("namespace", raw.span());
        let raw = raw.into_inner();
        let nsid_place = match &raw.nsid {
            Some(nsid) => Place::at("nsid", nsid.span()),
            None => whole.clone(),
        };
        let nsid = match raw.nsid {
            Some(nsid) => ranged("nsid", Some(nsid), &limits::NSID, problems).unwrap_or(1) as u32,
            None => last_nsid + 1,
        };
        last_nsid = nsid;
        let owner = format!("namespace {nsid} of {nqn}");
        nsids.check(
            nsid,
            "another namespace of this subsystem",
            &nsid_place,
            problems,
        );
        let storage_place = match &raw.path {
            Some(path) => Place::at("path", path.span()),
            None => whole.clone(),
        };
        let storage = check_storage(raw.kind, raw.path, raw.size, &whole, problems);
        let block_bytes = raw.block_size.and_then(|size| {
            let place = Place::at("block-size", size.span());
            if raw.kind == RawKind::Passthru {
                problems.push(
                    &place,
                    "a passed-through namespace has the block size of its device; leave the key out",
                );
            }
            problems.ok(&place, rules::check_block_size(size.into_inner()))
        });
        let uuid = raw.uuid.and_then(|text| {
            let place = Place::at("uuid", text.span());
            let parsed = match Uuid::parse_str(text.get_ref()) {
                Ok(uuid) if !uuid.is_nil() => Ok(uuid),
                _ => Err(format!(
                    "{:?} is not a UUID; write one such as c8c3a6a6-7b6a-4f8c-9d5c-2d5a3a7c0b1e, not all zeroes",
                    text.get_ref()
                )),
            };
            let uuid = problems.ok(&place, parsed)?;
            taken.uuids.check(uuid, &owner, &place, problems);
            Some(uuid)
        });
        let nguid = raw
            .nguid
            .and_then(|text| identifier("nguid", text, problems));
        let eui64 = raw
            .eui64
            .and_then(|text| identifier("eui64", text, problems));
        let Some(storage) = storage else { continue };
        let namespace = (nsid, raw.read_only);
        taken
            .storage
            .check(nqn, namespace, &storage, &storage_place, problems);
        namespaces.push(NamespaceConfig {
            nsid,
            storage,
            block_bytes,
            read_only: raw.read_only,
            uuid,
            nguid,
            eui64,
        });
    }
    namespaces
}

/// An identifier of `N` bytes in hexadecimal, dashes and colons ignored; never zero.
fn identifier<const N: usize>(
    key: &str,
    text: Spanned<String>,
    problems: &mut Collector,
) -> Option<[u8; N]> {
    let digits: String = text
        .get_ref()
        .chars()
        .filter(|c| !matches!(c, '-' | ':' | '.'))
        .collect();
    let mut bytes = [0; N];
    let well_formed = digits.len() == 2 * N
        && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        && digits.bytes().any(|digit| digit != b'0');
    if !well_formed {
        problems.push(
            &Place::at(key, text.span()),
            format!(
                "{:?} is not an identifier of {N} bytes; write {} hexadecimal digits, not all zeroes",
                text.get_ref(),
                2 * N
            ),
        );
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16).unwrap_or(0) as u8;
        *byte = digit(pair[0]) << 4 | digit(pair[1]);
    }
    Some(bytes)
}

/// Joins kind, path and size, each required, optional or meaningless for the kind.
fn check_storage(
    kind: RawKind,
    path: Option<Spanned<PathBuf>>,
    size: Option<Spanned<ByteSize>>,
    whole: &Place,
    problems: &mut Collector,
) -> Option<BackingSpec> {
    let has_path = matches!(kind, RawKind::File | RawKind::Block | RawKind::Passthru);
    let size_bytes = size.and_then(|size| {
        let place = Place::at("size", size.span());
        if matches!(kind, RawKind::Block | RawKind::Passthru) {
            problems.push(&place, "a device has the size it has; leave the key out");
            return None;
        }
        let bytes = size.into_inner().0;
        problems
            .ok(&place, rules::check_size(bytes))
            .map(|()| bytes)
    });
    match path {
        Some(path) if !has_path => problems.push(
            &Place::at("path", path.span()),
            "memory and null namespaces have no path; leave the key out",
        ),
        Some(path) => {
            let place = Place::at("path", path.span());
            let path = path.into_inner();
            problems.ok(&place, rules::check_absolute(&path))?;
            return Some(match kind {
                RawKind::File => BackingSpec::File { path, size_bytes },
                RawKind::Block => BackingSpec::Block { path },
                _ => BackingSpec::Passthrough { path },
            });
        }
        None if has_path => problems.push(whole, "this kind needs a path; write path = \"/PATH\""),
        None => match size_bytes {
            Some(size_bytes) if kind == RawKind::Memory => {
                return Some(BackingSpec::Memory { size_bytes });
            }
            Some(size_bytes) => return Some(BackingSpec::Null { size_bytes }),
            None => problems.push(
                whole,
                "this kind needs a size; write size = \"SIZE\", such as \"1G\"",
            ),
        },
    }
    None
}
