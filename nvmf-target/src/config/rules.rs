//! The checks that the command line and the file share: consistency of a whole [`super::Config`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::Address;
use super::problem::{Collector, Place};
use crate::backend::BackingSpec;
use crate::model::HostAccess;

/// The least size of a namespace: one block of the smallest size.
const MIN_NAMESPACE_BYTES: u64 = 512;

/// Notes keys that were already used, by what they hold.
pub struct Unique<K> {
    what: &'static str,
    seen: BTreeMap<K, String>,
}

impl<K: Ord> Unique<K> {
    /// Guards values that are called `what` in messages.
    pub fn new(what: &'static str) -> Self {
        Unique {
            what,
            seen: BTreeMap::new(),
        }
    }

    /// Notes a problem at `place` if `value` was used before; `owner` names the user.
    pub fn check(&mut self, value: K, owner: &str, place: &Place, problems: &mut Collector) {
        match self.seen.get(&value) {
            Some(first) => problems.push(
                place,
                format!(
                    "this {} belongs to {first} already; give each its own",
                    self.what
                ),
            ),
            None => {
                self.seen.insert(value, owner.to_owned());
            }
        }
    }
}

/// Refuses listeners that are given twice. Port 0 stands for any free port and may repeat.
pub fn check_listeners(listeners: &[(Address, Place)], problems: &mut Collector) {
    if listeners.is_empty() {
        problems.push(
            &Place::key("listen"),
            "the list is empty, so no host could connect; write an address such as tcp://127.0.0.1:4420, or leave the key out",
        );
    }
    for (index, (address, place)) in listeners.iter().enumerate() {
        let repeated = listeners[..index].iter().any(|(other, _)| other == address);
        if repeated && address.socket.port() != 0 {
            problems.push(place, format!("{address} is given twice; leave one out"));
        }
    }
}

/// Judges a serial or model number: printable ASCII, no blanks at the ends (the field is padded with them), at most `max_chars`.
pub fn check_identify_text(text: &str, max_chars: usize) -> Result<(), String> {
    if text.is_empty() || text.len() > max_chars {
        return Err(format!(
            "{text:?} has {} bytes; write 1 to {max_chars} ASCII characters",
            text.len()
        ));
    }
    if !text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) || text.trim() != text {
        return Err(format!(
            "{text:?}: write printable ASCII characters, with no blank at either end"
        ));
    }
    Ok(())
}

/// Judges a path in a file, which must mean the same wherever the target is started.
pub fn check_absolute(path: &Path) -> Result<(), String> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(format!(
        "{} depends on where the target is started; write an absolute path",
        path.display()
    ))
}

/// Judges the size of a namespace.
pub fn check_size(size_bytes: u64) -> Result<(), String> {
    if size_bytes < MIN_NAMESPACE_BYTES {
        Err(format!(
            "{size_bytes} bytes hold no block; write at least {MIN_NAMESPACE_BYTES}"
        ))
    } else if i64::try_from(size_bytes).is_err() {
        Err(format!(
            "{size_bytes} bytes are more than Linux can address in a file; write less than 8 EiB"
        ))
    } else {
        Ok(())
    }
}

/// Judges a block size.
pub fn check_block_size(bytes: u64) -> Result<u32, String> {
    match bytes {
        512 | 4096 => Ok(bytes as u32),
        _ => Err(format!("{bytes} is not a block size; write 512 or 4096")),
    }
}

/// Refuses storage that two namespaces would write: neither's host could know of the other's writes.
#[derive(Default)]
pub struct StorageUsers(Vec<StorageUser>);

struct StorageUser {
    path: PathBuf,
    read_only: bool,
    subsystem: String,
    nsid: u32,
}

impl StorageUsers {
    /// Notes that a namespace uses `storage`, and a problem at `place` if another one does too.
    pub fn check(
        &mut self,
        subsystem: &str,
        namespace: (u32, bool),
        storage: &BackingSpec,
        place: &Place,
        problems: &mut Collector,
    ) {
        let Some(path) = path_of(storage) else { return };
        let (nsid, read_only) = namespace;
        // Within one subsystem even two readers would be wrong: both would get the identifiers derived from the path.
        let in_conflict = |other: &&StorageUser| {
            other.path == path && (other.subsystem == subsystem || !(other.read_only && read_only))
        };
        if let Some(first) = self.0.iter().find(in_conflict) {
            problems.push(
                place,
                format!(
                    "{} belongs to namespace {} of {} already; only read-only namespaces of different subsystems may share storage",
                    path.display(),
                    first.nsid,
                    first.subsystem
                ),
            );
        }
        self.0.push(StorageUser {
            path: path.to_owned(),
            read_only,
            subsystem: subsystem.to_owned(),
            nsid,
        });
    }
}

/// The word for a kind of storage, in the file and as a flag.
pub fn kind_of(storage: &BackingSpec) -> &'static str {
    match storage {
        BackingSpec::File { .. } => "file",
        BackingSpec::Block { .. } => "block",
        BackingSpec::Passthrough { .. } => "passthru",
        BackingSpec::Memory { .. } => "memory",
        BackingSpec::Null { .. } => "null",
    }
}

/// The path of the storage, where the kind has one.
pub fn path_of(storage: &BackingSpec) -> Option<&Path> {
    match storage {
        BackingSpec::File { path, .. }
        | BackingSpec::Block { path }
        | BackingSpec::Passthrough { path } => Some(path),
        BackingSpec::Memory { .. } | BackingSpec::Null { .. } => None,
    }
}

/// The rules of an access list: `any` wins, and naming hosts beside it is a contradiction.
pub fn host_access(
    any: bool,
    hosts: Vec<(String, Place)>,
    contradiction: &Place,
    problems: &mut Collector,
) -> HostAccess {
    if any && !hosts.is_empty() {
        problems.push(
            contradiction,
            "any host may connect, so the list of allowed hosts would have no effect; keep one of the two",
        );
    }
    let mut names = BTreeSet::new();
    for (nqn, place) in hosts {
        let Some(nqn) = problems.ok(&place, super::nqn::host_nqn(&nqn)) else {
            continue;
        };
        if !names.insert(nqn.clone()) {
            problems.push(
                &place,
                format!("the host {nqn} is given twice; leave one out"),
            );
        }
    }
    if any {
        HostAccess::Any
    } else {
        HostAccess::Only(names)
    }
}
