//! Where a process can be killed, for tests: every place between two side effects has a name here, and a test's child
//! process ends itself there. Nothing of it is in a build that is not a test.

/// The environment variable with the number of the step, from 1, at which the process kills itself.
#[cfg(test)]
pub const KILL_AT: &str = "NVMF_POOL_KILL_AT";

/// A place between two side effects.
#[cfg(not(test))]
#[inline(always)]
pub fn step(_name: &str) {}

/// A place between two side effects.
#[cfg(test)]
pub fn step(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let Ok(kill_at) = std::env::var(KILL_AT) else {
        return;
    };
    let passed = PASSED.fetch_add(1, Ordering::Relaxed) + 1;
    if kill_at == passed.to_string() {
        eprintln!("killed after: {name}");
        let me = rustix::process::getpid();
        let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
    }
}
