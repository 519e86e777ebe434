//! One lock for each thing that methods work on.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use tokio::sync::{Mutex, OwnedMutexGuard};

/// What can be locked. Locks are taken in the order of their names, so that no two methods wait for each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// A subsystem that volumes share, by NQN.
    Subsystem(String),
    /// A volume, by pool and name.
    Volume(String, String),
    /// A snapshot, by pool and name.
    Snapshot(String, String),
}

/// The locks in use.
#[derive(Debug, Default)]
pub(super) struct Locks(RefCell<BTreeMap<Key, Weak<Mutex<()>>>>);

/// Locks that are held until this is dropped.
#[derive(Debug)]
pub(super) struct Held(
    #[expect(dead_code, reason = "held, not looked at")] Vec<OwnedMutexGuard<()>>,
);

impl Locks {
    /// Waits for all of them.
    pub(super) async fn take(&self, mut keys: Vec<Key>) -> Held {
        keys.sort();
        keys.dedup();
        let mut held = Vec::new();
        for key in keys {
            let lock = self.get(key);
            held.push(lock.lock_owned().await);
        }
        Held(held)
    }

    fn get(&self, key: Key) -> Arc<Mutex<()>> {
        let mut locks = self.0.borrow_mut();
        locks.retain(|_, lock| lock.strong_count() > 0);
        let known = locks.get(&key).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let lock = Arc::new(Mutex::new(()));
            locks.insert(key, Arc::downgrade(&lock));
            lock
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str) -> Key {
        Key::Volume("p".into(), name.into())
    }

    #[tokio::test]
    async fn the_same_waits_and_others_do_not() {
        let locks = Locks::default();
        let held = locks
            .take(vec![volume("a"), volume("b"), volume("a")])
            .await;
        let _other = locks.take(vec![volume("c")]).await;
        let mut waiting = Box::pin(locks.take(vec![volume("c2"), volume("b")]));
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("taken twice"),
            () = std::future::ready(()) => {}
        }
        drop(held);
        drop(waiting.await);
        drop(_other);
        locks.get(volume("z"));
        assert_eq!(locks.0.borrow().len(), 1, "unused locks are forgotten");
    }
}
