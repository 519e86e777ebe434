//! One call on a volume at a time; others on the same one wait.
//!
//! A call that is made twice at once is so carried out once, and found done by the second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

/// The locks. Those that nobody holds take no room for longer than until the next is taken.
#[derive(Debug, Default)]
pub struct Locks {
    by_key: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Locks {
    /// Waits until nobody else holds the lock of `key`.
    pub async fn hold(&self, key: &str) -> OwnedMutexGuard<()> {
        let lock = {
            // The map is whole whatever panicked while it was locked.
            let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
            by_key.retain(|_, lock| lock.strong_count() > 0);
            match by_key.get(key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(tokio::sync::Mutex::new(()));
                    by_key.insert(key.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_same_waits_and_another_does_not() {
        let locks = Locks::default();
        let held = locks.hold("a").await;
        let _other = locks.hold("b").await;
        let mut second = Box::pin(locks.hold("a"));
        let waits = std::future::poll_fn(|context| {
            std::task::Poll::Ready(second.as_mut().poll(context).is_pending())
        });
        assert!(waits.await);
        drop(held);
        drop(second.await);
        let _third = locks.hold("c").await;
        assert_eq!(locks.by_key.lock().unwrap().len(), 2);
    }
}
