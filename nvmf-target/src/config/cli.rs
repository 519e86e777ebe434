//! The command line: the quick form, which describes one subsystem in flags, and the full form, which names a file.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};
use nvmf_size::{ByteSize, SizeError};

use super::address::Address;
use super::file::{self, DEFAULT_MODEL};
use super::identity::Identity;
use super::limits::{self, KeepAliveBounds, Limits, TcpOptions};
use super::nqn::subsystem_nqn;
use super::problem::{Collector, Place, Problems};
use super::rules::{self, StorageUsers};
use super::{
    ApiOptions, Authentication, Chosen, Config, CoreSet, NamespaceConfig, SubsystemConfig,
};
use crate::backend::BackingSpec;

/// Where the target listens when nothing else is said: this machine only.
pub const DEFAULT_LISTEN: Address = Address::tcp(std::net::SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    super::address::DEFAULT_PORT,
));

const AFTER_HELP: &str = "\
SIZE is a number of bytes, or one with K, M, G, T or P (powers of 1024), such as 512M or 10GiB.

Signals: SIGHUP reads the file of --config again and applies what changed, and looks again at the sizes of files \
and devices; connections that a change does not concern are left alone. SIGTERM and SIGINT stop accepting, let \
commands finish, flush, and end; a second one ends at once.

Exit status:
  0  stopped by a signal, everything finished and flushed; or --check found nothing wrong
  1  could not start, or failed while running
  2  the command line or the configuration file is wrong
  3  a second signal ended it before commands had finished

Examples:
  nvmf-target --file /srv/disk.img:10G
  nvmf-target --memory 1G --null 1T --listen tcp://127.0.0.1:0 --ready-file /run/nvmf.addr
  nvmf-target --block /dev/sdb --listen tcp://10.0.0.5 --allow-host nqn.2014-08.org.nvmexpress:uuid:…
  nvmf-target --config /etc/nvmf-target.toml --check";

/// Serves files, block devices, local NVMe and memory as NVMe namespaces over NVMe/TCP and NVMe/RDMA.
#[derive(Clone, Debug, Parser)]
#[command(name = "nvmf-target", version, after_help = AFTER_HELP, max_term_width = 120)]
pub struct Cli {
    /// Serve a regular file; with a size it is made when missing and extended when shorter
    #[arg(
        long,
        value_name = "PATH[:SIZE]",
        help_heading = "Namespaces (each the next NSID, in the order given)"
    )]
    pub file: Vec<FileArg>,
    /// Serve a block device
    #[arg(
        long,
        value_name = "PATH",
        help_heading = "Namespaces (each the next NSID, in the order given)"
    )]
    pub block: Vec<PathBuf>,
    /// Serve a local NVMe namespace by passing its commands through
    #[arg(
        long,
        value_name = "/dev/ngXnY",
        help_heading = "Namespaces (each the next NSID, in the order given)"
    )]
    pub passthru: Vec<PathBuf>,
    /// Serve memory of this process: zeroes and a new identity at each start
    #[arg(
        long,
        value_name = "SIZE",
        help_heading = "Namespaces (each the next NSID, in the order given)"
    )]
    pub memory: Vec<ByteSize>,
    /// Serve nothing: reads give zeroes, writes vanish
    #[arg(
        long,
        value_name = "SIZE",
        help_heading = "Namespaces (each the next NSID, in the order given)"
    )]
    pub null: Vec<ByteSize>,
    /// Block size of every namespace, 512 or 4096 [default: what direct I/O on the storage asks, else 512]
    #[arg(long, value_name = "BYTES")]
    pub block_size: Option<u64>,
    /// Refuse writes to every namespace
    #[arg(long)]
    pub read_only: bool,

    /// Name of the subsystem [default: derived from the machine-id, always the same on this machine]
    #[arg(long, value_name = "NQN")]
    pub nqn: Option<String>,
    /// Let this host connect (repeatable) [default on loopback: any host]
    #[arg(long, value_name = "NQN")]
    pub allow_host: Vec<String>,
    /// Let every host connect; needed to listen beyond loopback without --allow-host
    #[arg(long)]
    pub allow_any_host: bool,

    /// Read everything from a TOML file instead
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["file", "block", "passthru", "memory", "null", "block_size", "read_only", "nqn", "allow_host", "allow_any_host"]
    )]
    pub config: Option<PathBuf>,
    /// Listen here (repeatable; port 0 takes a free one) [default: tcp://127.0.0.1:4420, or what the file says]
    #[arg(long, value_name = "tcp|rdma://ADDR:PORT")]
    pub listen: Vec<Address>,
    /// Run one shard on each of these cores, such as 0-3,8 [default: unpinned shards]
    #[arg(long, value_name = "LIST")]
    pub cores: Option<CoreSet>,
    /// Let shards spin this long for work before they sleep [default: 0]
    #[arg(long, value_name = "MICROSECONDS")]
    pub busy_poll: Option<u64>,

    /// Serve the management API here, or nowhere with "none" [default: /run/nvmf-target/rpc.sock, where that can be had]
    #[arg(long, value_name = "PATH|none", help_heading = "Management API")]
    pub rpc: Option<PathBuf>,
    /// Keep what the API makes here, or only until the end with "none" [default: /var/lib/nvmf-target with --config, else none]
    #[arg(long, value_name = "DIR|none", help_heading = "Management API")]
    pub state_dir: Option<PathBuf>,
    /// The management API over TCP
    #[command(flatten)]
    pub rpc_tls: api::RpcTls,

    /// Check what is written in the configuration and end; storage and addresses are not tried
    #[arg(long)]
    pub check: bool,
    /// Write the addresses, one a line, to this file once hosts can connect
    #[arg(long, value_name = "PATH")]
    pub ready_file: Option<PathBuf>,
    /// Print and log JSON, one object a line
    #[arg(long)]
    pub json: bool,
    /// What to log: error, warn, info, debug, trace, or a filter such as info,nvmf_target::control=debug
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log: String,

    /// The namespaces of the quick form, in the order given.
    #[arg(skip)]
    pub namespaces: Vec<BackingSpec>,
}

