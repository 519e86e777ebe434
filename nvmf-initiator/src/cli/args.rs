//! The command line: nvme-cli's names, letters and defaults.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::address::{Address, AddressError, Transport, check_nqn, parse_port};
use crate::block::BlockForm;
use crate::config::parse_ip;
use crate::host::ETC_NVME;
use crate::options::{ConnectOptions, OptionError, Target};

/// Attaches NVMe over Fabrics namespaces from user space.
#[derive(Debug, Parser)]
#[command(name = "nvmf-initiator", version, about, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// More words on stderr; twice for debugging. RUST_LOG wins over it.
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Folder of the daemon's socket and state.
    #[arg(long, global = true, value_name = "DIR", default_value = crate::daemon::RUN_DIR)]
    pub run_dir: PathBuf,
    /// Folder of hostnqn, hostid, discovery.conf and config.json.
    #[arg(long, global = true, value_name = "DIR", default_value = ETC_NVME)]
    pub etc_nvme: PathBuf,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed; 2 wrong arguments; 3 no such device or subsystem; 4 in use or already connected; \
5 the target refused; 6 the target cannot be reached; 7 this system lacks something (named in the message).";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Connect to a subsystem and make a block device for each of its namespaces.
    Connect(ConnectArgs),
    /// Connect to every subsystem that a discovery service, discovery.conf or config.json names.
    ConnectAll(ConnectAllArgs),
    /// End the connection to a subsystem or the one that a device belongs to.
    Disconnect(DisconnectArgs),
    /// Show the log of a discovery service.
    Discover(DiscoverArgs),
    /// Show what is attached.
    List(OutputArgs),
    /// Show Identify Controller.
    IdCtrl(IdCtrlArgs),
    /// Show Identify Namespace.
    IdNs(IdNsArgs),
    /// Run the daemon that owns the devices of this node (`connect` starts it on demand).
    Daemon(DaemonArgs),
    /// Hold the daemon's file descriptors and start it again when it dies.
    #[command(hide = true)]
    Keeper {
        /// The daemon is there already, at the other end of standard input: its keeper before died.
        #[arg(long)]
        adopt: bool,
    },
}

/// How output is written.
#[derive(Debug, Clone, Copy, Args)]
pub struct OutputArgs {
    /// Form of the output.
    #[arg(long, short = 'o', value_enum, default_value_t = Format::Normal)]
    pub output_format: Format,
    /// The same as -o json.
    #[arg(long)]
    pub json: bool,
}

impl OutputArgs {
    /// Whether JSON is wanted.
    pub fn is_json(&self) -> bool {
        self.json || matches!(self.output_format, Format::Json)
    }
}

/// Forms of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Normal,
    /// For programs.
    Json,
}

/// Where the controller is and who we are.
#[derive(Debug, Clone, Args)]
pub struct PortArgs {
    /// Transport: tcp or rdma.
    #[arg(long, short = 't', default_value = "tcp")]
    pub transport: String,
    /// Address of the target's port: a name or an IP address.
    #[arg(long, short = 'a')]
    pub traddr: Option<String>,
    /// Port number [default: 4420, for discovery over TCP 8009].
    #[arg(long, short = 's')]
    pub trsvcid: Option<String>,
    /// Source address to bind to.
    #[arg(long, short = 'w')]
    pub host_traddr: Option<String>,
    /// Network interface to send through; over RDMA give --host-traddr.
    #[arg(long, short = 'f')]
    pub host_iface: Option<String>,
    /// Host NQN [default: /etc/nvme/hostnqn].
    #[arg(long, short = 'q')]
    pub hostnqn: Option<String>,
    /// Host identifier, a UUID [default: /etc/nvme/hostid].
    #[arg(long, short = 'I')]
    pub hostid: Option<String>,
}

impl PortArgs {
    /// The address, with the port that belongs to the kind of service.
    pub fn address(&self, default_port: fn(Transport) -> u16) -> Result<Address, OptionError> {
        let transport: Transport = self.transport.parse()?;
        Ok(Address {
            transport,
            traddr: self.traddr.clone().ok_or(AddressError::NoHost)?,
            trsvcid: self
                .trsvcid
                .as_deref()
                .map_or_else(|| Ok(default_port(transport)), parse_port)?,
            host_traddr: self
                .host_traddr
                .as_deref()
                .map(|text| parse_ip("host_traddr", text))
                .transpose()?,
            host_iface: self.host_iface.clone(),
        })
    }
}

