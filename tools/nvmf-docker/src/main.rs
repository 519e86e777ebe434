//! `nvmf-docker`: the command line of the Docker volume plugin.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use nvmf_docker::driver::{Driver, Settings};
use nvmf_docker::http;
use nvmf_docker::pool::Target;
use nvmf_initiator::host::HostFiles;
use nvmf_initiator::options::ConnectOptions;
use nvmf_rpc::{Endpoint, TlsArgs};
use nvmf_volume::{FsKind, Node, NodeOptions};
use rustix::fs::FlockOperation;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Where Docker looks for plugins; the file's name is the plugin's.
const SOCKET: &str = "/run/docker/plugins/nvmf.sock";

/// A Docker volume plugin on the pools of nvmf-target.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves dockerd until it is told to end. Volumes stay mounted under the containers that use them.
    Serve(Box<ServeArgs>),
    /// Grows a volume, and its file system with it, under the containers that use it.
    Grow(GrowArgs),
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Socket on which dockerd finds the plugin.
    #[arg(long, default_value = SOCKET)]
    socket: PathBuf,
    /// Folder of what is known of volumes, and of their mount points.
    #[arg(long, default_value = "/var/lib/nvmf-docker")]
    state_dir: PathBuf,
    /// Folder of locks and of the claims on devices; a reboot must empty it, and the CSI driver on this node must use the same.
    #[arg(long, default_value = "/run/nvmf-volume")]
    run_dir: PathBuf,
    /// The target's management API: its socket, or tls://HOST:PORT.
    #[arg(long, value_name = "PATH|tls://HOST:PORT", env = "NVMF_RPC", default_value = nvmf_rpc::DEFAULT_SOCKET)]
    rpc: String,
    #[command(flatten)]
    tls: TlsArgs,
    /// Pool of volumes that name none; otherwise the target's only one.
    #[arg(long)]
    pool: Option<String>,
    /// Size of volumes that name none.
    #[arg(long, default_value = "10G", value_parser = nvmf_size::parse_nonzero)]
    size: u64,
    /// File system of volumes that name none: ext4 or xfs.
    #[arg(long, default_value = "ext4")]
    fs: String,
    /// The target's address as this node reaches it; otherwise that of its listener.
    #[arg(short = 'a', long)]
    traddr: Option<String>,
    /// NQN of this host; otherwise that in /etc/nvme/hostnqn.
    #[arg(short = 'q', long)]
    hostnqn: Option<String>,
    /// Identifier of this host; otherwise that in /etc/nvme/hostid.
    #[arg(short = 'I', long)]
    hostid: Option<String>,
    /// Form of block devices: auto, ublk, fuse or nbd.
    #[arg(long, default_value = "auto")]
    block: String,
    /// The nvmf-initiator program, which is started where its daemon does not run.
    #[arg(long, default_value = "nvmf-initiator")]
    initiator: PathBuf,
    /// Run folder of the initiator's daemon.
    #[arg(long, default_value = nvmf_initiator::daemon::RUN_DIR)]
    initiator_run_dir: PathBuf,
    /// Seconds between two attempts to reconnect to a target that is gone.
    #[arg(short = 'c', long, default_value_t = 2)]
    reconnect_delay: u32,
    /// Seconds after which the I/O of containers fails when the target stays away; -1 never.
    #[arg(short = 'l', long, default_value_t = 600, allow_hyphen_values = true)]
    ctrl_loss_tmo: i32,
    /// Seconds between two looks for what crashes left behind.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    tidy_every: u64,
}

#[derive(Debug, Args)]
struct GrowArgs {
    /// The volume.
    name: String,
    /// Its size from then on, such as 20G.
    size: String,
    /// Socket of the plugin.
    #[arg(long, default_value = SOCKET)]
    socket: PathBuf,
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .init();
    let result = match Cli::parse().command {
        Command::Serve(args) => serve(&args),
        Command::Grow(args) => grow(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nvmf-docker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let connect = ConnectOptions {
        reconnect_delay: args.reconnect_delay,
        ctrl_loss_tmo: args.ctrl_loss_tmo,
        keep_alive_tmo: nvmf_volume::KEEP_ALIVE_TMO,
        ..ConnectOptions::default()
    };
    connect.validate()?;
    let settings = Settings {
        state_dir: args.state_dir.clone(),
        run_dir: args.run_dir.join("docker"),
        pool: args.pool.clone(),
        size_bytes: args.size,
        fs: args.fs.parse::<FsKind>().context("--fs")?,
        traddr: args.traddr.clone(),
        host: HostFiles::default().identity(args.hostnqn.as_deref(), args.hostid.as_deref())?,
        connect,
        block: args.block.clone(),
    };
    make_private(&args.state_dir)?;
    make_private(&args.run_dir)?;
    let _lock = lock(&args.state_dir)?;
    let node = Node::new(NodeOptions {
        initiator_run_dir: args.initiator_run_dir.clone(),
        initiator: args.initiator.clone(),
        run_dir: args.run_dir.clone(),
    });
    let target = Target::new(Endpoint::written(&args.rpc, &args.tls).context("--rpc")?);
    let driver = Arc::new(Driver::new(settings, node, target)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(run(driver, args))
}

async fn run(driver: Arc<Driver>, args: &ServeArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = http::listen(&args.socket)
        .with_context(|| format!("cannot listen on {}", args.socket.display()))?;
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let server = tokio::spawn(http::serve(driver.clone(), listener, stopping));
    let every = Duration::from_secs(args.tidy_every);
    let tidying = tokio::spawn(async move {
        let mut timer = tokio::time::interval(every);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // The first is at once: what the plugin before left.
            timer.tick().await;
            let driver = driver.clone();
            // A panic there is told by its own message.
            let _ = tokio::task::spawn_blocking(move || driver.tidy()).await;
        }
    });
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(socket = %args.socket.display(), "ready");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tidying.abort();
    // Receivers that are gone have stopped.
    let _ = stop.send(true);
    server.await?;
    let _ = std::fs::remove_file(&args.socket);
    Ok(())
}

fn make_private(folder: &Path) -> anyhow::Result<()> {
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder);
    made.with_context(|| {
        format!(
            "cannot make {}; run as root, or choose another folder",
            folder.display()
        )
    })
}

fn lock(state_dir: &Path) -> anyhow::Result<File> {
    let path = state_dir.join("lock");
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&path);
    let file = file.with_context(|| path.display().to_string())?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!("another nvmf-docker works in {}", state_dir.display())
        }
        Err(errno) => Err(errno).with_context(|| path.display().to_string()),
    }
}

/// Asks the plugin that runs, as dockerd would.
fn grow(args: &GrowArgs) -> anyhow::Result<()> {
    let body = serde_json::json!({ "Name": args.name, "Size": args.size }).to_string();
    let request = format!(
        "POST {} HTTP/1.1\r\nHost: plugin\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        http::GROW,
        body.len()
    );
    let mut stream = UnixStream::connect(&args.socket)
        .with_context(|| format!("{}: does nvmf-docker run?", args.socket.display()))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .context("nvmf-docker broke off; its log may say why")?;
    let body: serde_json::Value =
        serde_json::from_str(body).context("nvmf-docker answered something else")?;
    match body["Err"].as_str() {
        Some("") => Ok(()),
        Some(error) => bail!("{error}"),
        None => bail!("nvmf-docker answered something else: {body}"),
    }
}
