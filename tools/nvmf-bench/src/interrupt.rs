//! Ctrl-C: the first ends what runs, so that what was measured is still printed; the second ends the process.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// What the process exits with, as shells have it for SIGINT.
pub const EXIT: u8 = 130;

static CAME: AtomicBool = AtomicBool::new(false);

/// Whether there was one.
pub fn came() -> bool {
    CAME.load(Ordering::Relaxed)
}

/// Watches for SIGINT on a thread of its own.
pub fn watch() -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let mut signals = {
        let _in_runtime = runtime.enter();
        signal(SignalKind::interrupt())?
    };
    let wait = move || {
        runtime.block_on(signals.recv());
        CAME.store(true, Ordering::Relaxed);
        eprintln!("\nnvmf-bench: interrupted: ending what is in flight; again to end at once");
        runtime.block_on(signals.recv());
        std::process::exit(EXIT.into());
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)?;
    Ok(())
}
