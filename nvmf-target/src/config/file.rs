//! The TOML form of a configuration.
//!
//! Keys are written as in the command line's flags, with dashes. Unknown keys are refused, so that a typing mistake never
//! turns into a default. `docs/OPERATIONS.md` shows a whole file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use uuid::Uuid;

use super::address::Address;
use super::cli::DEFAULT_LISTEN;
use super::limits::{self, KeepAliveBounds, Limits, TcpOptions};
use super::nqn::subsystem_nqn;
use super::problem::{Collector, Place, Problem, Problems};
use super::rules::{self, StorageUsers, Unique};
use super::{ByteSize, Config, CoreSet, NamespaceConfig, SubsystemConfig};
use crate::backend::BackingSpec;

/// The model number where none is given.
pub const DEFAULT_MODEL: &str = "nvmf-target";
/// The length of an Identify Controller model number.
pub const MODEL_CHARS: usize = 40;

/// Reads and checks the file.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let text = fs::read_to_string(path).map_err(|error| {
        Problems(vec![Problem {
            file: Some(path.to_owned()),
            line: None,
            key: String::new(),
            message: format!("cannot be read: {error}"),
        }])
    })?;
    parse(path, &text)
}

/// Checks `text`, the content of the file `path`.
pub fn parse(path: &Path, text: &str) -> Result<Config, Problems> {
    let raw: RawFile = toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map(|span| super::problem::line_of(text, span.start));
        let key = line.map(|line| key_of_line(text, line)).unwrap_or_default();
        Problems(vec![Problem {
            file: Some(path.to_owned()),
            line,
            key,
            message: error.message().to_owned(),
        }])
    })?;
    let mut problems = Collector::for_file(path, text);
    let config = raw.check(&mut problems);
    problems.finish(config)
}

