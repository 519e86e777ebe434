//! `block-serve`: a block device of any form on memory, on a file, or on nothing, without any network.
//!
//! It shows what a form costs by itself, and serves the tests of the forms.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use nvmf_initiator::block::serve::{Backing, ServeOptions, Server};
use nvmf_initiator::block::{BlockForm, BlockLimits, DeviceSpec, keeper};

/// Serves a block device from memory, from a file or from nothing.
///
/// Prints the path of the device when it is there, and removes it when standard input is closed. Commands on standard
/// input, one a line: `resize BYTES`, `stats`, `detach`, `detach --force`; each is answered with a line.
#[derive(Parser)]
struct Arguments {
    /// Form of the device: auto, ublk, nbd, fuse or nbd-socket
    #[arg(long, default_value = "auto")]
    block: BlockForm,
    /// Size of the device in bytes
    #[arg(long, default_value_t = 1 << 30)]
    size: u64,
    /// Logical block size in bytes
    #[arg(long, default_value_t = 512)]
    block_size: u32,
    /// What keeps the data: null, memory, or the path of a file
    #[arg(long, default_value = "memory")]
    backing: String,
    /// Refuse writes
    #[arg(long)]
    read_only: bool,
    /// Number of queues, each with a thread
    #[arg(long, default_value_t = 1)]
    queues: u16,
    /// Requests per queue
    #[arg(long, default_value_t = 128)]
    queue_depth: u16,
    /// Reads that a queue of the fuse form may have waiting for requests
    #[arg(long, default_value_t = DeviceSpec::MAX_FUSE_READERS)]
    fuse_readers: u16,
    /// Largest read or write that the backing is given, in bytes
    #[arg(long, default_value_t = 1 << 20)]
    max_transfer: u32,
    /// Name of the device
    #[arg(long, default_value = "block-serve")]
    name: String,
    /// Folder for sockets
    #[arg(long, default_value = "/run")]
    runtime_dir: PathBuf,
    /// Cores for the queues in turn, as a list of numbers
    #[arg(long, value_delimiter = ',')]
    cores: Vec<usize>,
    /// Microseconds to spin before sleeping
    #[arg(long, default_value_t = 0)]
    busy_poll: u64,
    /// Socket of a keeper that gets what another process needs to go on
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Socket of a keeper from which to take over a device whose server died
    #[arg(long)]
    resume: Option<PathBuf>,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("block-serve: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let backing = open_backing(arguments)?;
    let spec = DeviceSpec {
        name: arguments.name.clone(),
        size_bytes: arguments.size,
        block_size_bytes: arguments.block_size,
        read_only: arguments.read_only,
        limits: BlockLimits {
            max_transfer_bytes: arguments.max_transfer,
            max_discard_bytes: 1 << 30,
            max_write_zeroes_bytes: 1 << 30,
        },
        queues: arguments.queues,
        queue_depth: arguments.queue_depth,
        fuse_readers: arguments.fuse_readers,
        runtime_dir: arguments.runtime_dir.clone(),
    };
    let options = ServeOptions {
        cores: arguments.cores.clone(),
        busy_poll: Duration::from_micros(arguments.busy_poll),
    };
    let mut server = match &arguments.resume {
        Some(path) => {
            let socket = UnixStream::connect(path)
                .with_context(|| format!("connect to {}", path.display()))?;
            let kept = keeper::receive(&socket).context("take over the device")?;
            Server::resume(kept, &spec, &backing, &options)?
        }
        None => {
            let form = arguments.block.resolve()?;
            Server::start(form, &spec, &backing, &options)?
        }
    };
    if let Some(path) = &arguments.keep
        && let Some(kept) = server.device().keep()?
    {
        let socket =
            UnixStream::connect(path).with_context(|| format!("connect to {}", path.display()))?;
        keeper::send(&socket, &kept).context("give the device to the keeper")?;
        // The keeper closes the connection when it has everything.
        (&socket).read_to_end(&mut Vec::new())?;
    }
    println!("{}", server.path().display());
    commands(server)
}

fn open_backing(arguments: &Arguments) -> anyhow::Result<Backing> {
    Ok(match arguments.backing.as_str() {
        "null" => Backing::Null,
        "memory" => {
            // Address space only: room to grow.
            let memory = nvmf_io::mem::SharedMemory::new(arguments.size.saturating_mul(4))?;
            Backing::Memory(Arc::new(memory))
        }
        path => {
            let file = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path);
            let file = file.with_context(|| format!("open {path}"))?;
            if file.metadata()?.len() < arguments.size {
                file.set_len(arguments.size)
                    .with_context(|| format!("grow {path}"))?;
            }
            Backing::File(Arc::new(OwnedFd::from(file)))
        }
    })
}

fn commands(mut server: Server) -> anyhow::Result<()> {
    for line in io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            ["resize", bytes] => {
                let bytes = bytes
                    .parse()
                    .with_context(|| format!("'{bytes}' is no number of bytes"))?;
                server
                    .device()
                    .resize(bytes)
                    .map(|()| "ok".to_owned())
                    .unwrap_or_else(|e| e.to_string())
            }
            ["stats"] => server.counters().to_string(),
            ["detach"] | ["detach", "--force"] => match server.detach(words.len() == 2) {
                Ok(()) => {
                    println!("ok");
                    return Ok(());
                }
                Err(error) => error.to_string(),
            },
            _ => bail!(
                "unknown command '{line}': give resize BYTES, stats, detach, or detach --force"
            ),
        };
        println!("{answer}");
        io::stdout().flush()?;
    }
    Ok(())
}
