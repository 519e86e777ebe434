//! A running `nvmf-target` that can be killed, stopped and started again in its place.
//!
//! The target of this workspace is a library as well: its process is this test program, started again with only
//! [`target_process`] to run. So nothing has to be built or found, and it dies as a real one does.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nvmf_initiator::host::HostIdentity;
use nvmf_initiator::polled::SessionConfig;
use nvmf_target::config::cli::Cli;
use nvmf_target::config::identity::Identity;
use nvmf_target::control::run;
use rustix::process::{Pid, Signal, kill_process};

/// The subsystem that tests serve.
pub const NQN: &str = "nqn.2026-01.org.example:library";

/// Long enough for a machine under load; nothing waits that long unless something is wrong.
pub const PATIENCE: Duration = Duration::from_secs(60);

const ARGUMENTS: &str = "NVMF_TEST_TARGET";

#[test]
#[ignore = "no test: what other tests start as their target"]
fn target_process() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else {
        return;
    };
    // It must not outlive a test program that was killed.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let cli =
        Cli::try_from_arguments(["nvmf-target"].into_iter().chain(arguments.lines())).unwrap();
    nvmf_target::logging::start(&cli.log, false).unwrap();
    let identity = Identity::of_this_machine();
    let config = cli.config(&identity).unwrap();
    let code = run::serve(&cli, config, identity).unwrap();
    std::process::exit(code.into());
}

/// See the module's text.
pub struct Target {
    child: Child,
    port: u16,
    arguments: Vec<String>,
    dir: tempfile::TempDir,
}

impl Target {
    /// Starts with these arguments, in which `{}` stands for a folder of its own, on a port of loopback that stays the same.
    pub fn start(arguments: &[&str]) -> Target {
        let all = [&["--nqn", NQN], arguments].concat();
        Self::start_in(tempfile::tempdir().unwrap(), &all)
    }

    /// Serves this configuration file. `{}` stands for a folder of the target's own.
    pub fn with_file(text: &str) -> Target {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("t.toml"), in_dir(text, dir.path())).unwrap();
        Self::start_in(dir, &["--config", "{}/t.toml"])
    }

    fn start_in(dir: tempfile::TempDir, arguments: &[&str]) -> Target {
        let arguments: Vec<_> = arguments
            .iter()
            .map(|text| in_dir(text, dir.path()))
            .collect();
        loop {
            let port = free_port();
            let child = spawn(&arguments, port, dir.path());
            // Somebody else may take the port before the target does.
            if let Some(child) = ready(child, dir.path()) {
                return Target {
                    child,
                    port,
                    arguments,
                    dir,
                };
            }
        }
    }

    /// Puts another configuration file in place, without a word to the target.
    pub fn rewrite(&self, text: &str) {
        fs::write(self.path("t.toml"), in_dir(text, self.dir.path())).unwrap();
    }

    /// Puts another configuration file in place and has it applied.
    pub fn reload(&self, text: &str) {
        self.rewrite(text);
        kill_process(self.pid(), Signal::HUP).unwrap();
    }

    pub fn url(&self, nsid: u32, options: &str) -> String {
        format!(
            "nvme+tcp://127.0.0.1:{}/{NQN}?nsid={nsid}{options}",
            self.port
        )
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32).unwrap()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again, at the same address with the same arguments.
    pub fn restart(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let child = spawn(&self.arguments, self.port, self.dir.path());
        self.child = ready(child, self.dir.path()).expect("it served before");
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            eprintln!("log of the target:\n{log}");
        }
    }
}

fn in_dir(text: &str, dir: &Path) -> String {
    text.replace("{}", dir.to_str().unwrap())
}

/// A port that nobody listens on, below those that the kernel gives to clients: it has to be free again after a restart.
fn free_port() -> u16 {
    const FIRST: u32 = 21_000;
    const COUNT: u32 = 1_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Programs that run at the same time begin at different places.
        let next = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() * 37;
        let port = (FIRST + next % COUNT) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

fn spawn(arguments: &[String], port: u16, dir: &Path) -> Child {
    let ready = dir.join("ready");
    let _ = fs::remove_file(&ready);
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    let mut all = arguments.to_vec();
    all.extend(["--log", "debug", "--listen"].map(String::from));
    all.push(format!("tcp://127.0.0.1:{port}"));
    all.push("--ready-file".to_owned());
    all.push(ready.to_str().unwrap().to_owned());
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "target::target_process",
            "--ignored",
            "--nocapture",
        ])
        .env(ARGUMENTS, all.join("\n"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Waits until hosts can connect; `None` when the target ended instead because its port is taken.
fn ready(mut child: Child, dir: &Path) -> Option<Child> {
    let start = Instant::now();
    while !dir.join("ready").exists() {
        if let Some(status) = child.try_wait().unwrap() {
            let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
            assert!(
                log.contains("in use"),
                "the target ended with {status}:\n{log}"
            );
            return None;
        }
        assert!(start.elapsed() < PATIENCE, "the target does not get ready");
        // A file appears; the process has no other way to tell that works without a service manager.
        std::thread::sleep(Duration::from_millis(2));
    }
    Some(child)
}

/// As which host tests connect, whatever the machine's files say.
pub fn host() -> HostIdentity {
    HostIdentity {
        hostnqn: "nqn.2014-08.org.nvmexpress:uuid:7c0a5a3e-5b1d-4a3f-8d0e-2f6f6f1b9a01".to_owned(),
        hostid: "7c0a5a3e-5b1d-4a3f-8d0e-2f6f6f1b9a01".parse().unwrap(),
    }
}

pub fn session_config() -> SessionConfig {
    SessionConfig {
        host: Some(host()),
        ..SessionConfig::default()
    }
}

/// Waits until a condition holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "{what} did not happen in {PATIENCE:?}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}
