//! Eight tasks share one namespace through the `Send` handle: `handle URL`.
//!
//! Each writes blocks of its own in registered memory, flushes, and reads them back; then half of them are discarded. It
//! overwrites the first 8 MiB.

use std::time::Instant;

use nvmf_initiator::handle::{HandleError, Namespace};
use nvmf_initiator::polled::SessionConfig;

const TASKS: u64 = 8;
const TASK_BYTES: u64 = 1 << 20;
const CHUNK_BYTES: u64 = 64 << 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("usage: handle URL")?;
    run(&url, SessionConfig::default()).await
}

/// Connects, lets the tasks do their work, and disconnects.
pub async fn run(url: &str, config: SessionConfig) -> Result<(), Box<dyn std::error::Error>> {
    let disk = Namespace::connect(url, config).await?;
    let info = disk.info();
    println!(
        "{}: {} blocks of {} bytes",
        info.identity, info.blocks, info.block_bytes
    );
    let start = Instant::now();
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| tokio::spawn(write_and_verify(disk.clone(), task)))
        .collect();
    for task in tasks {
        task.await??;
    }
    let (moved, seconds) = (2 * TASKS * TASK_BYTES, start.elapsed().as_secs_f64());
    println!(
        "{:.0} MiB/s written and read",
        moved as f64 / seconds / f64::from(1 << 20)
    );
    let half = TASKS * TASK_BYTES / 2 / u64::from(info.block_bytes);
    disk.discard(0, half).await?;
    disk.close().await;
    Ok(())
}

async fn write_and_verify(disk: Namespace, task: u64) -> Result<(), HandleError> {
    let block_bytes = u64::from(disk.info().block_bytes);
    let chunks = TASK_BYTES / CHUNK_BYTES;
    // One buffer for all of it: it comes back from each operation.
    let mut buffer = disk.alloc(CHUNK_BYTES as u32).await?;
    for chunk in 0..chunks {
        buffer.fill(mark(task, chunk));
        let slba = (task * TASK_BYTES + chunk * CHUNK_BYTES) / block_bytes;
        buffer = disk.write_from(slba, buffer, false).await?;
    }
    disk.flush().await?;
    for chunk in 0..chunks {
        let slba = (task * TASK_BYTES + chunk * CHUNK_BYTES) / block_bytes;
        buffer = disk.read_into(slba, buffer).await?;
        let same = buffer.iter().all(|byte| *byte == mark(task, chunk));
        assert!(same, "task {task}, chunk {chunk} came back different");
    }
    Ok(())
}

/// Different for each chunk.
fn mark(task: u64, chunk: u64) -> u8 {
    (task * 16 + chunk) as u8
}
