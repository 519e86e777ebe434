//! What differs between two configurations, as steps that leave everything else alone. No side effects here; `reload` carries a
//! plan out.

use crate::backend::BackingSpec;
use crate::config::{Address, ApiOptions, Config, NamespaceConfig, SubsystemConfig};
use crate::model::{HostAccess, Nqn};

/// How to get from one configuration to another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Subsystems that go.
    pub removed: Vec<Nqn>,
    /// Subsystems that come. One whose serial or model number changed goes and comes: hosts read those once.
    pub added: Vec<SubsystemConfig>,
    /// Subsystems that stay.
    pub kept: Vec<SubsystemChange>,
    /// Listeners that go.
    pub closed: Vec<Address>,
    /// Listeners that come.
    pub opened: Vec<Address>,
    /// What has changed in the file but only a restart can change here.
    pub needs_restart: Vec<&'static str>,
    /// Whether discovery points elsewhere.
    pub referrals_changed: bool,
}

/// Changes of a subsystem that stays.
#[derive(Clone, Debug, PartialEq)]
pub struct SubsystemChange {
    /// Which.
    pub nqn: Nqn,
    /// Who may connect from now on, if that changed.
    pub hosts: Option<HostAccess>,
    /// NSIDs that go; a namespace whose storage or identity changed goes and comes.
    pub removed: Vec<u32>,
    /// Namespaces that come.
    pub added: Vec<NamespaceConfig>,
    /// Namespaces that stay; their size is looked at again.
    pub kept: Vec<NamespaceConfig>,
}

impl Plan {
    /// The steps from `old` to `new`.
    pub fn between(old: &Config, new: &Config) -> Self {
        let mut plan = Plan {
            referrals_changed: old.referrals != new.referrals,
            closed: difference(&old.listeners, &new.listeners),
            opened: difference(&new.listeners, &old.listeners),
            ..Plan::default()
        };
        for (key, changed) in [
            ("cores", old.cores != new.cores),
            ("busy-poll", old.busy_poll_us != new.busy_poll_us),
            ("api", !same_place(&old.api, &new.api)),
            ("pool", old.pools != new.pools),
            (
                "limits.buffers",
                old.limits.buffer_bytes != new.limits.buffer_bytes,
            ),
        ] {
            if changed {
                plan.needs_restart.push(key);
            }
        }
        let same_face = |a: &SubsystemConfig, b: &SubsystemConfig| {
            a.nqn == b.nqn && a.serial == b.serial && a.model == b.model
        };
        for subsystem in &old.subsystems {
            if !new
                .subsystems
                .iter()
                .any(|other| same_face(subsystem, other))
            {
                plan.removed.push(subsystem.nqn.clone());
            }
        }
        for subsystem in &new.subsystems {
            match old
                .subsystems
                .iter()
                .find(|other| same_face(subsystem, other))
            {
                Some(before) => plan.kept.push(SubsystemChange::between(before, subsystem)),
                None => plan.added.push(subsystem.clone()),
            }
        }
        plan
    }
}

/// Whether the API stays where it is. Certificates and clients may change.
fn same_place(a: &ApiOptions, b: &ApiOptions) -> bool {
    let listen = |api: &ApiOptions| api.tls.as_ref().map(|tls| tls.listen);
    a.socket == b.socket && a.state_dir == b.state_dir && listen(a) == listen(b)
}

impl SubsystemChange {
    fn between(old: &SubsystemConfig, new: &SubsystemConfig) -> Self {
        let mut change = SubsystemChange {
            nqn: new.nqn.clone(),
            hosts: (old.hosts != new.hosts).then(|| new.hosts.clone()),
            removed: Vec::new(),
            added: Vec::new(),
            kept: Vec::new(),
        };
        let stays = |a: &NamespaceConfig, others: &[NamespaceConfig]| {
            others.iter().any(|b| same_namespace(a, b))
        };
        for namespace in &old.namespaces {
            if !stays(namespace, &new.namespaces) {
                change.removed.push(namespace.nsid);
            }
        }
        for namespace in &new.namespaces {
            if stays(namespace, &old.namespaces) {
                change.kept.push(namespace.clone());
            } else {
                change.added.push(namespace.clone());
            }
        }
        change
    }
}

/// Whether `a` can become `b` without a host losing its disk: only the size of a file may differ.
fn same_namespace(a: &NamespaceConfig, b: &NamespaceConfig) -> bool {
    let sizeless = |storage: &BackingSpec| match storage {
        BackingSpec::File { path, .. } => BackingSpec::File {
            path: path.clone(),
            size_bytes: None,
        },
        other => other.clone(),
    };
    let without_size = |namespace: &NamespaceConfig| NamespaceConfig {
        storage: sizeless(&namespace.storage),
        ..namespace.clone()
    };
    without_size(a) == without_size(b)
}

