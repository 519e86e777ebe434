//! The yardstick of every figure: what two pinned processes exchange over the loopback with no protocol.
//!
//! `ceiling pipe --depth 32 --request 72 --response 4120` prints what bare system calls reach; with `--server ring`
//! the answers come through nvmf-io's ring, and with `--compare` both are measured in turn.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use nvmf_benches::client::{self, Figures};
use nvmf_benches::ring::RingOptions;
use nvmf_benches::shape::Shape;
use nvmf_benches::{plain, ring};
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
    /// Core of the side that answers.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// Core of the side that asks.
    #[arg(long, default_value_t = 1)]
    client_core: usize,
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
    cpu::pin(cli.run.server_core)?;
    let options = net::SocketOptions {
        buffer_bytes: Some(SOCKET_BUFFER_BYTES),
        ..net::SocketOptions::default()
    };
    let socket = net::connect(address, None, &options, Duration::from_secs(5))?;
    let socket = TcpStream::from(socket);
    socket.set_nonblocking(cli.shape.mode.spins())?;
    let served = match cli.run.server {
        ServerKind::Plain => plain::serve(socket, &cli.shape).map_err(anyhow::Error::from),
        ServerKind::Ring => ring::serve(socket, &cli.shape, &cli.ring),
    };
    // The side that asks stops in the middle.
    served.or_else(|error| {
        if is_cut_off(&error) {
            Ok(())
        } else {
            Err(error)
        }
    })
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
    cpu::pin(cli.run.client_core)?;
    let listener = net::listen(SocketAddr::from(([127, 0, 0, 1], cli.run.port)))?;
    let mut child = Served(spawn(server, &listener)?);
    let (socket, _) = listener.accept()?;
    let options = net::SocketOptions {
        buffer_bytes: Some(SOCKET_BUFFER_BYTES),
        ..net::SocketOptions::default()
    };
    net::configure(&socket, &options)?;
    socket.set_nonblocking(cli.shape.mode.spins())?;
    let figures = client::run(socket, &cli.shape, cli.run.seconds)?;
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
            "{:?} depth {} {}->{}: {:.0}/s mean {:.2} us p50 {:.2} p99 {:.2} p99.9 {:.2}",
            cli.shape.mode,
            cli.shape.depth,
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
