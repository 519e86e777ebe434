//! The checks that the command line and the file share: consistency of a whole [`Config`].

use std::collections::BTreeMap;

use super::problem::{Collector, Place};
use super::{HostRules, NamespaceConfig, Storage, SubsystemConfig, TcpAddress};

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
pub fn check_listeners(listeners: &[(TcpAddress, Place)], problems: &mut Collector) {
    if listeners.is_empty() {
        problems.push(
            &Place::key("listen"),
            "the list is empty, so no host could connect; write an address such as tcp://127.0.0.1:4420, or leave the key out",
        );
    }
    for (index, (address, place)) in listeners.iter().enumerate() {
        let repeated = listeners[..index].iter().any(|(other, _)| other == address);
        if repeated && address.0.port() != 0 {
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

/// Refuses storage that two namespaces would write: neither host could know of the other's writes.
pub fn check_shared_storage(
    subsystems: &[SubsystemConfig],
    place: impl Fn(usize, usize) -> Place,
    problems: &mut Collector,
) {
    let mut users: Vec<(&NamespaceConfig, String)> = Vec::new();
    for (s, subsystem) in subsystems.iter().enumerate() {
        for (n, namespace) in subsystem.namespaces.iter().enumerate() {
            let name = format!("namespace {} of {}", namespace.nsid, subsystem.nqn);
            let Some(path) = namespace.storage.path() else {
                continue;
            };
            let other = users.iter().find(|(other, _)| {
                other.storage.path() == Some(path) && !(other.read_only && namespace.read_only)
            });
            if let Some((_, first)) = other {
                problems.push(
                    &place(s, n),
                    format!(
                        "{} belongs to {first} already; storage may be shared only where both namespaces are read-only",
                        path.display()
                    ),
                );
            }
            users.push((namespace, name));
        }
    }
}

/// What a person calls the storage of a namespace, for messages and logs.
pub fn describe(storage: &Storage) -> String {
    match storage {
        Storage::File { path, .. } | Storage::Block { path } | Storage::Passthru { path } => {
            format!("{} {}", storage.kind(), path.display())
        }
        Storage::Memory { size_bytes } | Storage::Null { size_bytes } => {
            format!("{} of {}", storage.kind(), super::ByteSize(*size_bytes))
        }
    }
}

/// The rules of an access list: `any` wins, and naming hosts beside it is a contradiction.
pub fn host_rules(
    any: bool,
    hosts: Vec<(String, Place)>,
    contradiction: &Place,
    problems: &mut Collector,
) -> HostRules {
    if any && !hosts.is_empty() {
        problems.push(
            contradiction,
            "any host may connect, so the list of allowed hosts would have no effect; keep one of the two",
        );
    }
    let mut names = std::collections::BTreeSet::new();
    for (nqn, place) in hosts {
        problems.ok(&place, super::nqn::check_host_nqn(&nqn));
        if !names.insert(nqn.clone()) {
            problems.push(
                &place,
                format!("the host {nqn} is given twice; leave one out"),
            );
        }
    }
    if any {
        HostRules::Any
    } else {
        HostRules::Only(names)
    }
}
