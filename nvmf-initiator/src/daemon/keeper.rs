//! The keeper: a process that holds what must outlive the daemon, and starts the daemon again when it dies.
//!
//! It understands nothing of what it holds: descriptors under a name. It is this same program, so that the pages of the
//! program that it has locked in memory are those that a new daemon is started from, even while the disk that the program
//! is on waits for that daemon.
//!
//! A keeper that dies is replaced: the daemon sees its socket end, starts another one, which adopts it, and gives it
//! everything once more. Only where both die at once nobody is left to start anything.
//!
//! Where systemd runs the daemon, its descriptor store and its restarts take the keeper's place.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::RunDir;
use super::state::State;
use crate::block::keeper::{receive_message, send_message};

/// Room for a message: a name and a few words.
const MAX_MESSAGE_BYTES: usize = 4096;
/// A daemon that lived shorter than this is not started again at once.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// The longest pause before a daemon is started again.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// A keeper that died may still have the lock for a moment.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_INTERVAL: Duration = Duration::from_millis(10);
/// Enough for a thread that does nothing but wait: all memory of the daemon is locked.
const WATCH_STACK_BYTES: usize = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Message {
    /// Hold these descriptors under this name (to the keeper); they were held (from the keeper).
    Hold(String),
    /// Close them.
    Release(String),
    /// The daemon ends in order; it need not be started again.
    Bye,
    /// That was all that is held.
    End,
}

fn send(socket: impl AsFd, message: &Message, fds: &[OwnedFd]) -> io::Result<()> {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    send_message(socket, &serde_json::to_vec(message)?, &fds)
}

fn receive(socket: impl AsFd) -> io::Result<(Message, Vec<OwnedFd>)> {
    let (data, fds) = receive_message(socket, MAX_MESSAGE_BYTES)?;
    Ok((serde_json::from_slice(&data)?, fds))
}

/// Descriptors by name.
pub(crate) type Held = BTreeMap<String, Vec<OwnedFd>>;

// --- the keeper's process --------------------------------------------------------------------------------------------

/// Runs the keeper: starts daemons until one ends in order. Returns at once when another keeper or daemon is there. With
/// `adopt` the first daemon is there already, at the other end of standard input.
pub fn run(run: &RunDir, adopt: bool) -> io::Result<()> {
    // Started by a command that a user may interrupt: leave its session. It fails only for a group leader, which a
    // keeper is when it was started by hand, and then it may stay.
    let _ = rustix::process::setsid();
    run.create()?;
    let lock = if adopt {
        lock_patiently(run)?
    } else {
        lock(run)?
    };
    let Some(_lock) = lock else {
        return Ok(());
    };
    protect();
    if let Err(error) = nvmf_io::probe::raise_nofile_limit() {
        eprintln!("keeper: cannot raise the limit on open files: {error}");
    }
    let mut held = Held::new();
    let begin = Instant::now();
    let end = if adopt {
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        End {
            in_order: hold(&socket, &mut held),
            how: "adopted".to_owned(),
        }
    } else {
        let daemon = start_daemon(run, true)?;
        // Whoever waits for the daemon's word shall see the end of the stream when the daemon closes it.
        rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
        follow(daemon, &mut held)
    };
    let needless = || State::read(run).is_ok_and(|state| state.controllers.is_empty());
    let again = || start_daemon(run, false);
    keep(&mut held, (end, begin), needless, again, std::thread::sleep);
    Ok(())
}

/// How a daemon ended.
struct End {
    in_order: bool,
    how: String,
}

/// Follows a daemon that was started to its end.
fn follow((mut child, socket): (Child, OwnedFd), held: &mut Held) -> End {
    let in_order = serve(&socket, held);
    // A daemon that lives on without its keeper sees the socket end.
    drop(socket);
    let how = match child.wait() {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    End { in_order, how }
}

/// Starts the daemon again for as long as it is needed: not when it ended in order, or when nothing is held and the state is
/// `needless`. Nothing else ends it, least of all that starting fails for a while: what is held would be gone.
fn keep(
    held: &mut Held,
    (mut end, mut begin): (End, Instant),
    needless: impl Fn() -> bool,
    again: impl Fn() -> io::Result<(Child, OwnedFd)>,
    sleep: impl Fn(Duration),
) {
    let mut pause = Duration::ZERO;
    while !held.is_empty() || !(end.in_order || needless()) {
        pause = pause_after(begin.elapsed(), pause);
        eprintln!(
            "keeper: the daemon ended ({}); starting it again in {} s",
            end.how,
            pause.as_secs()
        );
        sleep(pause);
        begin = Instant::now();
        end = match again() {
            Ok(daemon) => follow(daemon, held),
            Err(error) => End {
                in_order: false,
                how: format!("it could not be started: {error}"),
            },
        };
    }
}

/// Takes the lock that says that a daemon is there or will be; `None` when somebody else has it.
pub(crate) fn lock(run: &RunDir) -> io::Result<Option<File>> {
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(run.lock())?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn lock_patiently(run: &RunDir) -> io::Result<Option<File>> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let lock = lock(run)?;
        if lock.is_some() || Instant::now() >= deadline {
            return Ok(lock);
        }
        std::thread::sleep(LOCK_INTERVAL);
    }
}

