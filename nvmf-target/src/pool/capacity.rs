//! How much a pool may promise.
//!
//! A volume can come to take all of its size. A snapshot takes at most what its volume had allocated when it was taken: the
//! blocks that they share cost once now, but twice when the volume overwrites its own. So what a pool has *promised* is the sum of the sizes
//! of its volumes and of the allocated bytes of its snapshots; if that fits, no write to any volume can ever find the pool full.

use super::config::Overcommit;
use super::filesystem::Space;

/// One part in this many is left to the file system for what it notes about extents. With 4 KiB extents everywhere XFS takes some
/// 16 bytes for each in the file's map, 12 for its sharing and 24 for its owner: 1.3 %.
const METADATA_PART: u64 = 50;

/// What a pool holds, and what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The file system.
    pub space: Space,
    /// What the files of volumes and snapshots have allocated; blocks that several share count for each.
    pub allocated_bytes: u64,
    /// What they can come to take.
    pub provisioned_bytes: u64,
    /// Volumes.
    pub volumes: usize,
    /// Snapshots.
    pub snapshots: usize,
}

/// What becomes of a wish for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It fits whatever happens.
    Fits,
    /// It may not fit in the end; granted nevertheless, and to be said.
    Warn,
    /// It may not fit in the end; granted nevertheless.
    Silent,
    /// It may not fit in the end.
    Refuse,
}

impl Usage {
    /// What there is for volumes and snapshots: the file system without what others have in it, and without what it needs itself.
    pub fn limit_bytes(&self) -> u64 {
        let used = self.space.total_bytes - self.space.free_bytes.min(self.space.total_bytes);
        // Shared blocks count for each file, so this sees less of others than there may be; a pool should have its file system for itself.
        let foreign = used.saturating_sub(self.allocated_bytes);
        let left = self.space.total_bytes - foreign;
        left - left / METADATA_PART
    }

    /// Judges a wish for `wanted_bytes` more.
    pub fn judge(&self, wanted_bytes: u64, policy: Overcommit) -> Verdict {
        let promised = self.provisioned_bytes.saturating_add(wanted_bytes);
        match policy {
            _ if promised <= self.limit_bytes() => Verdict::Fits,
            Overcommit::Refuse => Verdict::Refuse,
            Overcommit::Warn => Verdict::Warn,
            Overcommit::Allow => Verdict::Silent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(total: u64, free: u64, allocated: u64, provisioned: u64) -> Usage {
        Usage {
            space: Space {
                total_bytes: total,
                free_bytes: free,
            },
            allocated_bytes: allocated,
            provisioned_bytes: provisioned,
            ..Usage::default()
        }
    }

    #[test]
    fn promises_are_bounded_by_what_others_leave() {
        let empty = usage(1000, 1000, 0, 0);
        assert_eq!(empty.limit_bytes(), 980);
        assert_eq!(usage(1000, 500, 500, 900).limit_bytes(), 980);
        assert_eq!(usage(1000, 400, 100, 900).limit_bytes(), 490);
        assert_eq!(usage(1000, 500, 2000, 900).limit_bytes(), 980);
    }

    #[test]
    fn the_policy_decides_beyond_the_limit() {
        let half = usage(1000, 1000, 0, 500);
        for policy in [Overcommit::Refuse, Overcommit::Warn, Overcommit::Allow] {
            assert_eq!(half.judge(480, policy), Verdict::Fits);
        }
        assert_eq!(half.judge(481, Overcommit::Refuse), Verdict::Refuse);
        assert_eq!(half.judge(481, Overcommit::Warn), Verdict::Warn);
        assert_eq!(half.judge(u64::MAX, Overcommit::Allow), Verdict::Silent);
        assert_eq!(half.judge(u64::MAX, Overcommit::Refuse), Verdict::Refuse);
    }
}
