//! Dropping a ring: nothing that the kernel may still touch is freed.

use std::time::{Duration, Instant};

use io_uring::{opcode, types::CancelBuilder};

use super::slab::IGNORED;
use super::{Ring, Wait};

/// How long operations get to end once they are cancelled. Only file I/O in the hands of a device cannot be
/// cancelled, and the kernel's own block-layer time-out (30 s by default) ends that.
pub(super) const DRAIN_LIMIT: Duration = Duration::from_secs(60);

impl Ring {
    /// Ends all operations; false when some did not end within `limit`.
    fn drain(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        for index in std::mem::take(&mut self.starved) {
            self.ops.remove(index);
        }
        while self.ops.live() > 0 {
            self.cancel_all();
            // New completions may start retries, so cancel again after each round.
            let round = (Instant::now() + Duration::from_millis(100)).min(deadline);
            if self.wait(Wait::Until(round)).is_err() {
                return false;
            }
            while let Some(completion) = self.next() {
                drop(completion);
            }
            for index in std::mem::take(&mut self.starved) {
                self.ops.remove(index);
            }
            if Instant::now() >= deadline {
                return self.ops.live() == 0;
            }
        }
        true
    }

    fn cancel_all(&mut self) {
        if self.features.deferred {
            let entry = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
            self.push_cancel(entry.user_data(IGNORED));
        } else {
            // Cancelling everything at once came with 5.19; older kernels are asked one by one.
            let keys: Vec<u64> = self
                .ops
                .indices()
                .map(|index| self.ops.key(index))
                .collect();
            for key in keys {
                self.push_cancel(opcode::AsyncCancel::new(key).build().user_data(IGNORED));
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.drain(DRAIN_LIMIT) {
            // SAFETY: neither field is used again. The kernel has no operation left; closing the ring also ends its
            // use of the receive buffers, which are freed after this with `rx`.
            unsafe {
                std::mem::ManuallyDrop::drop(&mut self.uring);
                std::mem::ManuallyDrop::drop(&mut self.ops);
            }
        } else {
            tracing::error!(
                in_flight = self.ops.live(),
                "operations of a dropped ring did not end; their memory is leaked"
            );
            // Buffers are kept by the operations in the slab, which stays; the receive buffers are kept here.
            std::mem::forget(self.rx.clone());
        }
    }
}
