//! What the user asked for: the command line ([`cli`]) or a TOML file ([`file`]), checked and with defaults filled in.
//!
//! A [`Config`] is complete and consistent in itself: names have the right form, nothing is given twice, every limit lies in
//! its range. Nothing here opens a backing or a socket, so that `--check` and a reload can judge a file without side
//! effects. All problems are collected before anything is reported: one run shows every mistake.

pub mod address;
pub mod cli;
pub mod cores;
pub mod file;
pub mod identity;
pub mod limits;
pub mod nqn;
pub mod problem;
pub mod rules;
pub mod size;

use std::collections::BTreeSet;
use std::path::PathBuf;

use uuid::Uuid;

pub use address::TcpAddress;
pub use cores::CoreSet;
pub use limits::{KeepAliveBounds, Limits, TcpOptions};
pub use problem::{Problem, Problems};
pub use size::ByteSize;

/// Everything that decides how the target serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where to listen; never empty.
    pub listeners: Vec<TcpAddress>,
    /// The subsystems, NQNs distinct.
    pub subsystems: Vec<SubsystemConfig>,
    /// Other discovery services to point hosts at.
    pub referrals: Vec<TcpAddress>,
    /// Bounds on what hosts may use.
    pub limits: Limits,
    /// The transport's options.
    pub tcp: TcpOptions,
    /// Which keep-alive timeouts are granted.
    pub keep_alive: KeepAliveBounds,
    /// The cores to pin shards to; `None` for unpinned shards, as many as the process may use cores.
    pub cores: Option<CoreSet>,
    /// How long a shard spins for work before it sleeps.
    pub busy_poll_us: u32,
}

/// One NVM subsystem.
#[derive(Clone, Debug, PartialEq)]
pub struct SubsystemConfig {
    /// Its NQN.
    pub nqn: String,
    /// Its serial number; derived from machine and NQN when absent.
    pub serial: Option<String>,
    /// Its model number.
    pub model: String,
    /// Who may connect.
    pub hosts: HostRules,
    /// Its namespaces, NSIDs distinct.
    pub namespaces: Vec<NamespaceConfig>,
}

/// Which hosts a subsystem admits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostRules {
    /// Everyone.
    Any,
    /// The hosts of this list, and nobody if it is empty.
    Only(BTreeSet<String>),
}

/// One namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct NamespaceConfig {
    /// Its identifier in the subsystem, from 1.
    pub nsid: u32,
    /// Where its blocks are.
    pub storage: Storage,
    /// 512 or 4096; `None` for what the storage's direct I/O alignment asks.
    pub block_bytes: Option<u32>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Its UUID; derived when absent.
    pub uuid: Option<Uuid>,
    /// Its NGUID; the bytes of the UUID when absent.
    pub nguid: Option<[u8; 16]>,
    /// Its EUI-64; none when absent.
    pub eui64: Option<[u8; 8]>,
}

/// What holds a namespace's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// A regular file. With a size the file is made when it is missing and extended when it is shorter.
    File {
        /// The file.
        path: PathBuf,
        /// The size it must have.
        size_bytes: Option<u64>,
    },
    /// A block device.
    Block {
        /// The device node.
        path: PathBuf,
    },
    /// A local NVMe namespace, its commands passed through.
    Passthru {
        /// The generic character device, `/dev/ngXnY`.
        path: PathBuf,
    },
    /// Memory of this process, zeroes at each start.
    Memory {
        /// Its size.
        size_bytes: u64,
    },
    /// Nothing: reads give zeroes, writes vanish.
    Null {
        /// Its size.
        size_bytes: u64,
    },
}

impl Storage {
    /// The word for it in files and on the command line.
    pub fn kind(&self) -> &'static str {
        match self {
            Storage::File { .. } => "file",
            Storage::Block { .. } => "block",
            Storage::Passthru { .. } => "passthru",
            Storage::Memory { .. } => "memory",
            Storage::Null { .. } => "null",
        }
    }

    /// The path, where the kind has one.
    pub fn path(&self) -> Option<&PathBuf> {
        match self {
            Storage::File { path, .. } | Storage::Block { path } | Storage::Passthru { path } => {
                Some(path)
            }
            Storage::Memory { .. } | Storage::Null { .. } => None,
        }
    }
}
