//! Which target and pool a new volume goes to: where it can be reached from where it is needed, and then where there is most room.

use std::cmp::Reverse;

use nvmf_rpc::error::code;
use nvmf_rpc::types::{GetPools, Overcommit, Pool};
use tonic::Status;

use super::Inner;
use super::parameters;
use super::target::Target;
use super::targets::{Targets, each};
use crate::Result;
use crate::access::Access;
use crate::names::Id;
use crate::proto::*;
use crate::size::signed;
use crate::status::of_target;

/// Where a volume may be.
#[derive(Debug, Clone)]
pub struct Scope {
    targets: Vec<Target>,
    pool: Option<String>,
    /// From where it should be reached, best first.
    preferred: Vec<Topology>,
}

impl Scope {
    /// Whether it may be on this target.
    pub fn has(&self, target: &Target) -> bool {
        self.targets.iter().any(|one| one.name() == target.name())
    }

    /// Whether it may be in this pool of this target.
    pub fn holds(&self, target: &Target, pool: &str) -> bool {
        self.has(target) && self.pool.as_ref().is_none_or(|only| only == pool)
    }

    /// How well a target is placed; less is better.
    fn rank(&self, target: &Target) -> usize {
        let first = self.preferred.iter().position(|t| target.is_within(t));
        first.unwrap_or(self.preferred.len())
    }
}

/// What a pool has for more volumes, in bytes.
fn available_bytes(pool: &Pool) -> u64 {
    match pool.overcommit {
        // What is promised and not yet taken is not there for others.
        Overcommit::Refuse => {
            let promised = pool.provisioned_bytes.saturating_sub(pool.allocated_bytes);
            pool.free_bytes.saturating_sub(promised)
        }
        Overcommit::Warn | Overcommit::Allow => pool.free_bytes,
    }
}

/// Whether a pool would take a volume of that size if it were empty.
fn could_hold(pool: &Pool, size_bytes: u64) -> bool {
    pool.overcommit != Overcommit::Refuse || size_bytes <= pool.total_bytes
}

/// Whether it would take it now.
fn has_room(pool: &Pool, size_bytes: u64) -> bool {
    pool.overcommit != Overcommit::Refuse || size_bytes <= available_bytes(pool)
}

impl Targets {
    /// Anywhere.
    pub fn everywhere(&self) -> Scope {
        Scope {
            targets: self.all().to_vec(),
            pool: None,
            preferred: Vec::new(),
        }
    }

    /// Where a volume may be: on this target and in this pool, where they are named, and reachable from where it must be.
    pub fn scope(
        &self,
        target: Option<&str>,
        pool: Option<String>,
        wanted: Option<&TopologyRequirement>,
    ) -> Result<Scope> {
        let mut scope = Scope {
            pool,
            ..self.everywhere()
        };
        if let Some(name) = target {
            if self.named(name).is_none() {
                return Err(Status::invalid_argument(format!(
                    "parameter target: there is no target {name}; there are {}",
                    self.names()
                )));
            }
            scope.targets.retain(|target| target.name() == name);
        }
        if let Some(wanted) = wanted {
            let of_one = |target: &Target| format!("{:?}", target.about().topology);
            let there: Vec<_> = scope.targets.iter().map(of_one).collect();
            scope.targets.retain(|target| {
                let mut requisite = wanted.requisite.iter();
                wanted.requisite.is_empty() || requisite.any(|topology| target.is_within(topology))
            });
            if scope.targets.is_empty() {
                return Err(Status::resource_exhausted(format!(
                    "volumes can be reached from {} alone",
                    there.join(" and ")
                )));
            }
            scope.preferred = wanted.preferred.clone();
        }
        Ok(scope)
    }

    /// The pools where a volume may be.
    pub async fn pools(&self, scope: &Scope) -> Result<Vec<(Target, Pool)>> {
        let params = GetPools {
            name: scope.pool.clone(),
        };
        let mut found = Vec::new();
        for (target, answer) in each(&scope.targets, &params, |_| None).await? {
            let pools = match answer {
                Err(error) if error.code() == Some(code::NOT_FOUND) => Vec::new(),
                answer => answer.map_err(|error| of_target(&error))?,
            };
            found.extend(pools.into_iter().map(|pool| (target.clone(), pool)));
        }
        Ok(found)
    }