/// How an association is made.
#[derive(Debug, Clone, Args)]
pub struct AssociationArgs {
    /// I/O queues to ask for [default: one per core].
    #[arg(long, short = 'i')]
    pub nr_io_queues: Option<u16>,
    /// Entries of each I/O queue [default: 128].
    #[arg(long, short = 'Q')]
    pub queue_size: Option<u16>,
    /// Keep-alive time-out in seconds [default: 5; 0 is off].
    #[arg(long, short = 'k')]
    pub keep_alive_tmo: Option<u32>,
    /// Seconds between two attempts to reconnect [default: 10].
    #[arg(long, short = 'c')]
    pub reconnect_delay: Option<u32>,
    /// Seconds after which a lost controller is given up [default: 600; -1 never].
    #[arg(long, short = 'l', allow_negative_numbers = true)]
    pub ctrl_loss_tmo: Option<i32>,
    /// Seconds after which held I/O of a lost controller fails [default: -1, not before ctrl-loss-tmo].
    #[arg(
        long = "fast_io_fail_tmo",
        alias = "fast-io-fail-tmo",
        short = 'F',
        allow_negative_numbers = true
    )]
    pub fast_io_fail_tmo: Option<i32>,
    /// Type of service byte.
    #[arg(long, short = 'T')]
    pub tos: Option<u8>,
    /// CRC32C over each PDU header.
    #[arg(long, short = 'g')]
    pub hdr_digest: bool,
    /// CRC32C over each PDU's data.
    #[arg(long, short = 'G')]
    pub data_digest: bool,
    /// Allow a second connection to the same port of the same subsystem.
    #[arg(long, short = 'D')]
    pub duplicate_connect: bool,
    /// Turn SQ flow control off where the controller agrees; this is the default here.
    #[arg(long, short = 'd')]
    pub disable_sqflow: bool,
    /// Leave SQ flow control on.
    #[arg(long, conflicts_with = "disable_sqflow")]
    pub enable_sqflow: bool,
    /// RDMA: open a memory window over each command's buffer for as long as the command is open, instead of giving the target a key to
    /// all buffers.
    #[arg(long)]
    pub memory_windows: bool,
    /// A command without an answer for this many milliseconds ends the association [default: 30000].
    #[arg(long, value_name = "MS")]
    pub io_timeout_ms: Option<u32>,
}

impl AssociationArgs {
    /// As options, on top of `base`.
    pub fn options(&self, base: &ConnectOptions) -> ConnectOptions {
        ConnectOptions {
            nr_io_queues: self.nr_io_queues.or(base.nr_io_queues),
            queue_size: self.queue_size.unwrap_or(base.queue_size),
            keep_alive_tmo: self.keep_alive_tmo.unwrap_or(base.keep_alive_tmo),
            reconnect_delay: self.reconnect_delay.unwrap_or(base.reconnect_delay),
            ctrl_loss_tmo: self.ctrl_loss_tmo.unwrap_or(base.ctrl_loss_tmo),
            fast_io_fail_tmo: self.fast_io_fail_tmo.unwrap_or(base.fast_io_fail_tmo),
            tos: self.tos.or(base.tos),
            hdr_digest: self.hdr_digest || base.hdr_digest,
            data_digest: self.data_digest || base.data_digest,
            duplicate_connect: self.duplicate_connect || base.duplicate_connect,
            memory_windows: self.memory_windows || base.memory_windows,
            disable_sqflow: self.disable_sqflow || (base.disable_sqflow && !self.enable_sqflow),
            io_timeout_ms: self.io_timeout_ms.unwrap_or(base.io_timeout_ms),
            connect_timeout_ms: base.connect_timeout_ms,
        }
    }
}

/// `connect`.
#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// Where.
    #[command(flatten)]
    pub port: PortArgs,
    /// Subsystem NQN.
    #[arg(long, short = 'n')]
    pub nqn: String,
    /// How.
    #[command(flatten)]
    pub association: AssociationArgs,
    /// What to show the namespaces as.
    #[command(flatten)]
    pub block: BlockArgs,
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
}

impl ConnectArgs {
    /// The controller that these arguments name.
    pub fn target(&self) -> Result<Target, OptionError> {
        check_nqn(&self.nqn)?;
        let target = Target {
            address: self.port.address(Transport::io_port)?,
            subnqn: self.nqn.clone(),
            options: self.association.options(&ConnectOptions::default()),
        };
        target.validate()?;
        Ok(target)
    }
}

