//! Which hosts may use a volume.
//!
//! The record is changed first, so that after a crash nobody is let in who was shut out. Volumes that share a subsystem have their hosts
//! in common, since a host connects to a subsystem and sees all of its namespaces.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use nvmf_rpc::types;

use super::subsystem::{access, common_hosts, nqn_of, parse_host};
use super::{Failure, Pools, blocking};
use crate::control::live::{self, Owner};
use crate::control::target::Target;

impl Pools {
    /// `pool_add_host`.
    pub(super) async fn add_host(
        &self,
        target: &Rc<Target>,
        params: types::AddHost,
    ) -> Result<types::Volume, Failure> {
        parse_host(&params.host)?;
        let host = params.host;
        self.change_hosts(target, &params.pool, &params.name, move |hosts| {
            hosts.insert(host);
        })
        .await
    }

    /// `pool_remove_host`: the host's controllers are gone and its writes have finished when this ends.
    pub(super) async fn remove_host(
        &self,
        target: &Rc<Target>,
        params: types::RemoveHost,
    ) -> Result<types::Volume, Failure> {
        let host = params.host;
        self.change_hosts(target, &params.pool, &params.name, move |hosts| {
            hosts.remove(&host);
        })
        .await
    }

    async fn change_hosts(
        &self,
        target: &Rc<Target>,
        pool: &str,
        name: &str,
        change: impl FnOnce(&mut BTreeSet<String>),
    ) -> Result<types::Volume, Failure> {
        let pool = Arc::clone(self.pool(pool)?);
        // All of them: while a snapshot of one is taken nobody changes its record.
        let (_held, members) = self.lock_sharers(&pool, name).await?;
        let nqn = nqn_of(&members[0].1)?;
        let mut hosts = common_hosts(&members);
        change(&mut hosts);
        for (pool, member) in members {
            let (pool, hosts) = (Arc::clone(self.pool(&pool)?), hosts.clone());
            blocking(move || pool.set_hosts(&member.name, hosts)).await?;
        }
        // Also where nothing changed: an earlier call may not have come this far.
        live::set_hosts(target, Owner::Pool, &nqn, access(&hosts)?).await?;
        let now = pool.volume(name)?;
        self.describe(target, &pool, now).await
    }
}
