//! Who uses a volume.
//!
//! dockerd refers to a mount by an ID, and does so in ways that a plain set of IDs does not bear:
//! - the same ID is mounted more than once (`docker cp` takes that of the running container), so each ID has a count;
//! - a dockerd that was killed never unmounts. The next one announces itself (Activate comes once in each dockerd's life),
//!   and may mount under an ID of the one before. So references belong to an *epoch*, the life of one dockerd. Those of
//!   earlier epochs are *doubtful*: with `--live-restore` their containers still run and will be unmounted under the old ID;
//!   without it nobody will ever speak of them again. Which of both it is, the kernel knows: a container that runs has the
//!   volume mounted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The references to one volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct References {
    /// By epoch, then by ID: how often. No count is 0, no inner map is empty.
    epochs: BTreeMap<u64, BTreeMap<String, u64>>,
}

impl References {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.epochs.is_empty()
    }

    /// All of them, doubtful ones included.
    pub fn count(&self) -> u64 {
        self.epochs.values().flat_map(BTreeMap::values).sum()
    }

    /// One more.
    pub fn add(&mut self, epoch: u64, id: &str) {
        *self
            .epochs
            .entry(epoch)
            .or_default()
            .entry(id.to_owned())
            .or_default() += 1;
    }

    /// One less, of this epoch if it has one, else of the latest that does. Whether there was one.
    pub fn remove(&mut self, epoch: u64, id: &str) -> bool {
        let having = self
            .epochs
            .iter()
            .filter(|(_, ids)| ids.contains_key(id))
            .map(|(epoch, _)| *epoch);
        let Some(found) = having.max_by_key(|&found| (found == epoch, found)) else {
            return false;
        };
        let ids = self.epochs.get_mut(&found).expect("found above");
        let count = ids.get_mut(id).expect("found above");
        *count -= 1;
        if *count == 0 {
            ids.remove(id);
        }
        if ids.is_empty() {
            self.epochs.remove(&found);
        }
        true
    }

    /// Whether nobody of this epoch refers to the volume, but somebody of an earlier one did.
    pub fn are_doubtful(&self, epoch: u64) -> bool {
        !self.is_empty() && !self.epochs.contains_key(&epoch)
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.epochs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_counts_as_often_as_it_was_mounted() {
        let mut references = References::default();
        references.add(1, "a");
        references.add(1, "a");
        assert!(references.remove(1, "a"));
        assert_eq!(references.count(), 1);
        assert!(references.remove(1, "a"));
        assert!(references.is_empty());
        assert!(!references.remove(1, "a"), "one too many");
    }

    #[test]
    fn ids_that_were_never_mounted_take_nothing_away() {
        let mut references = References::default();
        references.add(1, "a");
        assert!(!references.remove(1, "b"));
        assert_eq!(references.count(), 1);
    }

    #[test]
    fn after_a_kill_of_dockerd_its_references_are_doubtful() {
        let mut references = References::default();
        references.add(1, "a");
        references.add(1, "b");
        assert!(!references.are_doubtful(1));
        assert!(references.are_doubtful(2));
        // The container is started again, under the ID that it had.
        references.add(2, "a");
        assert!(!references.are_doubtful(2));
        assert!(references.remove(2, "a"));
        assert!(
            references.are_doubtful(2),
            "what the killed dockerd mounted remains"
        );
        assert_eq!(references.count(), 2);
        references.clear();
        assert!(references.is_empty() && !references.are_doubtful(2));
    }

    #[test]
    fn with_live_restore_the_old_id_is_unmounted_by_the_new_dockerd() {
        let mut references = References::default();
        references.add(1, "a");
        // docker cp, of the container that runs on.
        references.add(2, "a");
        assert!(references.remove(2, "a"));
        assert_eq!(references.count(), 1);
        assert!(references.remove(2, "a"), "the container's end");
        assert!(references.is_empty());
    }
}
