//! `nvmf-csi`: the command line of the CSI driver.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use nvmf_csi::controller::targets::Segment;
use nvmf_csi::controller::{self, ControllerService, Targets};
use nvmf_csi::identity::IdentityService;
use nvmf_csi::node::{self, Ephemeral, NodeService};
use nvmf_csi::serve::{self, Services};
use nvmf_initiator::host::HostFiles;
use nvmf_initiator::options::ConnectOptions;
use nvmf_rpc::TlsArgs;
use nvmf_volume::{Node, NodeOptions};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The part of the driver that is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Volumes and snapshots, beside the target.
    Controller,
    /// Devices and mounts, on each node.
    Node,
    /// Both.
    All,
}

/// A CSI driver on the pools of nvmf-target.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Socket to serve on.
    #[arg(long)]
    endpoint: String,
    /// What to serve.
    #[arg(long, value_enum, default_value = "all")]
    mode: Mode,
    /// Where the target's volumes can be reached from, or where this node is, as KEY=VALUE; repeatable. TARGET:KEY=VALUE is of one
    /// of several targets alone.
    #[arg(long, value_name = "[TARGET:]KEY=VALUE", value_parser = Segment::written)]
    topology: Vec<Segment>,

    /// The target's management API: its socket, or tls://HOST:PORT. For a controller, /run/nvmf-target/rpc.sock if none is given; a
    /// node takes inline ephemeral volumes only with it. Repeatable: each further target has a name, which stays in the identifiers
    /// of its volumes.
    #[arg(long, value_name = "[NAME=]PATH|tls://HOST:PORT", env = "NVMF_RPC")]
    rpc: Vec<String>,
    #[command(flatten)]
    tls: TlsArgs,
    /// Pool of volumes whose StorageClass names none; otherwise that with the most room.
    #[arg(long)]
    pool: Option<String>,
    /// Size of volumes for which none is asked: bytes, or a number with K, M, G, T or P (powers of 1024).
    #[arg(long, default_value = "10G", value_parser = nvmf_size::parse_nonzero)]
    size: u64,
    /// The target's address as nodes reach it; otherwise that of its listener. TARGET=ADDRESS is of one of several targets alone.
    #[arg(short = 'a', long, value_name = "[TARGET=]ADDRESS")]
    traddr: Vec<String>,

    /// Node: NQN of this host, which is the node's identifier; otherwise that in /etc/nvme/hostnqn.
    #[arg(short = 'q', long)]
    hostnqn: Option<String>,
    /// Node: identifier of this host; otherwise that in /etc/nvme/hostid.
    #[arg(short = 'I', long)]
    hostid: Option<String>,
    /// Node: the most volumes that it takes; 0 leaves it to the orchestrator.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
    max_volumes: i64,
    /// Node: form of block devices: auto, ublk, fuse or nbd.
    #[arg(long, default_value = "auto")]
    block: String,
    /// Node: folder of locks, claims and records; a reboot must empty it.
    #[arg(long, default_value = "/run/nvmf-volume")]
    run_dir: PathBuf,
    /// Node: the nvmf-initiator program, which is started where its daemon does not run.
    #[arg(long, default_value = "nvmf-initiator")]
    initiator: PathBuf,
    /// Node: run folder of the initiator's daemon.
    #[arg(long, default_value = nvmf_initiator::daemon::RUN_DIR)]
    initiator_run_dir: PathBuf,
    /// Node: seconds between two attempts to reconnect to a target that is gone.
    #[arg(short = 'c', long, default_value_t = 2)]
    reconnect_delay: u32,
    /// Node: seconds after which the I/O of pods fails when the target stays away; -1 never.
    #[arg(short = 'l', long, default_value_t = 600, allow_hyphen_values = true)]
    ctrl_loss_tmo: i32,
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .init();
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nvmf-csi: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let endpoint = serve::endpoint(&cli.endpoint)?;
    // Of this node: what is said of no target alone.
    let own = cli.topology.iter().filter(|s| s.target.is_none());
    let topology: BTreeMap<_, _> = own.map(|s| (s.key.clone(), s.value.clone())).collect();
    let mut rpc = cli.rpc.clone();
    if rpc.is_empty() && cli.mode != Mode::Node {
        rpc.push(nvmf_rpc::DEFAULT_SOCKET.to_owned());
    }
    let targets = match rpc.is_empty() {
        true => None,
        false => Some(Targets::written(
            &rpc,
            &cli.tls,
            &cli.traddr,
            &cli.topology,
        )?),
    };
    let controller = targets.clone().filter(|_| cli.mode != Mode::Node);
    let services = Services {
        identity: IdentityService {
            targets: controller.clone(),
            // What is said of a target alone is no topology of a node.
            has_topology: match cli.mode {
                Mode::Node => !topology.is_empty(),
                Mode::Controller | Mode::All => !cli.topology.is_empty(),
            },
        },
        controller: controller.map(|targets| {
            let settings = controller::Settings {
                pool: cli.pool.clone(),
                size_bytes: cli.size,
            };
            ControllerService::new(settings, targets)
        }),
        node: match cli.mode {
            Mode::Controller => None,
            Mode::Node | Mode::All => Some(node_service(&cli, topology, targets)?),
        },
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let listener = serve::listen(&endpoint)?;
        tracing::info!(endpoint = %endpoint.display(), mode = ?cli.mode, "ready");
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        serve::serve(services, listener, stop).await?;
        // Another driver may have taken the place already, and then it is not ours to remove; but then it also was not there.
        let _ = std::fs::remove_file(&endpoint);
        Ok(())
    })
}

fn node_service(
    cli: &Cli,
    topology: BTreeMap<String, String>,
    targets: Option<Targets>,
) -> anyhow::Result<NodeService> {
    let connect = ConnectOptions {
        reconnect_delay: cli.reconnect_delay,
        ctrl_loss_tmo: cli.ctrl_loss_tmo,
        keep_alive_tmo: nvmf_volume::KEEP_ALIVE_TMO,
        ..ConnectOptions::default()
    };
    connect.validate()?;
    let host = HostFiles::default()
        .identity(cli.hostnqn.as_deref(), cli.hostid.as_deref())
        .context("this node has no identity")?;
    let settings = node::Settings {
        host,
        connect,
        block: cli.block.clone(),
        run_dir: cli.run_dir.clone(),
        topology,
        max_volumes: cli.max_volumes,
        ephemeral: targets.map(|targets| Ephemeral {
            targets,
            pool: cli.pool.clone(),
            size_bytes: cli.size,
        }),
    };
    let node = Node::new(NodeOptions {
        initiator_run_dir: cli.initiator_run_dir.clone(),
        initiator: cli.initiator.clone(),
        run_dir: cli.run_dir.clone(),
    });
    node.sweep()?;
    Ok(NodeService::new(settings, node))
}
