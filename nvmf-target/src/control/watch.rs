//! Looking from time to time at the storage below the namespaces: whether somebody deleted or truncated a file that is served. No
//! command would tell of a deleted file; of a truncated one only writes and reads past its end do.

use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::target::Target;

/// How long a deletion may go unnoticed. Each look is a few system calls for each namespace: far too rare to count as load.
const WATCH_PERIOD_MS: u64 = 2_000;

/// Inspects every backing until the target is gone or stops. On a thread of its own, since storage that hangs must hold up nobody.
pub async fn watch(target: Weak<Target>) {
    loop {
        sleep(Duration::from_millis(WATCH_PERIOD_MS)).await;
        let Some(backings) = target.upgrade().and_then(|target| backings(&target)) else {
            return;
        };
        let looked = spawn_blocking(move || backings.iter().for_each(|backing| backing.inspect()));
        if let Err(error) = looked.await {
            tracing::error!("looking at the storage failed: {error}");
        }
    }
}

/// What all namespaces lie on now, or nothing once the target stops.
fn backings(target: &Rc<Target>) -> Option<Vec<Arc<crate::backend::Backing>>> {
    if target.stopping.get() {
        return None;
    }
    let served = target.subsystems();
    let tables = served
        .iter()
        .map(|served| Arc::clone(&served.subsystem.borrow().namespaces));
    Some(
        tables
            .flat_map(|table| {
                table
                    .iter()
                    .map(|namespace| Arc::clone(&namespace.backing))
                    .collect::<Vec<_>>()
            })
            .collect(),
    )
}