/// What namespaces are shown as.
#[derive(Debug, Clone, Copy, Args)]
pub struct BlockArgs {
    /// Form of the block devices: auto, ublk, nbd, fuse, nbd-socket or none.
    #[arg(long, default_value = "auto", value_name = "FORM")]
    pub block: BlockForm,
}

/// `connect-all`.
#[derive(Debug, Args)]
pub struct ConnectAllArgs {
    /// The discovery service; without an address config.json and discovery.conf are followed.
    #[command(flatten)]
    pub port: PortArgs,
    /// NQN of the discovery service [default: the well-known one].
    #[arg(long, short = 'n')]
    pub nqn: Option<String>,
    /// How.
    #[command(flatten)]
    pub association: AssociationArgs,
    /// What to show the namespaces as.
    #[command(flatten)]
    pub block: BlockArgs,
    /// Configuration file, or 'none' [default: /etc/nvme/config.json, if it is there].
    #[arg(long, short = 'J')]
    pub config: Option<PathBuf>,
    /// Say nothing about what is connected already.
    #[arg(long, short = 'S')]
    pub quiet: bool,
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `discover`.
#[derive(Debug, Args)]
pub struct DiscoverArgs {
    /// The discovery service; without an address discovery.conf is followed.
    #[command(flatten)]
    pub port: PortArgs,
    /// NQN of the discovery service [default: the well-known one].
    #[arg(long, short = 'n')]
    pub nqn: Option<String>,
    /// How.
    #[command(flatten)]
    pub association: AssociationArgs,
    /// Show the log of this service only, without those that it refers to.
    #[arg(long)]
    pub no_referrals: bool,
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `disconnect`.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct DisconnectWhat {
    /// Every controller of this subsystem.
    #[arg(long, short = 'n')]
    pub nqn: Option<String>,
    /// The controllers behind this device: /dev/ublkbN, a stable name, or a controller name as `list` shows it.
    #[arg(long, short = 'd')]
    pub device: Option<String>,
    /// Everything on this node.
    #[arg(long)]
    pub all: bool,
}

/// `disconnect`.
#[derive(Debug, Args)]
pub struct DisconnectArgs {
    /// What to disconnect.
    #[command(flatten)]
    pub what: DisconnectWhat,
    /// Disconnect even while a device is in use: its users get I/O errors.
    #[arg(long)]
    pub force: bool,
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// A controller that is attached already, or one to connect to for this command only.
#[derive(Debug, Args)]
pub struct ControllerArgs {
    /// A device, a controller name as `list` shows it, or a URL nvme+tcp://HOST:PORT/NQN or nvme+rdma://….
    pub device: Option<String>,
    /// Instead of a device: where.
    #[command(flatten)]
    pub port: PortArgs,
    /// Instead of a device: the subsystem.
    #[arg(long, value_name = "NQN")]
    pub nqn: Option<String>,
}

/// `id-ctrl`.
#[derive(Debug, Args)]
pub struct IdCtrlArgs {
    /// Which controller.
    #[command(flatten)]
    pub controller: ControllerArgs,
    /// Write the 4096 bytes as they are.
    #[arg(long, short = 'b')]
    pub raw_binary: bool,
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `id-ns`.
#[derive(Debug, Args)]
pub struct IdNsArgs {
    /// Which controller.
    #[command(flatten)]
    pub controller: ControllerArgs,
    /// Namespace [default: the device's, else 1].
    #[arg(long, short = 'n')]
    pub namespace_id: Option<u32>,
    /// Write the 4096 bytes as they are.
    #[arg(long, short = 'b')]
    pub raw_binary: bool,
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `daemon`.
#[derive(Debug, Args)]
pub struct DaemonArgs {
    /// Shards (thread and ring) that serve devices [default: one per core].
    #[arg(long)]
    pub shards: Option<u16>,
    /// Cores to run the shards on, as 0-3,8 [default: not pinned].
    #[arg(long, value_name = "LIST")]
    pub cores: Option<String>,
    /// Spin this many microseconds before sleeping.
    #[arg(long, default_value_t = 0, value_name = "US")]
    pub busy_poll: u32,
    /// A keeper is at the other end of standard input.
    #[arg(long, hide = true)]
    pub kept: bool,
}

/// The flag for an option of `connect`, which most commands share; the option itself where there is none.
pub fn flag(option: &str) -> String {
    let cli = Cli::command();
    let connect = cli.find_subcommand("connect");
    let mut flags = connect.into_iter().flat_map(clap::Command::get_arguments);
    let flag = flags.find(|flag| flag.get_id() == option);
    flag.and_then(clap::Arg::get_long)
        .map_or_else(|| option.to_owned(), |long| format!("--{long}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(line: &str) -> Result<Target, OptionError> {
        let words = ["nvmf-initiator", "connect"]
            .into_iter()
            .chain(line.split_whitespace());
        match Cli::try_parse_from(words)
            .unwrap_or_else(|error| panic!("{line}: {error}"))
            .command
        {
            Command::Connect(args) => args.target(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn letters_are_nvme_clis() {
        let short = connect(
            "-t tcp -a 192.0.2.1 -s 4421 -n n -i 4 -Q 64 -k 7 -c 2 -l -1 -F 3 -g -G -d -D -w 192.0.2.9 -f eth0 -T 8",
        )
        .unwrap();
        let long = connect(
            "--transport=tcp --traddr=192.0.2.1 --trsvcid=4421 --nqn=n --nr-io-queues=4 --queue-size=64 \
             --keep-alive-tmo=7 --reconnect-delay=2 --ctrl-loss-tmo=-1 --fast_io_fail_tmo=3 --hdr-digest \
             --data-digest --disable-sqflow --duplicate-connect --host-traddr=192.0.2.9 --host-iface=eth0 --tos=8",
        )
        .unwrap();
        assert_eq!(short, long);
        let options = &short.options;
        assert_eq!(
            (
                options.reconnect_delay,
                options.ctrl_loss_tmo,
                options.fast_io_fail_tmo
            ),
            (2, -1, 3)
        );
        assert!(
            options.hdr_digest
                && options.data_digest
                && options.duplicate_connect
                && options.disable_sqflow
        );
    }

    #[test]
    fn what_is_wrong_is_called_by_its_flag() {
        let wrong = |line: &str| connect(line).unwrap_err().calling(flag);
        let says = |line: &str, words: &[&str]| {
            let text = wrong(line);
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
            assert!(
                !text.contains("_traddr") && !text.contains("memory_"),
                "{text}"
            );
        };
        says("-a h -n n --memory-windows", &["option --memory-windows "]);
        says("-t rdma -a h -n n -g", &["option --hdr-digest "]);
        says(
            "-t rdma -a h -n n -f eth0",
            &["option --host-iface ", "as --host-traddr"],
        );
        says("-a h -n n -Q 4000", &["option --queue-size: 4000"]);
        says("-a h -n n -i 1000", &["option --nr-io-queues: 1000"]);
        // One that has no flag in nvme-cli's usual form.
        says(
            "-a h -n n -F 20 -l 10",
            &["--fast_io_fail_tmo 20 s", "--ctrl-loss-tmo 10 s"],
        );
        says("-a h -n n -w nowhere", &["option --host-traddr: 'nowhere'"]);
        assert_eq!(flag("connect_timeout_ms"), "connect_timeout_ms");
    }

    #[test]
    fn defaults_and_refusals() {
        assert_eq!(
            connect("-a h -n n").unwrap().options,
            ConnectOptions::default()
        );
        assert!(
            !connect("-a h -n n --enable-sqflow")
                .unwrap()
                .options
                .disable_sqflow
        );
        let rdma = connect("-t rdma -a h -n n").unwrap();
        assert_eq!(rdma.address, Address::rdma("h", 4420));
        let error = connect("-t rdma -a h -n n -g").unwrap_err().to_string();
        assert!(
            error.contains("hdr_digest") && error.contains("over RDMA"),
            "{error}"
        );
        assert!(!rdma.options.memory_windows);
        let windows = connect("-t rdma -a h -n n --memory-windows").unwrap();
        assert!(windows.options.memory_windows);
        let error = connect("-a h -n n --memory-windows").unwrap_err();
        assert!(matches!(error, OptionError::RdmaOnly(_)), "{error}");
        let error = connect("-t fc -a h -n n").unwrap_err().to_string();
        assert!(error.contains("tcp and rdma"), "{error}");
        assert!(matches!(
            connect("-n n"),
            Err(OptionError::Address(AddressError::NoHost))
        ));
        assert!(matches!(
            connect("-a h -n n -Q 4000"),
            Err(OptionError::Range {
                key: "queue_size",
                ..
            })
        ));
    }
}
