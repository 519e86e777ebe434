//! What the user asked for: the command line ([`cli`]) or a TOML file ([`mod@file`]), checked and with defaults filled in.
//!
//! A [`Config`] is complete and consistent in itself: names have the right form, nothing is given twice, every limit lies in
//! its range. Nothing here opens a backing or a socket, so that `--check` and a reload can judge a file without side
//! effects. All problems are collected before anything is reported: one run shows every mistake.

pub mod address;
pub mod api;
pub mod authentication;
pub mod cli;
pub mod cores;
pub mod file;
pub mod identity;
pub mod limits;
pub mod nqn;
pub mod problem;
pub mod rules;

use uuid::Uuid;

pub use address::{Address, Carrier};
pub use api::{ApiOptions, Chosen, ClientName, TlsOptions};
pub use authentication::Authentication;
pub use cores::CoreSet;
pub use limits::{KeepAliveBounds, Limits, TcpOptions};
pub use problem::{Problem, Problems};

use crate::backend::BackingSpec;
use crate::model::{HostAccess, Nqn};
use crate::pool::PoolConfig;

/// Everything that decides how the target serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where to listen; never empty.
    pub listeners: Vec<Address>,
    /// The subsystems, NQNs distinct.
    pub subsystems: Vec<SubsystemConfig>,
    /// Where volumes can be made, names and folders distinct.
    pub pools: Vec<PoolConfig>,
    /// Other discovery services to point hosts at.
    pub referrals: Vec<Address>,
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
    /// The management API.
    pub api: ApiOptions,
    /// Who has to authenticate, and how.
    pub authentication: Authentication,
}

/// One NVM subsystem.
#[derive(Clone, Debug, PartialEq)]
pub struct SubsystemConfig {
    /// Its NQN.
    pub nqn: Nqn,
    /// Its serial number; derived from machine and NQN when absent.
    pub serial: Option<String>,
    /// Its model number.
    pub model: String,
    /// Who may connect.
    pub hosts: HostAccess,
    /// Its namespaces, NSIDs distinct.
    pub namespaces: Vec<NamespaceConfig>,
}

/// One namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct NamespaceConfig {
    /// Its identifier in the subsystem, from 1.
    pub nsid: u32,
    /// Where its blocks are.
    pub storage: BackingSpec,
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
