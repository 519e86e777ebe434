//! A program in a pod, which writes down a sequence and knows what was acknowledged.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::rig::until;

/// Each entry of the sequence fills a block.
const ENTRY_BYTES: usize = 4096;

/// What is told to the test.
#[derive(Default)]
struct Progress {
    /// Entries that are being written, or were.
    begun: AtomicU64,
    /// Entries that were synced.
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

/// Writes in two ways at once: entries appended to a log, and the number of the last one in two files, one after the other, each
/// step synced before the next.
pub struct Writer {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

fn log(folder: &Path) -> PathBuf {
    folder.join("log")
}

fn counters(folder: &Path) -> [PathBuf; 2] {
    [folder.join("first"), folder.join("second")]
}

impl Writer {
    /// Writes in a folder until it is stopped.
    pub fn start(folder: &str) -> Writer {
        let progress = Arc::new(Progress::default());
        let folder = PathBuf::from(folder);
        let thread = std::thread::spawn({
            let progress = progress.clone();
            move || {
                let mut log = File::create(log(&folder))?;
                let counters = counters(&folder).map(File::create);
                let [first, second] = counters;
                let counters = [first?, second?];
                for counter in &counters {
                    counter.write_all_at(&0_u64.to_le_bytes(), 0)?;
                    counter.sync_all()?;
                }
                File::open(&folder)?.sync_all()?;
                for entry in 0_u64.. {
                    if progress.stop.load(Ordering::SeqCst) {
                        break;
                    }
                    progress.begun.store(entry + 1, Ordering::SeqCst);
                    log.write_all(&bytes(entry))?;
                    log.sync_data()?;
                    for counter in &counters {
                        counter.write_all_at(&(entry + 1).to_le_bytes(), 0)?;
                        counter.sync_data()?;
                    }
                    progress.acknowledged.store(entry + 1, Ordering::SeqCst);
                }
                Ok(())
            }
        });
        Writer {
            progress,
            thread: Some(thread),
        }
    }

    /// How many entries were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.progress.acknowledged.load(Ordering::SeqCst)
    }

    /// How many were begun.
    pub fn begun(&self) -> u64 {
        self.progress.begun.load(Ordering::SeqCst)
    }

    /// Waits until so many more entries were acknowledged.
    pub fn goes_on(&self, entries: u64) {
        let from = self.acknowledged();
        until("the writer", || {
            self.acknowledged() >= from + entries || self.has_ended()
        });
        assert!(!self.has_ended(), "the writer ended");
    }

    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Stops it; how it ended.
    pub fn end(mut self) -> io::Result<()> {
        self.progress.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.progress.stop.store(true, Ordering::SeqCst);
    }
}

/// An entry: its number, over and over.
fn bytes(entry: u64) -> Vec<u8> {
    entry.to_le_bytes().repeat(ENTRY_BYTES / size_of::<u64>())
}

/// Reads what a writer left in a folder: how many entries there are. Each must be whole, and all must be of one instant: nothing is
/// there without what was synced before it.
pub fn entries(folder: &str) -> u64 {
    let folder = Path::new(folder);
    let log = fs::read(log(folder)).unwrap();
    let number = |path: PathBuf| u64::from_le_bytes(fs::read(path).unwrap().try_into().unwrap());
    let [first, second] = counters(folder).map(number);
    assert!(
        second <= first && first <= second + 1,
        "counters of different instants: {first}, {second}"
    );
    // The file's size is made durable with the data that it has, and one entry may be on its way.
    let whole = log.len() / ENTRY_BYTES;
    let count = whole as u64;
    assert!(
        first <= count && count <= first + 1,
        "{count} entries, and {first} counted"
    );
    for (entry, block) in (0..first).zip(log.chunks(ENTRY_BYTES)) {
        assert!(block == bytes(entry), "entry {entry} is damaged");
    }
    first
}
