//! The command line.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use nvmf_rpc::TlsArgs;

const AFTER_HELP: &str = "\
Every command prints a table or a line; with --json it prints the result of the API method that it calls.
SIZE is a number of bytes, or one with K, M, G, T or P (powers of 1024), such as 512M or 10GiB.

Exit status:
  0  done
  1  refused by the target, or the output could not be written
  2  the command line is wrong
  3  the target cannot be reached
  4  what was named does not exist
  5  it exists already
  6  it is in use
  7  the target was lost, or did not answer in time: whether it was done is not known
  8  it is not the API's to change, such as what the configuration file declares

Examples:
  nvmfctl volume create fast data --size 10G --host nqn.2014-08.org.nvmexpress:uuid:…
  nvmfctl subsystem create nqn.2025-01.org.example:a --any-host
  nvmfctl bdev create file disk /srv/disk.img && nvmfctl namespace add nqn.2025-01.org.example:a disk
  nvmfctl volume prune --label nvmf-csi.ephemeral-on=nqn.2014-08.org.nvmexpress:uuid:…
  nvmfctl rpc bdev_get_iostat '{\"name\": \"disk\"}'
  nvmfctl top --once --json";

/// Manages a running nvmf-target.
#[derive(Debug, Parser)]
#[command(name = "nvmfctl", version, after_help = AFTER_HELP, max_term_width = 120)]
pub struct Cli {
    /// Where the target's management API is: a unix socket, or TCP with TLS
    #[arg(long, short, global = true, value_name = "PATH|tls://HOST:PORT", env = "NVMF_RPC", default_value = nvmf_rpc::DEFAULT_SOCKET)]
    pub socket: String,
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// How long to wait for an answer
    #[arg(long, global = true, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub timeout: Duration,
    #[command(subcommand)]
    pub command: Command,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 86_400.0 => Ok(Duration::from_secs_f64(value)),
        _ => Err("write a number of seconds, above 0 and up to 86400".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Subsystems: what hosts connect to
    #[command(subcommand, alias = "subsystems")]
    Subsystem(Subsystem),
    /// Namespaces: what hosts see as disks
    #[command(subcommand, alias = "namespaces")]
    Namespace(Namespace),
    /// Hosts: who may connect
    #[command(subcommand, alias = "hosts")]
    Host(Host),
    /// Listeners: where hosts connect
    #[command(subcommand, alias = "listeners")]
    Listener(Listener),
    /// Block devices: what namespaces lie on
    #[command(subcommand, alias = "bdevs")]
    Bdev(Bdev),
    /// List the hosts that are connected
    #[command(alias = "controller")]
    Controllers {
        /// Only to this subsystem
        nqn: Option<String>,
    },
    /// List the queues of the hosts that are connected
    #[command(alias = "queue")]
    Queues {
        /// Only to this subsystem
        nqn: Option<String>,
    },
    /// List pools
    #[command(alias = "pool")]
    Pools {
        /// Only this one
        name: Option<String>,
    },
    /// Volumes of pools
    #[command(subcommand, alias = "volumes")]
    Volume(Volume),
    /// Snapshots of volumes
    #[command(subcommand, alias = "snapshots")]
    Snapshot(Snapshot),
    /// Show the rates of block devices, again and again
    Top(Top),
    /// Call any method of the API
    Rpc {
        /// Its name; rpc_get_methods lists all
        method: String,
        /// Its parameters as a JSON object; - reads them from standard input
        params: Option<String>,
    },
    /// Print the target's version
    Version,
    /// Print a script that completes commands in a shell
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub enum Subsystem {
    /// List all
    List,
    /// Make one; it is served where listeners are added, to the hosts that are added
    Create {
        /// Its name, such as nqn.2025-01.org.example:disk1
        nqn: String,
        /// Its serial number
        #[arg(long)]
        serial: Option<String>,
        /// Its model number
        #[arg(long)]
        model: Option<String>,
        /// Most namespaces
        #[arg(long)]
        max_namespaces: Option<u32>,
        /// Let every host connect
        #[arg(long)]
        any_host: bool,
    },
    /// Remove one, cutting off its hosts
    Delete {
        /// Its name
        nqn: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum Namespace {
    /// List all, or those of a subsystem
    List {
        /// The subsystem
        nqn: Option<String>,
    },
    /// Put a block device into a subsystem
    Add {
        /// The subsystem
        nqn: String,
        /// The block device
        bdev: String,
        /// Its NSID [default: the first that is free]
        #[arg(long)]
        nsid: Option<u32>,
        /// Its UUID [default: the block device's]
        #[arg(long)]
        uuid: Option<String>,
        /// Its NGUID, 32 hexadecimal digits
        #[arg(long)]
        nguid: Option<String>,
        /// Its EUI-64, 16 hexadecimal digits
        #[arg(long)]
        eui64: Option<String>,
    },
    /// Take one out of its subsystem
    Remove {
        /// The subsystem
        nqn: String,
        /// The namespace
        nsid: u32,
    },
}

#[derive(Debug, Subcommand)]
pub enum Host {
    /// List who may connect to a subsystem
    List {
        /// The subsystem
        nqn: String,
    },
    /// Let a host connect
    Add {
        /// The subsystem
        nqn: String,
        /// The host's NQN
        host: String,
    },
    /// Let a host connect no more; done once it is gone and its last write has finished
    Remove {
        /// The subsystem
        nqn: String,
        /// The host's NQN
        host: String,
    },
    /// Let every host connect, or only those in the list
    Any {
        /// The subsystem
        nqn: String,
        /// Whether
        #[arg(value_parser = clap::builder::BoolishValueParser::new(), action = clap::ArgAction::Set, value_name = "on|off")]
        on: bool,
    },
}

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAt {
    /// The transport, as the API calls it.
    pub trtype: &'static str,
    /// The address.
    pub socket: SocketAddr,
}

impl FromStr for ListenAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (trtype, address) = match text.split_once("://") {
            None | Some(("tcp", _)) => ("TCP", text.strip_prefix("tcp://").unwrap_or(text)),
            Some(("rdma", address)) => ("RDMA", address),
            Some((other, _)) => {
                return Err(format!("transport {other:?} is unknown; write tcp or rdma"));
            }
        };
        match address.parse() {
            Ok(socket) => Ok(Self { trtype, socket }),
            Err(_) => Err(format!("{address:?} is not ADDR:PORT")),
        }
    }
}

impl fmt::Display for ListenAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.trtype.to_lowercase(), self.socket)
    }
}