/// How long to wait before what lived so long is started again, after having waited so long the last time.
pub(crate) fn pause_after(lived: Duration, last: Duration) -> Duration {
    if lived >= SHORT_LIFE {
        Duration::ZERO
    } else {
        (last * 2).clamp(Duration::from_secs(1), MAX_PAUSE)
    }
}

/// What keeps memory reclaim from waiting for the devices that this process serves, as far as it is allowed to.
pub(crate) fn protect() {
    let tried = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            tracing::warn!(%error, "cannot {what}: under memory pressure this node's own devices may hang");
        }
    };
    tried(
        "mark this process as one that memory reclaim depends on (needs CAP_SYS_RESOURCE)",
        nvmf_io::process::set_io_flusher(),
    );
    tried(
        "lock its memory (needs CAP_IPC_LOCK, or enough RLIMIT_MEMLOCK)",
        nvmf_io::process::lock_memory(),
    );
    tried(
        "exempt it from the OOM killer (needs CAP_SYS_RESOURCE)",
        std::fs::write("/proc/self/oom_score_adj", "-1000"),
    );
}

fn start_daemon(run: &RunDir, with_stdout: bool) -> io::Result<(Child, OwnedFd)> {
    start(run, ["daemon", "--kept"], with_stdout)
}

/// Two ends of a socket that keeps messages apart, as keeper and daemon use it.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Starts this program once more, with a socket to it at its standard input.
fn start(run: &RunDir, arguments: [&str; 2], with_stdout: bool) -> io::Result<(Child, OwnedFd)> {
    let (ours, theirs) = pair()?;
    // The program as it runs, even when the file was replaced meanwhile.
    let child = Command::new("/proc/self/exe")
        // What `ps` shows.
        .arg0("nvmf-initiator")
        .arg("--run-dir")
        .arg(run.path())
        .args(arguments)
        .stdin(theirs)
        .stdout(if with_stdout {
            Stdio::inherit()
        } else {
            Stdio::null()
        })
        .spawn()?;
    Ok((child, ours))
}

/// Gives the daemon what is held, and holds what it gives, until it ends; whether it ended in order.
fn serve(socket: &OwnedFd, held: &mut Held) -> bool {
    let give = || -> io::Result<()> {
        for (name, fds) in held.iter() {
            send(socket, &Message::Hold(name.clone()), fds)?;
        }
        send(socket, &Message::End, &[])
    };
    if let Err(error) = give() {
        eprintln!("keeper: cannot give the daemon what is held: {error}");
    }
    hold(socket, held)
}

/// Holds what the daemon gives, until it ends; whether it ended in order.
fn hold(socket: &OwnedFd, held: &mut Held) -> bool {
    let mut in_order = false;
    loop {
        match receive(socket) {
            Ok((Message::Hold(name), fds)) => drop(held.insert(name, fds)),
            Ok((Message::Release(name), _)) => drop(held.remove(&name)),
            Ok((Message::Bye, _)) => in_order = true,
            Ok((Message::End, _)) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return in_order,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Of one device; the others are still held.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                eprintln!("keeper: a message is of no use: {error}");
            }
            Err(error) => {
                eprintln!("keeper: {error}");
                return false;
            }
        }
    }
}

// --- the daemon's end ------------------------------------------------------------------------------------------------

/// Whoever holds descriptors for this daemon.
pub(crate) enum Keeper {
    /// A keeper process, at the other end of this socket, on which it says nothing more.
    Process(RefCell<OwnedFd>),
    /// The service manager.
    Systemd,
    /// Nobody: devices die with this process, those aside that the kernel itself keeps.
    Nobody,
}

