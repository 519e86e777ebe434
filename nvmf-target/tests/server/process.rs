//! A running `nvmf-target`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::host::PATIENCE;

/// The subsystem that most tests serve.
pub const NQN: &str = "nqn.2025-01.org.example:a";

/// A process with its log.
pub struct Target {
    child: Child,
    log: Receiver<String>,
    seen: Vec<String>,
    pub addresses: Vec<SocketAddr>,
    pub dir: tempfile::TempDir,
}

pub fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_nvmf-target"))
}

/// The command in a process that may have this many files, and can raise that no further.
fn command_with_files(limit: u32) -> Command {
    let mut command = Command::new("sh");
    let script = format!("ulimit -n {limit} && exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_nvmf-target")]);
    command
}

impl Target {
    /// Starts one namespace of 1 MiB in memory for everybody, with more arguments.
    pub fn quick(arguments: &[&str]) -> Self {
        let all = [&["--memory", "1M", "--nqn", NQN], arguments].concat();
        Self::start(tempfile::tempdir().unwrap(), &all)
    }

    /// Starts with a configuration file of this text. Listeners are `tcp://127.0.0.1:0` unless the text has its own.
    pub fn with_file(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::with_file_in(dir, text)
    }

    pub fn with_file_in(dir: tempfile::TempDir, text: &str) -> Self {
        let path = dir.path().join("t.toml");
        fs::write(&path, text).unwrap();
        Self::start(dir, &["--config", path.to_str().unwrap()])
    }

    /// Starts with these arguments, on a free port of loopback unless they say where to listen.
    pub fn start(dir: tempfile::TempDir, arguments: &[&str]) -> Self {
        Self::start_in(dir, arguments, &[])
    }

    /// The same with more in the environment.
    pub fn start_in(
        dir: tempfile::TempDir,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let mut target = Self::spawn(dir, arguments, environment);
        target.wait_ready();
        target
    }

    /// Starts one namespace for everybody in a process that may have `limit` files.
    pub fn with_few_files(limit: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let arguments = ["--memory", "1M", "--nqn", NQN, "--cores", "0"];
        let mut target = Self::spawn_command(command_with_files(limit), dir, &arguments, &[]);
        target.wait_ready();
        target
    }

    /// The same without waiting until it serves.
    pub fn spawn(dir: tempfile::TempDir, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::spawn_command(command(), dir, arguments, environment)
    }

    fn spawn_command(
        mut command: Command,
        dir: tempfile::TempDir,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let ready = dir.path().join("ready");
        let _ = fs::remove_file(&ready);
        command
            .envs(environment.iter().copied())
            .args(arguments)
            .args(["--log", "debug", "--ready-file"])
            .arg(&ready);
        let text: String = arguments
            .iter()
            .filter_map(|a| fs::read_to_string(a).ok())
            .collect();
        // The default socket is this machine's, not a test's.
        if !arguments.contains(&"--rpc") && !text.contains("[api]") {
            command.args(["--rpc", "none"]);
        }
        if !arguments.contains(&"--listen") && !text.contains("listen =") {
            command.args(["--listen", "tcp://127.0.0.1:0"]);
        }
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Target {
            child,
            log,
            seen: Vec::new(),
            addresses: Vec::new(),
            dir,
        }
    }

    /// Waits until hosts can connect.
    pub fn wait_ready(&mut self) {
        let ready = self.file("ready");
        let start = Instant::now();
        loop {
            if let Ok(text) = fs::read_to_string(&ready) {
                self.addresses = text
                    .lines()
                    .map(|line| line.strip_prefix("tcp://").unwrap().parse().unwrap())
                    .collect();
                return;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                self.drain_log(Duration::from_secs(1));
                panic!("ended with {status} instead of serving: {:#?}", self.seen);
            }
            assert!(start.elapsed() < PATIENCE, "not ready: {:#?}", self.seen);
            // A file appears; the process has no other way to tell that works without a service manager.
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The directory, for a target that follows one which has ended.
    pub fn into_dir(mut self) -> tempfile::TempDir {
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    /// Files that it has open.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .unwrap()
            .count()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits until the log has a line with this text after everything that was waited for before.
    pub fn wait_log(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line);
                    if self.seen.last().is_some_and(|line| line.contains(text)) {
                        return self.seen.last().cloned().unwrap();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no {text:?} in the log: {:#?}", self.seen)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("ended without {text:?} in the log: {:#?}", self.seen)
                }
            }
        }
    }

    /// A line with this text, which may have been logged before.
    pub fn wait_log_seen(&mut self, text: &str) -> String {
        match self.seen.iter().find(|line| line.contains(text)) {
            Some(line) => line.clone(),
            None => self.wait_log(text),
        }
    }

    /// Everything logged so far.
    pub fn log_so_far(&mut self) -> &[String] {
        self.drain_log(Duration::ZERO);
        &self.seen
    }

    fn drain_log(&mut self, patience: Duration) {
        while let Ok(line) = self.log.recv_timeout(patience) {
            self.seen.push(line);
        }
    }

    /// Writes the configuration anew and has it applied; ends when the log says that this was done, or refused.
    pub fn reload(&mut self, text: &str) -> String {
        fs::write(self.file("t.toml"), text).unwrap();
        self.hang_up()
    }

    /// Sends SIGHUP and waits for the outcome.
    pub fn hang_up(&mut self) -> String {
        self.drain_log(Duration::ZERO);
        self.signal(Signal::HUP);
        self.wait_log("configuration")
    }

    /// Waits for the end.
    pub fn wait_exit(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "still there: {:#?}",
                self.log_so_far()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// SIGTERM, and what came of it.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_exit()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.drain_log(Duration::from_millis(200));
            eprintln!("log of the target: {:#?}", self.seen);
        }
    }
}