#[derive(Debug, Subcommand)]
pub enum Listener {
    /// List where a subsystem is served
    List {
        /// The subsystem
        nqn: String,
    },
    /// Serve a subsystem at an address
    Add {
        /// The subsystem
        nqn: String,
        /// Such as 10.0.0.5:4420, which is tcp://10.0.0.5:4420, or rdma://10.0.0.5:4420; an IPv6 address in brackets
        address: ListenAt,
    },
    /// Serve it there no more, cutting off those who came that way
    Remove {
        /// The subsystem
        nqn: String,
        /// The address, as it was added
        address: ListenAt,
    },
}

#[derive(Debug, Subcommand)]
pub enum Bdev {
    /// List all
    List,
    /// Make one
    #[command(subcommand)]
    Create(CreateBdev),
    /// Remove one, and the namespace that is on it
    Delete {
        /// Its name
        name: String,
    },
    /// Grow a null device
    Resize {
        /// Its name
        name: String,
        /// Its new size, in whole MiB
        #[arg(value_parser = nvmf_size::parse)]
        size: u64,
    },
    /// Look how large a file or device is now
    Rescan {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum CreateBdev {
    /// Memory: lost when the target ends
    Memory(Sized),
    /// Reads zeroes, drops writes
    Null(Sized),
    /// A file or block device
    File {
        /// Its name
        name: String,
        /// Where it is
        path: PathBuf,
        /// 512 or 4096 [default: what it asks for]
        #[arg(long)]
        block_size: Option<u32>,
        /// Refuse writes
        #[arg(long)]
        read_only: bool,
        /// Its UUID [default: chosen, and kept]
        #[arg(long)]
        uuid: Option<String>,
    },
}

#[derive(Debug, Args)]
pub struct Sized {
    /// Its name
    pub name: String,
    /// Its size
    #[arg(value_parser = nvmf_size::parse)]
    pub size: u64,
    /// 512 or 4096
    #[arg(long, default_value = "4096")]
    pub block_size: u32,
    /// Its UUID
    #[arg(long)]
    pub uuid: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Volume {
    /// List all
    List {
        /// Only of this pool
        #[arg(long)]
        pool: Option<String>,
        /// Only those with this label, whatever its value or with this one (repeatable)
        #[arg(long, value_name = "KEY[=VALUE]")]
        label: Vec<LabelFilter>,
    },
    /// Make one
    Create {
        /// The pool
        pool: String,
        /// Its name
        name: String,
        /// Its size; with --from not needed
        #[arg(long, value_parser = nvmf_size::parse, required_unless_present_any = ["from_volume", "from_snapshot"])]
        size: Option<u64>,
        /// Clone this volume
        #[arg(long, value_name = "VOLUME", conflicts_with = "from_snapshot")]
        from_volume: Option<String>,
        /// Clone this snapshot
        #[arg(long, value_name = "SNAPSHOT")]
        from_snapshot: Option<String>,
        /// A host that may connect (repeatable)
        #[arg(long, value_name = "NQN")]
        host: Vec<String>,
        /// 512 or 4096 [default: 4096]
        #[arg(long)]
        block_size: Option<u32>,
        /// Take all of its room now
        #[arg(long)]
        thick: bool,
        /// Refuse writes
        #[arg(long)]
        read_only: bool,
        /// Share this subsystem with other volumes
        #[arg(long, value_name = "NQN")]
        subsystem: Option<String>,
        /// A label (repeatable)
        #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
        label: Vec<(String, String)>,
    },
    /// Remove one
    Delete {
        /// The pool
        pool: String,
        /// Its name
        name: String,
        /// Cut off hosts that are connected
        #[arg(long)]
        force: bool,
    },
    /// Remove those with a label to which no host is connected; without --yes only list them
    Prune {
        /// Only those with this label, whatever its value or with this one (repeatable)
        #[arg(long, value_name = "KEY[=VALUE]", required = true)]
        label: Vec<LabelFilter>,
        /// Only of this pool
        #[arg(long)]
        pool: Option<String>,
        /// Remove no more than so many
        #[arg(long, value_name = "NUMBER", default_value = "100", value_parser = clap::value_parser!(u32).range(1..))]
        most: u32,
        /// Remove them
        #[arg(long)]
        yes: bool,
    },
    /// Grow one under the hosts that use it
    Resize {
        /// The pool
        pool: String,
        /// Its name
        name: String,
        /// Its new size
        #[arg(value_parser = nvmf_size::parse)]
        size: u64,
    },
    /// Let a host connect
    Grant {
        /// The pool
        pool: String,
        /// The volume
        name: String,
        /// The host's NQN
        host: String,
    },
    /// Let a host connect no more; done once it is gone and its last write has finished
    Revoke {
        /// The pool
        pool: String,
        /// The volume
        name: String,
        /// The host's NQN
        host: String,
    },
}

/// Which labels are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelFilter {
    /// A volume has a label of this name,
    pub key: String,
    /// and this is its value, if one is asked for.
    pub value: Option<String>,
}

impl FromStr for LabelFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (text, None),
        };
        match key {
            "" => Err(format!("{text:?} names no label; write KEY or KEY=VALUE")),
            key => Ok(LabelFilter {
                key: key.to_owned(),
                value,
            }),
        }
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    pair(text).ok_or_else(|| format!("{text:?} is no label; write KEY=VALUE"))
}