impl Keeper {
    /// Finds who holds descriptors, and takes what is held. `kept`: a keeper is at standard input.
    pub fn find(kept: bool) -> io::Result<(Keeper, Held)> {
        let mut held = Held::new();
        if kept {
            let socket = io::stdin().as_fd().try_clone_to_owned()?;
            loop {
                match receive(&socket)? {
                    (Message::Hold(name), fds) => drop(held.insert(name, fds)),
                    (Message::End, _) => return Ok((Keeper::Process(RefCell::new(socket)), held)),
                    (other, _) => {
                        return Err(io::Error::other(format!("the keeper began with {other:?}")));
                    }
                }
            }
        }
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok((Keeper::Nobody, held));
        }
        let mut passed = nvmf_io::process::passed_descriptors();
        // The store does not keep their order; their names end in it.
        passed.sort_by_key(|(name, _)| store_order(name));
        for (name, fd) in passed {
            let name = name
                .rsplit_once('#')
                .map_or(name.as_str(), |(device, _)| device);
            held.entry(name.to_owned()).or_default().push(fd);
        }
        Ok((Keeper::Systemd, held))
    }

    /// Has the descriptors held under this name, in place of what was held under it.
    pub fn hold(&self, name: &str, fds: &[OwnedFd]) -> io::Result<()> {
        match self {
            Keeper::Process(socket) => {
                send(&*socket.borrow(), &Message::Hold(name.to_owned()), fds)
            }
            Keeper::Nobody => Ok(()),
            Keeper::Systemd => {
                self.release(name, fds.len())?;
                for (index, fd) in fds.iter().enumerate() {
                    let name = format!("{name}#{index}");
                    // Without FDPOLL=0 a descriptor that reports a hang-up is dropped from the store.
                    let states = [
                        NotifyState::FdStore,
                        NotifyState::FdName(&name),
                        NotifyState::Custom("FDPOLL=0"),
                    ];
                    sd_notify::notify_with_fds(&states, &[fd.as_fd()])?;
                }
                Ok(())
            }
        }
    }

    /// Has what is held under this name closed: `count` descriptors.
    pub fn release(&self, name: &str, count: usize) -> io::Result<()> {
        match self {
            Keeper::Process(socket) => {
                send(&*socket.borrow(), &Message::Release(name.to_owned()), &[])
            }
            Keeper::Nobody => Ok(()),
            Keeper::Systemd => {
                for index in 0..count {
                    let name = format!("{name}#{index}");
                    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)])?;
                }
                Ok(())
            }
        }
    }

    /// Waits for the death of the keeper's process; for ever where there is none.
    pub async fn lost(&self) -> io::Result<()> {
        let Keeper::Process(socket) = self else {
            return std::future::pending().await;
        };
        let socket = socket.borrow().try_clone()?;
        // A thread, as to wait for the socket in the runtime it would have to be one that does not block.
        let (gone, wait) = oneshot::channel();
        std::thread::Builder::new()
            .name("keeper-watch".to_owned())
            .stack_size(WATCH_STACK_BYTES)
            .spawn(move || {
                let mut fds = [PollFd::new(&socket, PollFlags::empty())];
                while let Err(Errno::INTR) = poll(&mut fds, None) {}
                // Nobody may be waiting any more.
                let _ = gone.send(());
            })?;
        wait.await.map_err(io::Error::other)
    }

    /// Starts another process in place of one that died. It holds nothing yet.
    pub fn replace(&self, run: &RunDir) -> io::Result<Option<Child>> {
        let Keeper::Process(socket) = self else {
            return Ok(None);
        };
        let (child, ours) = start(run, ["keeper", "--adopt"], false)?;
        socket.replace(ours);
        Ok(Some(child))
    }

    /// This daemon ends in order and leaves nothing behind.
    pub fn bye(&self) {
        if let Keeper::Process(socket) = self
            && let Err(error) = send(&*socket.borrow(), &Message::Bye, &[])
        {
            tracing::warn!(%error, "cannot tell the keeper of the end");
        }
    }
}