/// `PATH[:SIZE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileArg {
    /// The file.
    pub path: PathBuf,
    /// The size, where the text after the last colon is one.
    pub size_bytes: Option<u64>,
}

impl FromStr for FileArg {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        // A path may hold colons itself. What follows the last one is a size if it starts with a digit and no slash is in it;
        // a file whose name ends in such a text can be given as PATH:SIZE.
        if let Some((path, size)) = text.rsplit_once(':')
            && size.starts_with(|c: char| c.is_ascii_digit())
            && !size.contains('/')
        {
            return Ok(FileArg {
                path: path.into(),
                size_bytes: Some(nvmf_size::parse(size)?),
            });
        }
        Ok(FileArg {
            path: text.into(),
            size_bytes: None,
        })
    }
}

impl Cli {
    /// Parses the process's arguments; ends the process on `--help`, `--version` and mistakes, as clap does.
    pub fn from_process() -> Self {
        let matches = Self::command().get_matches();
        Self::from_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Parses `arguments`, the program's name first.
    pub fn try_from_arguments<I, T>(arguments: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<std::ffi::OsString> + Clone,
    {
        Self::from_matches(&Self::command().try_get_matches_from(arguments)?)
    }

    fn from_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut cli = Self::from_arg_matches(matches)?;
        let mut ordered: Vec<(usize, BackingSpec)> = Vec::new();
        let mut add = |flag: &str, storages: Vec<BackingSpec>| {
            let indices = matches.indices_of(flag).into_iter().flatten();
            ordered.extend(indices.zip(storages));
        };
        let file = |arg: &FileArg| BackingSpec::File {
            path: arg.path.clone(),
            size_bytes: arg.size_bytes,
        };
        add("file", cli.file.iter().map(file).collect());
        let block = |path: &PathBuf| BackingSpec::Block { path: path.clone() };
        add("block", cli.block.iter().map(block).collect());
        let passthru = |path: &PathBuf| BackingSpec::Passthrough { path: path.clone() };
        add("passthru", cli.passthru.iter().map(passthru).collect());
        let memory = |size: &ByteSize| BackingSpec::Memory { size_bytes: size.0 };
        add("memory", cli.memory.iter().map(memory).collect());
        let null = |size: &ByteSize| BackingSpec::Null { size_bytes: size.0 };
        add("null", cli.null.iter().map(null).collect());
        ordered.sort_by_key(|(index, _)| *index);
        cli.namespaces = ordered.into_iter().map(|(_, storage)| storage).collect();
        Ok(cli)
    }

    /// The configuration that the flags, or the file that they name, describe. Called again at each reload.
    pub fn config(&self, identity: &Identity) -> Result<Config, Problems> {
        let mut problems = Collector::for_command_line();
        let listeners: Vec<_> = self
            .listen
            .iter()
            .map(|address| (*address, Place::key("--listen")))
            .collect();
        if !listeners.is_empty() {
            rules::check_listeners(&listeners, &mut problems);
        }
        let mut busy_poll_us = None;
        if let Some(value) = self.busy_poll {
            let range = limits::BUSY_POLL_US;
            if !range.contains(&value) {
                problems.push(
                    &Place::key("--busy-poll"),
                    format!(
                        "{value} is out of range; write {} to {}",
                        range.start(),
                        range.end()
                    ),
                );
            }
            busy_poll_us = Some(value as u32);
        }
        let mut config = match &self.config {
            Some(path) => {
                let config = file::load(path)?;
                Some(config)
            }
            None => self.quick_form(identity, &mut problems),
        };
        if let Some(config) = &mut config {
            if !self.listen.is_empty() {
                config.listeners = self.listen.clone();
            }
            config.busy_poll_us = busy_poll_us.unwrap_or(config.busy_poll_us);
            if let Some(cores) = &self.cores {
                config.cores = Some(cores.clone());
            }
            for (flag, written, place) in [
                ("--rpc", &self.rpc, &mut config.api.socket),
                ("--state-dir", &self.state_dir, &mut config.api.state_dir),
            ] {
                if let Some(path) = written {
                    *place = api::chosen(flag, path, &mut problems);
                }
            }
            if let Some(tls) = self.rpc_tls.options(&mut problems) {
                config.api.tls = Some(tls);
            }
        }
        let config = problems.finish(config)?;
        Ok(config.expect("a configuration that could not be made has left a problem"))
    }

    /// One subsystem from flags.
    fn quick_form(&self, identity: &Identity, problems: &mut Collector) -> Option<Config> {
        let managed = [&self.rpc, &self.state_dir].into_iter().flatten();
        let mut managed = managed.map(|path| Chosen::written(path));
        let managed =
            self.rpc_tls.rpc_tls.is_some() || managed.any(|chosen| chosen != Ok(Chosen::Off));
        if self.namespaces.is_empty() && !managed {
            problems.push(
                &Place::key("nothing to serve"),
                "give at least one of --file, --block, --passthru, --memory, --null, or --config FILE, or --rpc PATH to be told later; --help explains them",
            );
            return None;
        }
        let name = self.nqn.clone().unwrap_or_else(|| identity.default_nqn());
        let nqn = problems.ok(&Place::key("--nqn"), subsystem_nqn(&name));
        let block_bytes = self.block_size.and_then(|bytes| {
            problems.ok(&Place::key("--block-size"), rules::check_block_size(bytes))
        });
        let mut namespaces = Vec::new();
        let mut users = StorageUsers::default();
        for (index, storage) in self.namespaces.iter().enumerate() {
            let place = Place::key(format!("--{}", rules::kind_of(storage)));
            let storage = match absolute(storage) {
                Ok(storage) => storage,
                Err(error) => {
                    problems.push(&place, error.to_string());
                    continue;
                }
            };
            if let BackingSpec::File {
                size_bytes: Some(size_bytes),
                ..
            }
            | BackingSpec::Memory { size_bytes }
            | BackingSpec::Null { size_bytes } = storage
            {
                problems.ok(&place, rules::check_size(size_bytes));
            }
            let namespace = (index as u32 + 1, self.read_only);
            users.check(&name, namespace, &storage, &place, problems);
            let passed_through = matches!(storage, BackingSpec::Passthrough { .. });
            namespaces.push(NamespaceConfig {
                nsid: index as u32 + 1,
                storage,
                block_bytes: block_bytes.filter(|_| !passed_through),
                read_only: self.read_only,
                uuid: None,
                nguid: None,
                eui64: None,
            });
        }
        if namespaces.len() as u64 > *limits::NSID.end() {
            problems.push(
                &Place::key("too many namespaces"),
                format!("a subsystem holds at most {}", limits::NSID.end()),
            );
        }
        let listeners = if self.listen.is_empty() {
            vec![DEFAULT_LISTEN]
        } else {
            self.listen.clone()
        };
        let hosts = self
            .allow_host
            .iter()
            .map(|nqn| (nqn.clone(), Place::key("--allow-host")))
            .collect();
        let beyond = listeners.iter().find(|address| !address.is_loopback());
        if let Some(address) = beyond
            && self.allow_host.is_empty()
            && !self.allow_any_host
        {
            problems.push(
                &Place::key("--listen"),
                format!(
                    "{address} can be reached from other machines; name the hosts that may connect with --allow-host NQN, or give --allow-any-host"
                ),
            );
        }
        let open = self.allow_any_host || self.allow_host.is_empty();
        let hosts = rules::host_access(open, hosts, &Place::key("--allow-any-host"), problems);
        let subsystem = SubsystemConfig {
            nqn: nqn?,
            serial: None,
            model: DEFAULT_MODEL.to_owned(),
            hosts,
            namespaces,
        };
        let to_serve = !subsystem.namespaces.is_empty();
        Some(Config {
            listeners,
            subsystems: to_serve.then_some(subsystem).into_iter().collect(),
            pools: Vec::new(),
            referrals: Vec::new(),
            limits: Limits::default(),
            tcp: TcpOptions::default(),
            keep_alive: KeepAliveBounds::default(),
            cores: None,
            busy_poll_us: 0,
            api: ApiOptions {
                socket: Chosen::Default,
                // A trial run must not bring back what a service left.
                state_dir: Chosen::Off,
                tls: None,
            },
            authentication: Authentication::default(),
        })
    }
}

/// The storage with its path made absolute, so that the working directory does not enter the namespace's identity.
fn absolute(storage: &BackingSpec) -> std::io::Result<BackingSpec> {
    let mut storage = storage.clone();
    match &mut storage {
        BackingSpec::File { path, .. }
        | BackingSpec::Block { path }
        | BackingSpec::Passthrough { path } => {
            *path = std::path::absolute(&*path)?;
        }
        BackingSpec::Memory { .. } | BackingSpec::Null { .. } => {}
    }
    Ok(storage)
}

mod api;
#[cfg(test)]
mod tests;
