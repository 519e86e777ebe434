//! Making durable what a subsystem's namespaces hold.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::target::Served;

/// Flushes every namespace, each on a thread of its own, since the kernel takes as long as the storage does. Failures are
/// logged; nobody waits for an answer that could carry them.
pub async fn flush(served: &Served) {
    let table = Arc::clone(&served.subsystem.borrow().namespaces);
    let flushes: Vec<_> = table
        .iter()
        .map(|namespace| {
            let backing = Arc::clone(&namespace.backing);
            (namespace.nsid, spawn_blocking(move || backing.sync()))
        })
        .collect();
    for (nsid, flush) in flushes {
        match flush.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(subsystem = %served.info.nqn, namespace = %nsid, "cannot be flushed: {error}");
            }
            Err(error) => {
                tracing::error!(subsystem = %served.info.nqn, namespace = %nsid, "flushing failed: {error}");
            }
        }
    }
}