fn volume_and_snapshot(text: &str) -> Result<(String, String), String> {
    pair(text)
        .filter(|(_, name)| !name.is_empty())
        .ok_or_else(|| {
            format!(
                "{text:?} names no snapshot; write VOLUME=NAME, NAME being that of the snapshot"
            )
        })
}

fn pair(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty())?;
    Some((key.to_owned(), value.to_owned()))
}

#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// List all
    List {
        /// Only of this pool
        #[arg(long)]
        pool: Option<String>,
        /// Only of this volume
        #[arg(long)]
        volume: Option<String>,
    },
    /// Take one, or several at one instant
    Create {
        /// The pool
        pool: String,
        /// Which volume, and what the snapshot is called (repeatable)
        #[arg(value_name = "VOLUME=NAME", value_parser = volume_and_snapshot, required = true)]
        snapshot: Vec<(String, String)>,
    },
    /// Remove one
    Delete {
        /// The pool
        pool: String,
        /// Its name
        name: String,
    },
}

#[derive(Debug, Args)]
pub struct Top {
    /// How long to count between two pictures
    #[arg(long, short, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub interval: Duration,
    /// Show one picture and end
    #[arg(long)]
    pub once: bool,
    /// Only these block devices
    pub names: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn flags_after_those_of_tls_are_not_under_their_heading() {
        let command = Cli::command();
        let heading = |id: &str| {
            let flag = command.get_arguments().find(|arg| arg.get_id() == id);
            flag.unwrap().get_help_heading()
        };
        assert!(heading("tls_key").unwrap().contains("TLS"));
        assert_eq!((heading("json"), heading("timeout")), (None, None));
    }

