//! Pools on real file systems.

mod crash;
#[path = "../../../tests/common/mount.rs"]
#[allow(
    dead_code,
    reason = "shared with integration tests, each uses its part"
)]
mod mount;
mod volumes;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use mount::Mount;

const PREFIX: &str = "nqn.2025-01.org.example";
const MIB: u64 = 1 << 20;

fn config(path: &Path) -> PoolConfig {
    PoolConfig {
        require_mount: false,
        ..PoolConfig::new("p", path, PREFIX)
    }
}

/// A child of another test's has our files, locks included, from its fork to its exec.
const PATIENCE: Duration = Duration::from_secs(20);

fn open(path: &Path) -> Arc<Pool> {
    Pool::open(config(path), PATIENCE).unwrap().0
}

fn new(name: &str, size_bytes: u64) -> NewVolume {
    NewVolume {
        name: name.to_owned(),
        size_bytes: Some(size_bytes),
        ..NewVolume::default()
    }
}

fn clone_of(name: &str, source: Source) -> NewVolume {
    NewVolume {
        name: name.to_owned(),
        source: Some(source),
        ..NewVolume::default()
    }
}

fn snapshot_of(volume: &str, name: &str) -> NewSnapshot {
    NewSnapshot {
        volume: volume.to_owned(),
        name: name.to_owned(),
        ..NewSnapshot::default()
    }
}

/// All phases of a snapshot.
fn snapshot(pool: &Arc<Pool>, wanted: &[NewSnapshot]) -> Result<CopyReport, PoolError> {
    let mut copies = pool.prepare_snapshots(wanted)?;
    copies.take()?;
    copies.commit().map(|(_, report)| report)
}

/// All phases of a clone.
fn make_clone(pool: &Arc<Pool>, new: &NewVolume) -> Result<CopyReport, PoolError> {
    let mut copies = pool.prepare_clone(new)?;
    copies.take()?;
    copies.commit().map(|(_, report)| report)
}
