//! Tables `[pool.NAME]`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use nvme_proto::wire::nqn::NQN_MAX_BYTES;
use nvmf_size::ByteSize;
use serde::Deserialize;
use toml::Spanned;

use super::ranged_size;
use crate::config::nqn::subsystem_nqn;
use crate::config::problem::{Collector, Place};
use crate::config::rules::{Unique, check_absolute};
use crate::pool::config::DEFAULT_EXTENT_BYTES;
use crate::pool::{MAX_NAME_BYTES, Overcommit, PoolConfig, check_name};

/// The units in which XFS may be asked to allocate: from its block size to what one extent can have.
const EXTENT_BYTES: std::ops::RangeInclusive<u64> = 0..=1 << 30;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawPool {
    path: Spanned<PathBuf>,
    nqn_prefix: Spanned<String>,
    #[serde(default)]
    overcommit: Overcommit,
    require_mount: Option<bool>,
    extent_size: Option<Spanned<ByteSize>>,
    #[serde(default)]
    nocow: bool,
}

/// Checks all pools.
pub(super) fn check(
    raw: BTreeMap<Spanned<String>, RawPool>,
    problems: &mut Collector,
) -> Vec<PoolConfig> {
    let mut paths = Unique::new("folder");
    let mut pools = Vec::new();
    for (name, raw) in raw {
        let place = Place::at("pool", name.span());
        let name = name.into_inner();
        problems.ok(&place, check_name(&name));
        let place = Place::at("path", raw.path.span());
        let path = raw.path.into_inner();
        problems.ok(&place, check_absolute(&path));
        paths.check(path.clone(), &format!("the pool {name}"), &place, problems);
        let place = Place::at("nqn-prefix", raw.nqn_prefix.span());
        let nqn_prefix = raw.nqn_prefix.into_inner();
        problems.ok(&place, check_prefix(&nqn_prefix, &name));
        let extent_bytes = ranged_size(
            "extent-size",
            raw.extent_size,
            &EXTENT_BYTES,
            4096,
            problems,
        );
        pools.push(PoolConfig {
            overcommit: raw.overcommit,
            require_mount: raw.require_mount.unwrap_or(true),
            extent_bytes: extent_bytes.map_or(DEFAULT_EXTENT_BYTES, |bytes| bytes as u32),
            nocow: raw.nocow,
            ..PoolConfig::new(&name, path, &nqn_prefix)
        });
    }
    pools
}

/// Judges the beginning of the NQNs of the pool's volumes: every name that a volume can have must make an NQN.
fn check_prefix(prefix: &str, pool: &str) -> Result<(), String> {
    let longest = prefix.len() + 1 + pool.len() + 1 + MAX_NAME_BYTES;
    if longest > NQN_MAX_BYTES {
        return Err(format!(
            "with the pool's name and a volume's of {MAX_NAME_BYTES} bytes the NQN would have {longest} bytes, more than {NQN_MAX_BYTES}; write a shorter one"
        ));
    }
    subsystem_nqn(&format!("{prefix}:{pool}:volume"))
        .map(drop)
        .map_err(|_| {
            format!(
                "{prefix:?} is not the beginning of an NQN: write nqn.YYYY-MM.REVERSED-DOMAIN, such as nqn.2025-01.org.example; volumes become PREFIX:{pool}:NAME"
            )
        })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn problems(text: &str) -> String {
        crate::config::file::parse(Path::new("t.toml"), text)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_pool_needs_a_folder_and_a_prefix_and_the_rest_has_defaults() {
        let text = "[pool.fast]\npath = \"/srv/fast\"\nnqn-prefix = \"nqn.2025-01.org.example\"\n\
                    [pool.slow]\npath = \"/srv/slow\"\nnqn-prefix = \"nqn.2025-01.org.example\"\n\
                    overcommit = \"warn\"\nrequire-mount = false\nextent-size = \"64K\"\nnocow = true\n";
        let config = crate::config::file::parse(Path::new("t.toml"), text).unwrap();
        let fast = PoolConfig::new("fast", "/srv/fast", "nqn.2025-01.org.example");
        assert_eq!(fast.overcommit, Overcommit::Refuse);
        assert_eq!(fast.nqn_of("v1"), "nqn.2025-01.org.example:fast:v1");
        let slow = PoolConfig {
            overcommit: Overcommit::Warn,
            require_mount: false,
            extent_bytes: 65536,
            nocow: true,
            ..PoolConfig::new("slow", "/srv/slow", "nqn.2025-01.org.example")
        };
        assert_eq!(config.pools, [fast, slow]);
    }

    #[test]
    fn mistakes_are_named() {
        let pool = |name: &str, path: &str, prefix: &str, more: &str| {
            format!("[pool.{name}]\npath = \"{path}\"\nnqn-prefix = \"{prefix}\"\n{more}")
        };
        let nqn = "nqn.2025-01.org.example";
        for (text, message) in [
            (pool("\"a/b\"", "/srv/a", nqn, ""), "is not a name"),
            (pool("a", "srv/a", nqn, ""), "write an absolute path"),
            (
                pool("a", "/srv/a", "example", ""),
                "is not the beginning of an NQN",
            ),
            (
                pool("a", "/srv/a", &format!("{nqn}:{}", "x".repeat(90)), ""),
                "write a shorter one",
            ),
            (
                pool("a", "/srv/a", nqn, "overcommit = \"maybe\"\n"),
                "overcommit",
            ),
            (
                pool("a", "/srv/a", nqn, "extent-size = \"5000\"\n"),
                "not a multiple",
            ),
            (pool("a", "/srv/a", nqn, "size = \"1G\"\n"), "unknown field"),
            (
                pool("a", "/srv/a", nqn, "") + &pool("b", "/srv/a", nqn, ""),
                "belongs to the pool a",
            ),
        ] {
            let said = problems(&text);
            assert!(said.contains(message), "{text}\n{said}");
        }
    }
}