fn store_order(name: &str) -> (String, usize) {
    match name.rsplit_once('#') {
        Some((device, index)) => (device.to_owned(), index.parse().unwrap_or(usize::MAX)),
        None => (name.to_owned(), 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::io::{Read as _, Write as _};

    #[test]
    fn what_is_held_comes_back_to_the_next_daemon() {
        let pair = || pair().unwrap();
        let mut held = Held::new();
        let (keeper, daemon) = pair();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let daemon = Keeper::Process(RefCell::new(daemon));
        daemon.hold("a", &[reader]).unwrap();
        daemon.hold("b", &[writer]).unwrap();
        daemon.hold("c", &[]).unwrap();
        daemon.release("c", 0).unwrap();
        drop(daemon);
        assert!(!serve(&keeper, &mut held), "it went without a word");
        assert_eq!(held.keys().collect::<Vec<_>>(), ["a", "b"]);

        let (keeper, daemon) = pair();
        let serving = std::thread::spawn(move || {
            let in_order = serve(&keeper, &mut held);
            (in_order, held)
        });
        let mut fds = Vec::new();
        loop {
            match receive(&daemon).unwrap() {
                (Message::Hold(_), held) => fds.extend(held),
                (Message::End, _) => break,
                (other, _) => panic!("{other:?}"),
            }
        }
        let [reader, writer]: [OwnedFd; 2] = fds.try_into().unwrap();
        File::from(writer).write_all(b"alive").unwrap();
        let daemon = Keeper::Process(RefCell::new(daemon));
        daemon.release("a", 1).unwrap();
        daemon.release("b", 1).unwrap();
        daemon.bye();
        drop(daemon);
        let (in_order, held) = serving.join().unwrap();
        assert!(in_order && held.is_empty());
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "alive");
    }

    #[tokio::test]
    async fn a_keeper_that_dies_is_noticed_and_one_that_lives_is_not() {
        let (keeper, daemon) = pair().unwrap();
        let daemon = Keeper::Process(RefCell::new(daemon));
        let early = tokio::time::timeout(Duration::from_millis(10), daemon.lost());
        assert!(early.await.is_err());
        // What an adopted daemon gives is held, and nothing is said to it.
        daemon.hold("a", &[]).unwrap();
        let mut held = Held::new();
        let holding = std::thread::spawn(move || {
            let in_order = hold(&keeper, &mut held);
            (keeper, held, in_order)
        });
        daemon.bye();
        let Keeper::Process(socket) = &daemon else {
            unreachable!("made above")
        };
        rustix::net::shutdown(&*socket.borrow(), rustix::net::Shutdown::Write).unwrap();
        let (keeper, held, in_order) = holding.join().unwrap();
        assert!(in_order && held.contains_key("a"));
        drop(keeper);
        daemon.lost().await.unwrap();
    }

    #[test]
    fn what_is_held_outlives_failures_to_start_a_daemon() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut held = Held::from([("a".to_owned(), vec![reader])]);
        let (tries, pauses) = (Cell::new(0), RefCell::new(Vec::new()));
        let again = || {
            tries.set(tries.get() + 1);
            if tries.get() < 3 {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            let (ours, theirs) = pair()?;
            // In place of a daemon, which takes what is held, gives it up, and ends in order.
            std::thread::spawn(move || {
                let mut got = Vec::new();
                while let (Message::Hold(_), fds) = receive(&theirs).unwrap() {
                    got.extend(fds);
                }
                let [reader]: [OwnedFd; 1] = got.try_into().unwrap();
                File::from(reader).read_exact(&mut [0; 5]).unwrap();
                // What is no message ends nothing.
                send_message(&theirs, b"?", &[]).unwrap();
                send(&theirs, &Message::Release("a".into()), &[]).unwrap();
                send(&theirs, &Message::Bye, &[]).unwrap();
            });
            Ok((Command::new("true").spawn()?, ours))
        };
        File::from(writer).write_all(b"alive").unwrap();
        let died = End {
            in_order: false,
            how: "killed".to_owned(),
        };
        keep(
            &mut held,
            (died, Instant::now()),
            || true,
            again,
            |pause| pauses.borrow_mut().push(pause.as_secs()),
        );
        assert!(held.is_empty());
        assert_eq!(pauses.into_inner(), [1, 2, 4]);
    }

    #[test]
    fn pauses_grow_for_what_dies_young() {
        let second = Duration::from_secs(1);
        assert_eq!(pause_after(SHORT_LIFE, MAX_PAUSE), Duration::ZERO);
        assert_eq!(pause_after(second, Duration::ZERO), second);
        assert_eq!(pause_after(second, 4 * second), 8 * second);
        assert_eq!(pause_after(second, MAX_PAUSE), MAX_PAUSE);
    }

    #[test]
    fn one_lock_one_keeper() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::new(folder.path());
        let first = lock(&run).unwrap();
        assert!(first.is_some());
        assert!(lock(&run).unwrap().is_none());
        drop(first);
        assert!(lock(&run).unwrap().is_some());
    }

    #[test]
    fn the_store_is_sorted_by_device_and_number() {
        let mut names = ["b#0", "a#10", "a#9"];
        names.sort_by_key(|name| store_order(name));
        assert_eq!(names, ["a#9", "a#10", "b#0"]);
    }
}
