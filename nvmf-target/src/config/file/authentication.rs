//! `[authentication]` and `[[host]]` of the file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use nvme_proto::auth::{DhChapKeys, DhChapPolicy, DhGroup, HashId, Secret};
use serde::Deserialize;
use toml::Spanned;

use crate::config::Authentication;
use crate::config::authentication::read_secret;
use crate::config::nqn::host_nqn;
use crate::config::problem::{Collector, Place};
use crate::config::rules;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawAuthentication {
    hashes: Option<Spanned<Vec<String>>>,
    dh_groups: Option<Spanned<Vec<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawHost {
    nqn: Spanned<String>,
    dhchap_key_file: Spanned<PathBuf>,
    dhchap_ctrl_key_file: Option<Spanned<PathBuf>>,
}

impl RawAuthentication {
    pub(super) fn check(self, hosts: Vec<RawHost>, problems: &mut Collector) -> Authentication {
        let all = DhChapPolicy::default();
        let there_are = HashId::ALL.map(|hash| (hash.name(), hash));
        let hashes = chosen("hashes", self.hashes, &there_are, problems);
        let there_are = DhGroup::ALL.map(|group| (group.name(), group));
        let groups = chosen("dh-groups", self.dh_groups, &there_are, problems);
        let mut keys = BTreeMap::new();
        for host in hosts {
            let place = Place::at("nqn", host.nqn.span());
            let nqn = problems.ok(&place, host_nqn(host.nqn.get_ref()));
            let secret = secret("dhchap-key-file", host.dhchap_key_file, problems);
            let controller = host
                .dhchap_ctrl_key_file
                .and_then(|path| self::secret("dhchap-ctrl-key-file", path, problems));
            let (Some(nqn), Some(host)) = (nqn, secret) else {
                continue;
            };
            if controller.as_ref() == Some(&host) {
                problems.push(
                    &place,
                    "the host and the controller have the same secret, so that either could play the other; make one for each",
                );
            }
            let both = Arc::new(DhChapKeys { host, controller });
            if keys.insert(nqn.clone(), both).is_some() {
                problems.push(
                    &place,
                    format!("the host {nqn} is given twice; leave one out"),
                );
            }
        }
        Authentication {
            keys,
            policy: DhChapPolicy {
                hashes: hashes.unwrap_or(all.hashes),
                groups: groups.unwrap_or(all.groups),
            },
        }
    }
}

/// A list of names, the preferred first, from those that `there_are`.
fn chosen<T: Copy>(
    key: &str,
    list: Option<Spanned<Vec<String>>>,
    there_are: &[(&str, T)],
    problems: &mut Collector,
) -> Option<Vec<T>> {
    let list = list?;
    let place = Place::at(key, list.span());
    let list = list.into_inner();
    let names = there_are.iter().map(|(name, _)| *name);
    let names = names.collect::<Vec<_>>().join(", ");
    if list.is_empty() {
        problems.push(
            &place,
            format!("the list is empty, so no host could authenticate; write some of {names}"),
        );
    }
    let found = list.iter().map(|name| {
        let found = there_are.iter().find(|(there, _)| there == name);
        let found = found.ok_or_else(|| format!("{name:?} is none of {names}"));
        problems.ok(&place, found).map(|(_, found)| *found)
    });
    Some(found.flatten().collect())
}

fn secret(key: &str, path: Spanned<PathBuf>, problems: &mut Collector) -> Option<Secret> {
    let place = Place::at(key, path.span());
    let path = path.into_inner();
    problems.ok(&place, rules::check_absolute(&path))?;
    problems.ok(&place, read_secret(&path))
}
