//! The daemon's life: start, take up what was left, listen, end.

use std::io::{self, Write as _};
use std::rc::Rc;
use std::time::Duration;

use nvmf_io::cpu::CoreList;
use sd_notify::NotifyState;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::RunDir;
use super::api::{Envelope, Failure, FailureKind, Reply, Request, Selection, VERSION};
use super::keeper::{self, Keeper};
use super::node::Node;
use super::shard::{DeviceShard, ShardOptions};
use super::shared::Shared;
use super::state::State;
use crate::control::runtime;

/// A daemon that was started on demand ends when nothing has been connected for this long.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// A request is a line; a longer one is a mistake.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// A client that connects and says nothing is not waited for.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// How the daemon runs.
#[derive(Debug, Clone, Default)]
pub struct DaemonOptions {
    /// Threads that serve devices; `None` is one for each core.
    pub shards: Option<u16>,
    /// Cores to pin them to, round and round.
    pub cores: Option<CoreList>,
    /// How long they spin before they sleep.
    pub busy_poll: Duration,
    /// A keeper is at standard input, and somebody waits at standard output for one line: `ready` or why not.
    pub kept: bool,
}

/// Runs the daemon until it is told to end.
pub fn run(run: &RunDir, options: &DaemonOptions) -> io::Result<()> {
    let result = start(run, options);
    if options.kept {
        let line = match &result {
            Ok(_) => "ready".to_owned(),
            Err(error) => error.to_string().replace('\n', " "),
        };
        // Whoever waited may have gone.
        let _ = writeln!(io::stdout(), "{line}");
        let null = std::fs::File::options().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&null)?;
    }
    let started = result?;
    started.runtime.block_on(serve(
        started.node,
        started.listener,
        started.held,
        options.kept,
    ))
}

struct Started {
    runtime: tokio_uring::Runtime,
    node: Rc<Node>,
    listener: UnixListener,
    held: keeper::Held,
    /// Held as long as the daemon lives, unless the keeper has it.
    _lock: Option<std::fs::File>,
}

fn start(run: &RunDir, options: &DaemonOptions) -> io::Result<Started> {
    run.create().map_err(|error| {
        let what = format!(
            "cannot make {}: {error}; run as root, or give --run-dir",
            run.path().display()
        );
        io::Error::new(error.kind(), what)
    })?;
    let lock = match options.kept {
        true => None,
        false => match keeper::lock(run)? {
            Some(lock) => Some(lock),
            None => {
                let what = format!("another daemon works in {}", run.path().display());
                return Err(io::Error::new(io::ErrorKind::AddrInUse, what));
            }
        },
    };
    let (keeper, held) = Keeper::find(options.kept)?;
    if matches!(keeper, Keeper::Nobody) {
        tracing::warn!("nobody keeps this daemon's descriptors: FUSE devices will not survive it");
    }
    let state = State::read(run)?;
    // A device has a handful: its connections, its channels, its file.
    if let Err(error) = nvmf_io::probe::raise_nofile_limit() {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
    // Threads inherit what they are started with.
    keeper::protect();
    let runtime = runtime()?;
    let shards = shards(options)?;
    let socket = run.socket();
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // tokio's own: tokio-uring asks for SO_REUSEPORT, which newer kernels refuse for a unix socket.
    let listener = runtime.block_on(async { UnixListener::bind(&socket) })?;
    let node = Node::new(Shared::new(run.clone(), shards, keeper, state));
    Ok(Started {
        runtime,
        node,
        listener,
        held,
        _lock: lock,
    })
}

fn shards(options: &DaemonOptions) -> io::Result<Vec<DeviceShard>> {
    let cores = options
        .cores
        .as_ref()
        .map(|list| list.0.as_slice())
        .unwrap_or_default();
    let count = match options.shards {
        Some(count) => usize::from(count.max(1)),
        None if !cores.is_empty() => cores.len(),
        None => std::thread::available_parallelism()?.get(),
    };
    let start = |index: usize| {
        let core = (!cores.is_empty()).then(|| cores[index % cores.len()]);
        DeviceShard::start(
            index,
            ShardOptions {
                core,
                busy_poll: options.busy_poll,
            },
        )
    };
    (0..count).map(start).collect()
}

async fn serve(
    node: Rc<Node>,
    listener: UnixListener,
    held: keeper::Held,
    may_idle: bool,
) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    node.resume(held).await;
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    tracing::info!(run_dir = %node.shared.run.path().display(), "ready");
    let keeping = node.clone();
    tokio_uring::spawn(async move { keeping.keep_a_keeper().await });
    let (stop, mut stopped) = tokio::sync::mpsc::channel(1);
    let accepting = node.clone();
    let acceptor = tokio_uring::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (node, stop) = (accepting.clone(), stop.clone());
                    tokio_uring::spawn(async move {
                        if let Err(error) = answer(&node, &stream, &stop).await {
                            tracing::debug!(%error, "a client went away");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    });
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = stopped.recv() => {}
        () = idle(&node), if may_idle => tracing::info!("nothing is connected; ending"),
    }
    acceptor.abort();
    end(&node).await;
    Ok(())
}