/// What is in `a` and not in `b`, counting repetitions (port 0 may be given more than once).
fn difference(a: &[Address], b: &[Address]) -> Vec<Address> {
    let mut left = b.to_vec();
    a.iter()
        .filter(
            |address| match left.iter().position(|other| other == *address) {
                Some(index) => {
                    left.swap_remove(index);
                    false
                }
                None => true,
            },
        )
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;
    use std::path::Path;

    fn config(text: &str) -> Config {
        file::parse(Path::new("t.toml"), text).unwrap()
    }

    const A: &str = "[[subsystem]]\nnqn = \"nqn.2025-01.org.example:a\"\n";
    const B: &str = "[[subsystem]]\nnqn = \"nqn.2025-01.org.example:b\"\n";
    const FILE: &str = "[[subsystem.namespace]]\nnsid = 1\nkind = \"file\"\npath = \"/srv/a\"\n";
    const NULL: &str = "[[subsystem.namespace]]\nnsid = 2\nkind = \"null\"\nsize = \"1G\"\n";

    fn plan(old: &str, new: &str) -> Plan {
        Plan::between(&config(old), &config(new))
    }

    #[test]
    fn the_same_file_changes_nothing() {
        let text =
            format!("listen = [\"tcp://127.0.0.1:0\", \"tcp://127.0.0.1:0\"]\n{A}{FILE}{NULL}{B}");
        let plan = plan(&text, &text);
        assert_eq!(
            (plan.removed.len(), plan.added.len(), plan.kept.len()),
            (0, 0, 2)
        );
        assert!(plan.closed.is_empty() && plan.opened.is_empty() && plan.needs_restart.is_empty());
        let a = &plan.kept[0];
        assert!(a.hosts.is_none() && a.removed.is_empty() && a.added.is_empty());
        assert_eq!(a.kept.len(), 2, "sizes are looked at");
    }

    #[test]
    fn subsystems_come_and_go_by_name_and_face() {
        let one = plan(A, B);
        assert_eq!(one.removed, ["nqn.2025-01.org.example:a".parse().unwrap()]);
        assert_eq!(one.added[0].nqn.as_str(), "nqn.2025-01.org.example:b");
        let renamed = plan(A, &format!("{A}serial = \"s\"\n"));
        assert_eq!(
            (
                renamed.removed.len(),
                renamed.added.len(),
                renamed.kept.len()
            ),
            (1, 1, 0)
        );
    }

    #[test]
    fn namespaces_come_and_go_one_by_one() {
        let change = plan(&format!("{A}{FILE}"), &format!("{A}{NULL}"))
            .kept
            .remove(0);
        assert_eq!(change.removed, [1]);
        assert_eq!(change.added[0].nsid, 2);
        let grown = plan(&format!("{A}{FILE}"), &format!("{A}{FILE}size = \"2G\"\n"))
            .kept
            .remove(0);
        assert!(grown.removed.is_empty() && grown.added.is_empty());
        let BackingSpec::File { size_bytes, .. } = grown.kept[0].storage else {
            panic!("a file")
        };
        assert_eq!(size_bytes, Some(2 << 30));
        for line in [
            "block-size = 4096",
            "read-only = true",
            "eui64 = \"0000000000000001\"",
        ] {
            let replaced = plan(&format!("{A}{NULL}"), &format!("{A}{NULL}{line}\n"))
                .kept
                .remove(0);
            assert_eq!(
                (replaced.removed.as_slice(), replaced.added.len()),
                ([2].as_slice(), 1),
                "{line}"
            );
        }
        let resized = plan(
            &format!("{A}{NULL}"),
            &format!("{A}{}", NULL.replace("1G", "2G")),
        )
        .kept
        .remove(0);
        assert_eq!(resized.removed, [2], "nothing but files can grow");
    }

    #[test]
    fn hosts_listeners_and_what_needs_a_restart() {
        let old = format!("listen = [\"tcp://127.0.0.1:1\", \"tcp://127.0.0.1:2\"]\n{A}");
        let new = format!(
            "cores = \"0\"\nbusy-poll = 5\nreferrals = [\"tcp://10.0.0.1\"]\nlisten = [\"tcp://127.0.0.1:2\", \"tcp://127.0.0.1:3\"]\n[limits]\nbuffers = \"16M\"\n[api]\nsocket = \"none\"\n{A}allowed-hosts = [\"nqn.h\"]\n"
        );
        let plan = plan(&old, &new);
        assert_eq!(plan.closed, ["tcp://127.0.0.1:1".parse().unwrap()]);
        assert_eq!(plan.opened, ["tcp://127.0.0.1:3".parse().unwrap()]);
        assert_eq!(
            plan.needs_restart,
            ["cores", "busy-poll", "api", "limits.buffers"]
        );
        assert!(plan.referrals_changed);
        let host = "nqn.h".parse().unwrap();
        assert_eq!(plan.kept[0].hosts, Some(HostAccess::Only([host].into())));
    }
}
