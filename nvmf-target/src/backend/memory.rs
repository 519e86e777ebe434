//! Memory and null namespaces: done at once, in the turn in which the command arrives.

use nvme_proto::wire::Status;
use nvmf_io::mem::SharedMemory;

use super::command::{BackendOp, Ranges};
use super::work::{Digest, Task};

/// Executes a command on memory.
pub fn execute(memory: &SharedMemory, task: &mut Task<'_>) -> Status {
    let end = |offset_bytes: u64, len_bytes: u64| offset_bytes..offset_bytes + len_bytes;
    match (task.work.op, task.data) {
        (
            BackendOp::Read {
                offset_bytes,
                len_bytes,
                ..
            },
            Some(data),
        ) => {
            match task.work.digest {
                Digest::Unwanted => memory.read(offset_bytes, data, 0..len_bytes),
                Digest::Wanted | Digest::Known(_) => {
                    let crc = memory.read_summed(offset_bytes, data, 0..len_bytes);
                    task.work.digest = Digest::Known(crc);
                }
            }
            Status::SUCCESS
        }
        (
            BackendOp::Write {
                offset_bytes,
                len_bytes,
                ..
            },
            Some(data),
        ) => {
            memory.write(offset_bytes, data, 0..len_bytes);
            Status::SUCCESS
        }
        (
            BackendOp::Compare {
                offset_bytes,
                len_bytes,
            },
            Some(data),
        ) => match memory.equals(offset_bytes, data, 0..len_bytes) {
            true => Status::SUCCESS,
            false => Status::COMPARE_FAILURE.dnr(),
        },
        (
            BackendOp::WriteZeroes {
                offset_bytes,
                len_bytes,
                ..
            },
            _,
        ) => clear(memory, end(offset_bytes, len_bytes)),
        (BackendOp::Deallocate { ranges }, Some(data)) => {
            let ranges = Ranges::new(data, ranges, &task.geometry);
            if let Err(status) = ranges.check() {
                return status;
            }
            (0..)
                .map_while(|index| ranges.get(index))
                .map(|(offset_bytes, len_bytes)| clear(memory, end(offset_bytes, len_bytes)))
                .find(|status| !status.is_success())
                .unwrap_or(Status::SUCCESS)
        }
        (BackendOp::Flush | BackendOp::Verify { .. } | BackendOp::Nothing, _) => Status::SUCCESS,
        (op, None) => {
            tracing::error!(
                ?op,
                "a command that moves data reached its backing without a buffer"
            );
            Status::INTERNAL_ERROR
        }
    }
}

fn clear(memory: &SharedMemory, range: std::ops::Range<u64>) -> Status {
    match memory.clear(range) {
        Ok(()) => Status::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "memory cannot be given back");
            Status::INTERNAL_ERROR
        }
    }
}

/// Executes a command on the null namespace: every block reads as zeroes and stays so. The caller sends zeroes for a read.
pub fn execute_null(task: &Task<'_>) -> Status {
    match (task.work.op, task.data) {
        (BackendOp::Compare { len_bytes, .. }, Some(data)) if !data.is_zero(0..len_bytes) => {
            Status::COMPARE_FAILURE.dnr()
        }
        (BackendOp::Deallocate { ranges }, Some(data)) => {
            let checked = Ranges::new(data, ranges, &task.geometry).check();
            checked.err().unwrap_or(Status::SUCCESS)
        }
        _ => Status::SUCCESS,
    }
}