/// The key that line number `line` assigns to; empty for headers and continued values.
fn key_of_line(text: &str, line: usize) -> String {
    let line = text.lines().nth(line - 1).unwrap_or_default();
    match line.split_once('=') {
        Some((key, _)) if !key.trim_start().starts_with('#') => key.trim().to_owned(),
        _ => String::new(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawFile {
    listen: Option<Spanned<Vec<Spanned<Address>>>>,
    #[serde(default)]
    referrals: Vec<Address>,
    cores: Option<CoreSet>,
    busy_poll: Option<Spanned<u64>>,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    tcp: RawTcp,
    #[serde(default)]
    keep_alive: RawKeepAlive,
    #[serde(default)]
    api: api::RawApi,
    #[serde(default)]
    subsystem: Vec<Spanned<RawSubsystem>>,
    #[serde(default)]
    pool: BTreeMap<Spanned<String>, pools::RawPool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawLimits {
    queue_depth: Option<Spanned<u64>>,
    io_queues: Option<Spanned<u64>>,
    in_capsule_size: Option<Spanned<ByteSize>>,
    max_transfer_size: Option<Spanned<ByteSize>>,
    r2t_window: Option<Spanned<ByteSize>>,
    connections: Option<Spanned<u64>>,
    buffers: Option<Spanned<ByteSize>>,
    handshake_ms: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawTcp {
    header_digest: Option<bool>,
    data_digest: Option<bool>,
    cpda: Option<Spanned<u64>>,
    success_flag: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawKeepAlive {
    min_ms: Option<Spanned<u64>>,
    max_ms: Option<Spanned<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawSubsystem {
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

impl RawFile {
    fn check(self, problems: &mut Collector) -> Config {
        let listeners = match self.listen {
            Some(list) => {
                let addresses: Vec<_> = list
                    .into_inner()
                    .into_iter()
                    .map(|address| {
                        let place = Place::at("listen", address.span());
                        (address.into_inner(), place)
                    })
                    .collect();
                rules::check_listeners(&addresses, problems);
                addresses.into_iter().map(|(address, _)| address).collect()
            }
            None => vec![DEFAULT_LISTEN],
        };
        let busy_poll_us = ranged("busy-poll", self.busy_poll, &limits::BUSY_POLL_US, problems);
        let subsystems = check_subsystems(self.subsystem, problems);
        Config {
            listeners,
            subsystems,
            pools: pools::check(self.pool, problems),
            referrals: self.referrals,
            limits: self.limits.check(problems),
            tcp: self.tcp.check(problems),
            keep_alive: self.keep_alive.check(problems),
            cores: self.cores,
            busy_poll_us: busy_poll_us.unwrap_or(0) as u32,
            api: self.api.check(problems),
        }
    }
}

/// The value if it lies in `range`; otherwise a problem, and `None`.
fn ranged(
    key: &str,
    value: Option<Spanned<u64>>,
    range: &std::ops::RangeInclusive<u64>,
    problems: &mut Collector,
) -> Option<u64> {
    let value = value?;
    if range.contains(value.get_ref()) {
        return Some(value.into_inner());
    }
    problems.push(
        &Place::at(key, value.span()),
        format!(
            "{} is out of range; write {} to {}",
            value.get_ref(),
            range.start(),
            range.end()
        ),
    );
    None
}

fn ranged_size(
    key: &str,
    value: Option<Spanned<ByteSize>>,
    range: &std::ops::RangeInclusive<u64>,
    multiple_of: u64,
    problems: &mut Collector,
) -> Option<u64> {
    let value = value?;
    let place = Place::at(key, value.span());
    let bytes = value.into_inner().0;
    if !range.contains(&bytes) {
        problems.push(
            &place,
            format!(
                "{} is out of range; write {} to {}",
                ByteSize(bytes),
                ByteSize(*range.start()),
                ByteSize(*range.end())
            ),
        );
        return None;
    }
    if bytes % multiple_of != 0 {
        problems.push(
            &place,
            format!("{bytes} is not a multiple of {multiple_of} bytes"),
        );
        return None;
    }
    Some(bytes)
}

impl RawLimits {
    fn check(self, problems: &mut Collector) -> Limits {
        let d = Limits::default();
        let transfer_place = self
            .max_transfer_size
            .as_ref()
            .map(|size| Place::at("max-transfer-size", size.span()));
        let max_transfer_bytes = ranged_size(
            "max-transfer-size",
            self.max_transfer_size,
            &limits::MAX_TRANSFER_BYTES,
            1,
            problems,
        );
        if let (Some(bytes), Some(place)) = (max_transfer_bytes, transfer_place)
            && !bytes.is_power_of_two()
        {
            problems.push(
                &place,
                format!(
                    "{} is no power of two, which is all that MDTS can express; write {}",
                    ByteSize(bytes),
                    ByteSize(bytes.next_power_of_two() / 2)
                ),
            );
        }
        let or = |value: Option<u64>, default: u64| value.unwrap_or(default);
        let depth = ranged(
            "queue-depth",
            self.queue_depth,
            &limits::QUEUE_DEPTH,
            problems,
        );
        let queues = ranged("io-queues", self.io_queues, &limits::IO_QUEUES, problems);
        let in_capsule = ranged_size(
            "in-capsule-size",
            self.in_capsule_size,
            &limits::IN_CAPSULE_BYTES,
            16,
            problems,
        );
        let window = ranged_size(
            "r2t-window",
            self.r2t_window,
            &limits::R2T_WINDOW_BYTES,
            4096,
            problems,
        );
        let connections = ranged(
            "connections",
            self.connections,
            &limits::CONNECTIONS,
            problems,
        );
        let buffers = ranged_size("buffers", self.buffers, &limits::BUFFER_BYTES, 1, problems);
        let handshake = ranged(
            "handshake-ms",
            self.handshake_ms,
            &limits::HANDSHAKE_MS,
            problems,
        );
        Limits {
            queue_depth: or(depth, d.queue_depth.into()) as u16,
            io_queues: or(queues, d.io_queues.into()) as u16,
            in_capsule_bytes: or(in_capsule, d.in_capsule_bytes.into()) as u32,
            max_transfer_bytes: or(max_transfer_bytes, d.max_transfer_bytes.into()) as u32,
            r2t_window_bytes: or(window, d.r2t_window_bytes.into()) as u32,
            connections: or(connections, d.connections as u64) as usize,
            buffer_bytes: or(buffers, d.buffer_bytes),
            handshake_ms: or(handshake, d.handshake_ms.into()) as u32,
        }
    }
}

impl RawTcp {
    fn check(self, problems: &mut Collector) -> TcpOptions {
        let d = TcpOptions::default();
        TcpOptions {
            header_digest: self.header_digest.unwrap_or(d.header_digest),
            data_digest: self.data_digest.unwrap_or(d.data_digest),
            cpda: ranged("cpda", self.cpda, &limits::CPDA, problems).unwrap_or(0) as u8,
            success_flag: self.success_flag.unwrap_or(d.success_flag),
        }
    }
}

impl RawKeepAlive {
    fn check(self, problems: &mut Collector) -> KeepAliveBounds {
        let max_place = self
            .max_ms
            .as_ref()
            .map(|max| Place::at("max-ms", max.span()));
        let min = ranged("min-ms", self.min_ms, &limits::KEEP_ALIVE_MS, problems);
        let max = ranged("max-ms", self.max_ms, &limits::KEEP_ALIVE_MS, problems);
        if let (Some(min), Some(max), Some(place)) = (min, max, max_place)
            && max < min
        {
            problems.push(&place, format!("{max} is less than min-ms, which is {min}"));
        }
        KeepAliveBounds {
            min_ms: min.unwrap_or(0) as u32,
            max_ms: max.map(|max| max as u32),
        }
    }
}

fn check_subsystems(
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
            problems.ok(
                &place,
                rules::check_identify_text(&serial, super::identity::SERIAL_CHARS),
            );
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
        Some(path) if !path.get_ref().is_absolute() => problems.push(
            &Place::at("path", path.span()),
            format!(
                "{} depends on where the target is started; write an absolute path",
                path.get_ref().display()
            ),
        ),
        Some(path) => {
            let path = path.into_inner();
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

mod api;
mod pools;
#[cfg(test)]
mod tests;