    #[test]
    fn a_snapshot_is_asked_for_with_its_volume() {
        let parse = |text| Cli::try_parse_from(["nvmfctl", "snapshot", "create", "pool", text]);
        assert!(parse("volume=name").is_ok());
        for text in ["name", "volume=", "=name"] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("write VOLUME=NAME"), "{error}");
        }
    }

    #[test]
    fn an_address_has_a_transport_or_is_tcp() {
        let at = |text: &str| text.parse::<ListenAt>().map(|at| at.to_string());
        assert_eq!(at("10.0.0.5:4420").unwrap(), "tcp://10.0.0.5:4420");
        assert_eq!(at("tcp://[fd00::5]:1").unwrap(), "tcp://[fd00::5]:1");
        assert_eq!(at("rdma://10.0.0.5:4420").unwrap(), "rdma://10.0.0.5:4420");
        assert!(at("rdma://storage1:4420").is_err() && at("ib://10.0.0.5:1").is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let cli =
            Cli::try_parse_from(["nvmfctl", "host", "any", "nqn.x", "off", "--json"]).unwrap();
        assert!(cli.json);
        assert!(matches!(
            cli.command,
            Command::Host(Host::Any { on: false, .. })
        ));
        for wrong in [
            &["nvmfctl", "volume", "create", "p", "v"][..],
            &["nvmfctl", "listener", "add", "nqn.x", "storage1:4420"],
            &["nvmfctl", "listener", "add", "nqn.x", "fc://10.0.0.5:4420"],
            &["nvmfctl", "snapshot", "create", "p", "v"],
            &["nvmfctl", "--timeout", "0", "version"],
            &["nvmfctl", "volume", "prune"],
            &["nvmfctl", "volume", "prune", "--label", "=x"],
            &["nvmfctl", "volume", "prune", "--label", "x", "--most", "0"],
        ] {
            assert!(Cli::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
    }
}
