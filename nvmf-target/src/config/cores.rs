//! Sets of CPU cores as people write them: `0-3,8`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer};

/// The largest CPU number that a list may name: `CPU_SETSIZE` of Linux's affinity calls, 1024 CPUs.
pub const MAX_CORE: usize = 1023;

/// A non-empty, sorted set of CPU cores, one shard on each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreSet(Vec<usize>);

impl CoreSet {
    /// The cores, ascending.
    pub fn cores(&self) -> &[usize] {
        &self.0
    }
}

/// Why a text is not a list of cores.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoresError {
    /// Not numbers and ranges.
    #[error("{text:?}: {part:?} is not a core or a range of cores; write a list such as 0-3,8")]
    Malformed {
        /// What was written.
        text: String,
        /// The part at fault.
        part: String,
    },
    /// A range whose end lies before its start.
    #[error("{text:?}: the range {part:?} runs backwards; write {suggestion}")]
    Backwards {
        /// What was written.
        text: String,
        /// The range at fault.
        part: String,
        /// The range turned round.
        suggestion: String,
    },
    /// A core that no Linux machine has.
    #[error("{text:?}: there is no core {core}, the largest possible number is {MAX_CORE}")]
    OutOfRange {
        /// What was written.
        text: String,
        /// The number at fault.
        core: usize,
    },
}

impl FromStr for CoreSet {
    type Err = CoresError;

    fn from_str(text: &str) -> Result<Self, CoresError> {
        let mut cores = BTreeSet::new();
        for part in text.split(',').map(str::trim) {
            let number = |digits: &str| {
                digits
                    .trim()
                    .parse::<usize>()
                    .map_err(|_| CoresError::Malformed {
                        text: text.to_owned(),
                        part: part.to_owned(),
                    })
            };
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if last < first {
                return Err(CoresError::Backwards {
                    text: text.to_owned(),
                    part: part.to_owned(),
                    suggestion: format!("{last}-{first}"),
                });
            }
            if last > MAX_CORE {
                return Err(CoresError::OutOfRange {
                    text: text.to_owned(),
                    core: last,
                });
            }
            cores.extend(first..=last);
        }
        Ok(CoreSet(cores.into_iter().collect()))
    }
}

impl fmt::Display for CoreSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_slice();
        let mut separator = "";
        while let [first, ..] = *rest {
            let run_len = rest
                .iter()
                .zip(first..)
                .take_while(|(core, expected)| *core == expected)
                .count();
            match run_len {
                1 => write!(f, "{separator}{first}")?,
                _ => write!(f, "{separator}{first}-{}", first + run_len - 1)?,
            }
            separator = ",";
            rest = &rest[run_len..];
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for CoreSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_merge() {
        let set: CoreSet = "8, 0-3,2".parse().unwrap();
        assert_eq!(set.cores(), [0, 1, 2, 3, 8]);
        assert_eq!(set.to_string(), "0-3,8");
        assert_eq!("5".parse::<CoreSet>().unwrap().to_string(), "5");
    }

    #[test]
    fn each_mistake_says_what_to_write() {
        let message = |text: &str| text.parse::<CoreSet>().unwrap_err().to_string();
        assert_eq!(
            message("a"),
            "\"a\": \"a\" is not a core or a range of cores; write a list such as 0-3,8"
        );
        assert_eq!(
            message(""),
            "\"\": \"\" is not a core or a range of cores; write a list such as 0-3,8"
        );
        assert_eq!(
            message("3-1"),
            "\"3-1\": the range \"3-1\" runs backwards; write 1-3"
        );
        assert_eq!(
            message("0-4096"),
            "\"0-4096\": there is no core 4096, the largest possible number is 1023"
        );
    }
}
