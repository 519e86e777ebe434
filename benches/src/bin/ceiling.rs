//! The yardstick of every figure: what two pinned processes exchange over the loopback with no protocol.
//!
//! `ceiling pipe --depth 32 --request 72 --response 4120` prints what bare system calls reach; with `--server ring`
//! the answers come through nvmf-io's ring, and with `--compare` both are measured in turn.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use nvmf_benches::client::{self, Figures};
use nvmf_benches::ring::RingOptions;
use nvmf_benches::shape::{Mode, Shape};
use nvmf_benches::{many, plain, ring};
use nvmf_io::cpu::CoreList;
use nvmf_io::{cpu, net};

/// Buffers of both sockets: what a data path would ask for.
const SOCKET_BUFFER_BYTES: usize = 2 << 20;

#[derive(Parser)]
#[command(
    args_override_self = true,
    about = "Measures what two pinned processes exchange over the loopback",
    version
)]
struct Cli {
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    ring: RingOptions,
    #[command(flatten)]
    run: RunOptions,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Args, Clone)]
struct RunOptions {
    /// Seconds of measurement, after half a second of ramp.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Who answers.
    #[arg(long, value_enum, default_value_t = ServerKind::Plain)]
    server: ServerKind,
    /// Measures bare system calls and the ring in turn, this many rounds, and prints medians and their ratio.
    #[arg(long)]
    compare: Option<usize>,
    /// Core of the side that answers; of several each has a thread with its part of the connections (many).
    #[arg(long, default_value = "0")]
    server_core: CoreList,
    /// Core of the side that asks; of several its threads take one in turn (many).
    #[arg(long, default_value = "1")]
    client_core: CoreList,
    /// Port of the listener on 127.0.0.1; 0 for any.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ServerKind {
    /// Bare system calls.
    Plain,
    /// nvmf-io's ring.
    Ring,
}

#[derive(Subcommand)]
enum Role {
    /// The other process: connects and answers.
    #[command(hide = true)]
    Serve { address: SocketAddr },
}

fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let cli = Cli::parse();
    match cli.role {
        Some(Role::Serve { address }) => serve(&cli, address),
        None => measure(&cli),
    }
}

fn serve(cli: &Cli, address: SocketAddr) -> Result<()> {
    let options = net::SocketOptions {
        buffer_bytes: Some(SOCKET_BUFFER_BYTES),
        ..net::SocketOptions::default()
    };
    let cores = &cli.run.server_core.0;
    let mut shares: Vec<Vec<TcpStream>> = cores.iter().map(|_| Vec::new()).collect();
    for at in 0..cli.shape.connections {
        let socket = net::connect(address, None, &options, Duration::from_secs(5))?;
        let socket = TcpStream::from(socket);
        socket.set_nonblocking(cli.shape.mode.spins())?;
        shares[at % cores.len()].push(socket);
    }
    std::thread::scope(|scope| {
        let served: Vec<_> = cores
            .iter()
            .zip(shares)
            .map(|(&core, sockets)| scope.spawn(move || serve_on(cli, core, sockets)))
            .collect();
        served.into_iter().try_for_each(|thread| {
            let served = thread
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a thread that answers panicked")));
            // The side that asks stops in the middle.
            served.or_else(|error| {
                if is_cut_off(&error) {
                    Ok(())
                } else {
                    Err(error)
                }
            })
        })
    })
}

fn serve_on(cli: &Cli, core: usize, mut sockets: Vec<TcpStream>) -> Result<()> {
    cpu::pin(core)?;
    match (cli.run.server, cli.shape.mode) {
        (ServerKind::Ring, _) => ring::serve(sockets, &cli.shape, &cli.ring),
        (ServerKind::Plain, Mode::Many) => Ok(many::serve(sockets, &cli.shape)?),
        (ServerKind::Plain, _) => {
            let socket = sockets.pop().context("no connection to serve")?;
            Ok(plain::serve(socket, &cli.shape)?)
        }
    }
}

fn is_cut_off(error: &anyhow::Error) -> bool {
    let kind = error
        .downcast_ref::<std::io::Error>()
        .map(std::io::Error::kind)
        .or_else(|| {
            let errno = error.downcast_ref::<nvmf_io::Errno>()?;
            Some(std::io::Error::from(*errno).kind())
        });
    matches!(
        kind,
        Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
    )
}

