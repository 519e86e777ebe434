//! Starting `block-serve`, talking to it, and killing it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nvmf_initiator::block::{BlockForm, Kept, keeper};

/// Long enough for a machine under load; nothing waits that long unless something is wrong.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the form can be made here; says why not.
pub fn available(form: BlockForm) -> bool {
    match form.available() {
        Ok(()) => true,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            false
        }
    }
}

/// A running `block-serve`.
pub struct Served {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    pub path: PathBuf,
}

impl Served {
    /// Serves a new device.
    pub fn start(form: BlockForm, arguments: &[&str]) -> Served {
        Self::start_with(form, arguments, Stdio::inherit())
    }

    /// The same, to be ended by [`Served::detach_after`].
    pub fn start_with_log(form: BlockForm, arguments: &[&str]) -> Served {
        Self::start_with(form, arguments, Stdio::piped())
    }

    fn start_with(form: BlockForm, arguments: &[&str], log: Stdio) -> Served {
        let mut all = vec!["--block", form.name()];
        all.extend(arguments);
        Self::spawn(&all, log)
    }

    fn spawn(arguments: &[&str], log: Stdio) -> Served {
        let mut child = Command::new(env!("CARGO_BIN_EXE_block-serve"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stdin = child.stdin.take();
        let mut served = Served {
            child,
            stdin,
            stdout,
            path: PathBuf::new(),
        };
        served.path = served.line().into();
        assert!(
            served.path.exists(),
            "block-serve {arguments:?} made no device"
        );
        served
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert!(
            !line.is_empty(),
            "block-serve ended: {:?}",
            self.child.wait()
        );
        line.trim().to_owned()
    }

    /// Sends a command and returns the answer.
    pub fn command(&mut self, command: &str) -> String {
        self.send(command);
        self.line()
    }

    fn send(&mut self, command: &str) {
        writeln!(self.stdin.as_mut().expect("open until detach"), "{command}").unwrap();
    }

    /// One counter of `stats`.
    pub fn count(&mut self, name: &str) -> u64 {
        let stats = self.command("stats");
        let mut words = stats.split(' ').skip_while(|word| *word != name);
        words
            .nth(1)
            .unwrap_or_else(|| panic!("{name} in '{stats}'"))
            .parse()
            .unwrap()
    }

    /// Removes the device and waits for the process.
    pub fn detach(mut self) {
        assert_eq!(self.command("detach"), "ok");
        assert!(self.child.wait().unwrap().success());
    }

    /// Removes a device that somebody has open, who lets go of it in `close`: after it was seen that it is open.
    pub fn detach_after(mut self, close: impl FnOnce()) {
        self.send("detach");
        // Should it be refused, the process ends for want of commands, and its log with it.
        self.stdin = None;
        let log = self.child.stderr.take().expect("started with its log");
        let mut lines = BufReader::new(log).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("waiting for it to be closed")));
        close();
        assert_eq!(self.line(), "ok");
        // What it still says must not make it fail.
        lines.for_each(|line| eprintln!("{line}"));
        assert!(self.child.wait().unwrap().success());
    }

    /// SIGKILL.
    pub fn kill(mut self) -> PathBuf {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::take(&mut self.path)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // A failed test: without its standard input it removes the device and ends.
        self.stdin = None;
        let _ = self.child.wait();
    }
}

/// Holds what a server keeps, and hands it to the next.
pub struct Keeper {
    listener: UnixListener,
    dir: tempfile::TempDir,
    kept: Option<Kept>,
}

impl Keeper {
    pub fn new() -> Keeper {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("keeper")).unwrap();
        Keeper {
            listener,
            dir,
            kept: None,
        }
    }

    pub fn socket(&self) -> String {
        self.dir.path().join("keeper").to_str().unwrap().to_owned()
    }

    /// Starts a server that gives its descriptors to this keeper.
    pub fn serve(&mut self, form: BlockForm, arguments: &[&str]) -> Served {
        let socket = self.socket();
        let mut all = vec!["--keep", &socket, "--block", form.name()];
        all.extend(arguments);
        std::thread::scope(|scope| {
            let server = scope.spawn(|| Served::spawn(&all, Stdio::inherit()));
            let (connection, _) = self.listener.accept().unwrap();
            self.kept = Some(keeper::receive(&connection).unwrap());
            drop(connection);
            server.join().unwrap()
        })
    }

    /// Starts a server that goes on where the last one died.
    pub fn resume(&mut self, arguments: &[&str]) -> Served {
        let socket = self.socket();
        let mut all = vec!["--resume", &socket];
        all.extend(arguments);
        std::thread::scope(|scope| {
            let server = scope.spawn(|| Served::spawn(&all, Stdio::inherit()));
            let (connection, _) = self.listener.accept().unwrap();
            keeper::send(&connection, self.kept.as_ref().unwrap()).unwrap();
            drop(connection);
            server.join().unwrap()
        })
    }
}

/// Runs a command; its output when it succeeds.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn output(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// Writes and verifies with checksums, direct and asynchronous.
pub fn fio_verify(device: &Path, block: &str, extra: &[&str]) {
    let filename = format!("--filename={}", device.display());
    let size = format!("--bs={block}");
    let mut arguments = vec![
        "--name=verify",
        filename.as_str(),
        size.as_str(),
        "--ioengine=libaio",
        "--direct=1",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--group_reporting",
    ];
    arguments.extend(extra);
    run("fio", &arguments);
}

/// Waits until a condition holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "{what} did not happen in {PATIENCE:?}"
        );
        std::thread::yield_now();
    }
}

/// Size of a block device in bytes, 0 when nothing is attached.
pub fn size_bytes(device: &Path) -> u64 {
    let name = device.file_name().unwrap().to_str().unwrap();
    let sectors = std::fs::read_to_string(format!("/sys/block/{name}/size")).unwrap_or_default();
    sectors.trim().parse::<u64>().unwrap_or(0) * 512
}
