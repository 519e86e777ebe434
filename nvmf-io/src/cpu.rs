//! Where threads run.

use std::io;
use std::str::FromStr;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Binds the calling thread to one core.
pub fn pin(core: usize) -> io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("core {core} is out of range"),
        ));
    }
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).map_err(|errno| {
        io::Error::new(
            io::Error::from(errno).kind(),
            format!("core {core} cannot be used: {errno}"),
        )
    })
}

/// The cores that the calling thread may run on, in ascending order.
pub fn allowed() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&core| set.is_set(core))
        .collect())
}

/// A list of cores as the kernel writes them: `0,2-5`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreList(pub Vec<usize>);

/// A core list that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no list of cores: write numbers and ranges below {max}, such as 0,2-5", max = CpuSet::MAX_CPU)]
pub struct CoreListError(String);

impl FromStr for CoreList {
    type Err = CoreListError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || CoreListError(text.to_owned());
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: usize = first.trim().parse().map_err(|_| bad())?;
            let last: usize = last.trim().parse().map_err(|_| bad())?;
            if first > last || last >= CpuSet::MAX_CPU {
                return Err(bad());
            }
            cores.extend(first..=last);
        }
        cores.sort_unstable();
        cores.dedup();
        Ok(Self(cores))
    }
}

/// Names the calling thread, as `top -H` and debuggers show it (cut to 15 bytes).
pub fn name_thread(name: &str) {
    let bytes: Vec<u8> = name.bytes().filter(|&byte| byte != 0).take(15).collect();
    if let Ok(name) = std::ffi::CString::new(bytes) {
        // Only a matter of display.
        let _ = rustix::thread::set_name(&name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_lists() {
        assert_eq!("0,2-4, 3".parse(), Ok(CoreList(vec![0, 2, 3, 4])));
        for bad in ["", "a", "3-1", "1-", "0,,1", "99999999", "-1"] {
            assert!(bad.parse::<CoreList>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn pinning_a_thread() {
        std::thread::spawn(|| {
            let core = allowed().unwrap()[0];
            pin(core).unwrap();
            assert_eq!(allowed().unwrap(), [core]);
            assert!(pin(CpuSet::MAX_CPU).is_err());
            name_thread("a-name-longer-than-fifteen-bytes");
            let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
            assert_eq!(name.trim(), "a-name-longer-t");
        })
        .join()
        .unwrap();
    }
}
