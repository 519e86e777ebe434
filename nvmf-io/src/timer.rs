//! Deadlines: a small heap that tells a loop until when it may sleep.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;
use std::time::Instant;

/// Deadlines by key; a key has at most one.
///
/// ```
/// use std::time::{Duration, Instant};
/// use nvmf_io::timer::Timers;
/// let start = Instant::now();
/// let mut timers = Timers::new();
/// timers.set("keep-alive", start + Duration::from_millis(20));
/// timers.set("reconnect", start + Duration::from_millis(10));
/// timers.set("keep-alive", start + Duration::from_millis(5));
/// assert_eq!(timers.next_deadline(), Some(start + Duration::from_millis(5)));
/// assert_eq!(timers.expired(start + Duration::from_millis(7)), Some("keep-alive"));
/// assert_eq!(timers.expired(start + Duration::from_millis(7)), None);
/// timers.cancel(&"reconnect");
/// assert_eq!(timers.next_deadline(), None);
/// ```
#[derive(Debug)]
pub struct Timers<K> {
    /// May hold entries that were set anew or cancelled; `current` says which count.
    heap: BinaryHeap<Reverse<(Instant, u64)>>,
    current: HashMap<K, (Instant, u64)>,
    keys: HashMap<u64, K>,
    next_id: u64,
}

impl<K: Clone + Eq + Hash> Timers<K> {
    /// No deadlines.
    pub fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            current: HashMap::new(),
            keys: HashMap::new(),
            next_id: 0,
        }
    }

    /// Sets the deadline of `key`, in place of an earlier one.
    pub fn set(&mut self, key: K, at: Instant) {
        self.cancel(&key);
        let id = self.next_id;
        self.next_id += 1;
        self.heap.push(Reverse((at, id)));
        self.current.insert(key.clone(), (at, id));
        self.keys.insert(id, key);
    }

    /// Forgets the deadline of `key`.
    pub fn cancel(&mut self, key: &K) {
        if let Some((_, id)) = self.current.remove(key) {
            self.keys.remove(&id);
        }
        // Entries that no longer count are bounded by those that do.
        if self.heap.len() > 2 * self.current.len() + 16 {
            let keys = &self.keys;
            self.heap.retain(|Reverse((_, id))| keys.contains_key(id));
        }
    }

    /// The nearest deadline.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        while let Some(&Reverse((at, id))) = self.heap.peek() {
            if self.keys.contains_key(&id) {
                return Some(at);
            }
            self.heap.pop();
        }
        None
    }

    /// A key whose deadline has come, which is then forgotten; call it until there is none.
    pub fn expired(&mut self, now: Instant) -> Option<K> {
        if self.next_deadline()? > now {
            return None;
        }
        let Reverse((_, id)) = self.heap.pop()?;
        let key = self.keys.remove(&id)?;
        self.current.remove(&key);
        Some(key)
    }
}

impl<K: Clone + Eq + Hash> Default for Timers<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn setting_anew_does_not_grow() {
        let start = Instant::now();
        let mut timers = Timers::new();
        for step in 0..10_000 {
            timers.set(step % 3, start + Duration::from_millis(step));
        }
        assert!(timers.heap.len() < 64, "{}", timers.heap.len());
        let mut order = Vec::new();
        while let Some(key) = timers.expired(start + Duration::from_secs(60)) {
            order.push(key);
        }
        assert_eq!(
            order,
            [1, 2, 0],
            "in the order of their last deadlines: 9997, 9998, 9999"
        );
    }
}