fn measure(cli: &Cli) -> Result<()> {
    if cli.shape.request == 0 || cli.shape.response == 0 || cli.shape.depth == 0 {
        bail!("--request, --response and --depth must be at least 1");
    }
    check_many(cli)?;
    let Some(rounds) = cli.run.compare else {
        let figures = once(cli, cli.run.server)?;
        return print(cli, &figures);
    };
    let (mut rates, mut medians) = (Vec::new(), Vec::new());
    for _ in 0..rounds.max(1) {
        let ceiling = once(cli, ServerKind::Plain)?;
        let ours = once(cli, ServerKind::Ring)?;
        rates.push(ours.per_second / ceiling.per_second);
        medians.push(ceiling.p50_us / ours.p50_us);
    }
    println!(
        "{:?} depth {} {}->{}: share of the ceiling by rate {}, by median latency {}",
        cli.shape.mode,
        cli.shape.depth,
        cli.shape.request,
        cli.shape.response,
        Spread(rates),
        Spread(medians),
    );
    Ok(())
}

/// Whether connections and threads go with the rest.
fn check_many(cli: &Cli) -> Result<()> {
    let (shape, run) = (&cli.shape, &cli.run);
    let servers = run.server_core.0.len();
    if shape.mode != Mode::Many {
        let clients = run.client_core.0.len();
        if shape.connections != 1 || shape.threads != 1 || servers != 1 || clients != 1 {
            bail!("--connections, --threads and several cores go with mode many");
        }
        return Ok(());
    }
    if shape.threads == 0 || !shape.connections.is_multiple_of(shape.threads) {
        bail!("--threads must be at least 1 and divide --connections");
    }
    if shape.connections < servers {
        bail!("{servers} cores that answer need as many --connections");
    }
    if !shape.depth.is_multiple_of(shape.threads) {
        bail!("--threads must divide --depth");
    }
    Ok(())
}

/// Median, minimum and maximum.
struct Spread(Vec<f64>);

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut values = self.0.clone();
        values.sort_by(f64::total_cmp);
        let (median, last) = (values[values.len() / 2], values[values.len() - 1]);
        write!(f, "{median:.3} ({:.3} to {last:.3})", values[0])
    }
}

fn once(cli: &Cli, server: ServerKind) -> Result<Figures> {
    if cli.shape.mode != Mode::Many {
        cpu::pin(cli.run.client_core.0[0])?;
    }
    let listener = net::listen(SocketAddr::from(([127, 0, 0, 1], cli.run.port)))?;
    let mut child = Served(spawn(server, &listener)?);
    let options = net::SocketOptions {
        buffer_bytes: Some(SOCKET_BUFFER_BYTES),
        ..net::SocketOptions::default()
    };
    let each = cli.shape.connections / cli.shape.threads;
    let mut threads = Vec::with_capacity(cli.shape.threads);
    for _ in 0..cli.shape.threads {
        let mut sockets = Vec::with_capacity(each);
        for _ in 0..each {
            let (socket, _) = listener.accept()?;
            net::configure(&socket, &options)?;
            socket.set_nonblocking(cli.shape.mode.spins())?;
            sockets.push(socket);
        }
        threads.push(sockets);
    }
    let figures = match cli.shape.mode {
        Mode::Many => many::run(threads, &cli.run.client_core.0, &cli.shape, cli.run.seconds)?,
        _ => {
            let socket = threads.pop().and_then(|mut sockets| sockets.pop());
            client::run(
                socket.context("no connection")?,
                &cli.shape,
                cli.run.seconds,
            )?
        }
    };
    let status = child.0.wait()?;
    // A side that is cut off in the middle of an answer may say so.
    tracing::debug!(%status, "the other side ended");
    Ok(figures)
}

/// The other process; ended if the measurement fails.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the other process: this program with the same arguments and its role.
fn spawn(server: ServerKind, listener: &TcpListener) -> Result<Child> {
    let kind = server.to_possible_value().expect("no kind is skipped");
    Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .args(["--server", kind.get_name()])
        .arg("serve")
        .arg(listener.local_addr()?.to_string())
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start the other process")
}

fn print(cli: &Cli, figures: &Figures) -> Result<()> {
    if cli.run.json {
        println!("{}", serde_json::to_string(figures)?);
    } else if figures.bytes_per_second > 0.0 {
        println!(
            "{:?} {} bytes: {:.2} GB/s",
            cli.shape.mode,
            cli.shape.request,
            figures.bytes_per_second / 1e9
        );
    } else {
        println!(
            "{:?} depth {} connections {} {}->{}: {:.0}/s mean {:.2} us p50 {:.2} p99 {:.2} p99.9 {:.2}",
            cli.shape.mode,
            cli.shape.depth,
            cli.shape.connections,
            cli.shape.request,
            cli.shape.response,
            figures.per_second,
            figures.mean_us,
            figures.p50_us,
            figures.p99_us,
            figures.p999_us,
        );
    }
    Ok(())
}