    /// The target and the pool for a new volume.
    pub async fn place(&self, scope: &Scope, size_bytes: u64) -> Result<(Target, String)> {
        let pools = self.pools(scope).await?;
        let most = pools.iter().map(|(_, pool)| pool.total_bytes).max();
        let Some(most) = most else {
            let names: Vec<_> = scope.targets.iter().map(Target::name).collect();
            let names = names.join(", ");
            return Err(match &scope.pool {
                // A StorageClass names it, and no volume.
                Some(pool) => Status::invalid_argument(format!(
                    "there is no pool {pool} (targets asked: {names})"
                )),
                None => Status::failed_precondition(format!(
                    "there is no pool (targets asked: {names}): add [pool.NAME] to the configuration"
                )),
            });
        };
        if !pools.iter().any(|(_, pool)| could_hold(pool, size_bytes)) {
            return Err(Status::out_of_range(format!(
                "{size_bytes} bytes are more than any pool has in all ({most})"
            )));
        }
        let best = pools.into_iter().min_by_key(|(target, pool)| {
            (
                !has_room(pool, size_bytes),
                scope.rank(target),
                Reverse(available_bytes(pool)),
            )
        });
        // There is one: checked above.
        let (target, pool) = best.ok_or_else(|| Status::internal("no pool"))?;
        Ok((target, pool.name))
    }
}

impl Inner {
    /// Refuses a size that the pool of a volume could never hold.
    pub(super) async fn check_size(&self, id: &Id, size_bytes: u64) -> Result<()> {
        let pool = Some(id.pool.clone());
        let scope = self.targets.scope(Some(&id.target), pool, None)?;
        for (_, pool) in self.targets.pools(&scope).await? {
            if !could_hold(&pool, size_bytes) {
                return Err(Status::out_of_range(format!(
                    "{size_bytes} bytes are more than pool {} has in all ({})",
                    pool.name, pool.total_bytes
                )));
            }
        }
        Ok(())
    }

    /// Of all targets and pools where a volume with these parameters could be made; the largest has room for one in one pool.
    pub(super) async fn capacity(
        &self,
        request: GetCapacityRequest,
    ) -> Result<GetCapacityResponse> {
        if !request.volume_capabilities.is_empty() {
            Access::all(&request.volume_capabilities)?;
        }
        let parameters = parameters::read(&request.parameters)?;
        let pool = parameters.pool.or_else(|| self.settings.pool.clone());
        let mut scope = self
            .targets
            .scope(parameters.target.as_deref(), pool, None)?;
        if let Some(topology) = &request.accessible_topology {
            scope.targets.retain(|target| target.is_within(topology));
            if scope.targets.is_empty() {
                return Ok(GetCapacityResponse::default());
            }
        }
        let pools = self.targets.pools(&scope).await?;
        let available = || pools.iter().map(|(_, pool)| available_bytes(pool));
        Ok(GetCapacityResponse {
            available_capacity: signed(available().fold(0, u64::saturating_add)),
            maximum_volume_size: Some(signed(available().max().unwrap_or(0))),
            minimum_volume_size: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(overcommit: Overcommit, free_bytes: u64, promised_bytes: u64) -> Pool {
        Pool {
            name: "p".into(),
            path: "/p".into(),
            fs_type: "xfs".into(),
            reflink: true,
            nqn_prefix: "nqn.2024-01.org.example".into(),
            overcommit,
            total_bytes: 100,
            free_bytes,
            allocated_bytes: 10,
            provisioned_bytes: 10 + promised_bytes,
            volumes: 1,
            snapshots: 0,
        }
    }

    #[test]
    fn what_is_promised_is_there_for_nobody_else() {
        let strict = pool(Overcommit::Refuse, 80, 50);
        assert_eq!(available_bytes(&strict), 30);
        assert!(has_room(&strict, 30) && !has_room(&strict, 31));
        assert!(could_hold(&strict, 100) && !could_hold(&strict, 101));
        assert_eq!(available_bytes(&pool(Overcommit::Refuse, 10, 50)), 0);
        let lenient = pool(Overcommit::Allow, 80, 50);
        assert_eq!(available_bytes(&lenient), 80);
        assert!(has_room(&lenient, 1000) && could_hold(&lenient, 1000));
    }
}
