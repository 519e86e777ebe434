//! Pools in service: volumes as namespaces of subsystems, live.
//!
//! A volume is on disk first and served then; it is served no more first and removed from disk then. So a crash leaves volumes that the next start
//! serves, never a subsystem without a volume. Whatever touches one volume or snapshot is done under its lock, one thing after another; different
//! ones go on side by side. Everything that may block is done on threads that may.

mod access;
mod copies;
mod describe;
mod locks;
mod methods;
mod start;
mod subsystem;
mod volumes;

use std::collections::BTreeMap;
use std::sync::Arc;

use nvmf_rpc::RpcError;
use tokio::task::spawn_blocking;

use super::error::PoolError;
use super::store::Pool;
use crate::control::live::LiveError;
use locks::Locks;

pub use methods::register;

/// All pools of the target.
#[derive(Default)]
pub struct Pools {
    pools: BTreeMap<String, Arc<Pool>>,
    locks: Locks,
}

impl Pools {
    /// The pool of this name.
    fn pool(&self, name: &str) -> Result<&Arc<Pool>, Failure> {
        let pool = self.pools.get(name);
        Ok(pool.ok_or_else(|| PoolError::NoPool(name.to_owned()))?)
    }

    /// The pool of this name, or all where none is named.
    fn pools(&self, name: Option<&str>) -> Result<Vec<Arc<Pool>>, Failure> {
        match name {
            Some(name) => Ok(vec![Arc::clone(self.pool(name)?)]),
            None => Ok(self.pools.values().cloned().collect()),
        }
    }
}

/// Why a method was not carried out.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The pool.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The subsystems.
    #[error(transparent)]
    Live(#[from] LiveError),
    /// Ready to be sent.
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

impl From<Failure> for RpcError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Pool(error) => RpcError::new(error.code(), error.to_string()),
            Failure::Live(error) => error.into(),
            Failure::Rpc(error) => error,
        }
    }
}

/// Does what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PoolError> + Send + 'static,
) -> Result<T, Failure> {
    match spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(RpcError::internal(format!("a pool's thread ended: {error}")).into()),
    }
}