/// Returns when nothing has been connected for a while.
async fn idle(node: &Node) {
    loop {
        let changed = node.shared.changed.notified();
        if !node.is_idle() {
            changed.await;
        } else if timeout(IDLE_LIMIT, changed).await.is_err() && node.is_idle() {
            return;
        }
    }
}

/// Disconnects what nobody uses. Devices in use are left to the next daemon.
async fn end(node: &Node) {
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    if let Reply::Failed(failure) = node
        .answer(Request::Disconnect {
            what: Selection::All,
            force: false,
        })
        .await
    {
        tracing::warn!(%failure, "devices are left to the next daemon");
        // Dropping a device would remove it: leave it as a crash would.
        std::process::exit(0);
    }
    let _ = std::fs::remove_file(node.shared.run.socket());
    node.shared.keeper.bye();
}

async fn answer(
    node: &Node,
    stream: &UnixStream,
    stop: &tokio::sync::mpsc::Sender<()>,
) -> io::Result<()> {
    let reply = match timeout(REQUEST_LIMIT, read_line(stream)).await {
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        Ok(line) => match parse(&line?) {
            Ok(request) => {
                let is_stop = matches!(request, Request::Stop);
                let reply = node.answer(request).await;
                if is_stop && matches!(reply, Reply::Done) {
                    let _ = stop.send(()).await;
                }
                reply
            }
            Err(failure) => Reply::Failed(failure),
        },
    };
    // A list of hundreds takes longer than others should wait for this thread.
    let line = match reply {
        Reply::List(_) => tokio::task::spawn_blocking(move || line_of(&reply)).await?,
        reply => line_of(&reply),
    };
    write_all(stream, &line?).await
}

fn line_of(reply: &Reply) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    Ok(line)
}

fn parse(line: &[u8]) -> Result<Request, Failure> {
    let failed = |what: String| FailureKind::Other.because(what);
    // The version first: what follows may have another form.
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let version = serde_json::from_slice::<Version>(line)
        .map_err(|error| failed(error.to_string()))?
        .version;
    if version != VERSION {
        return Err(failed(format!(
            "the daemon speaks version {VERSION} of its protocol, this command {version}: disconnect with the old command, \
             or end the daemon so that the new one is started"
        )));
    }
    serde_json::from_slice::<Envelope>(line)
        .map(|envelope| envelope.request)
        .map_err(|error| failed(error.to_string()))
}

async fn read_line(stream: &UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        stream.readable().await?;
        let mut part = [0; 4096];
        let read = match stream.try_read(&mut part) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        line.extend_from_slice(&part[..read]);
        if let Some(end) = line.iter().position(|&byte| byte == b'\n') {
            line.truncate(end);
            return Ok(line);
        }
        if line.len() > MAX_REQUEST_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

async fn write_all(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
