//! A node with folders of its own, and targets beside it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use nvmf_target::config::cli::Cli;
use nvmf_target::config::identity::Identity;
use nvmf_target::control::run;
use serde_json::Value;

/// Long enough for a machine under load; nothing waits that long unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);
/// The subsystem that most tests use.
pub const NQN: &str = "nqn.2025-01.org.example:a";

/// An address of loopback that no other process of these tests has, so that ports need not be looked for.
pub fn address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 100 + NEXT.fetch_add(1, Ordering::Relaxed), high, low)
}

/// Serves, in this process and until it ends, what a file of this text says.
pub fn serve(text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (config, ready) = (folder.path().join("t.toml"), folder.path().join("ready"));
    fs::write(&config, text).unwrap();
    let words = format!(
        "nvmf-target --config {} --ready-file {} --rpc none --state-dir none",
        config.display(),
        ready.display()
    );
    let cli = <Cli as clap::Parser>::try_parse_from(words.split(' ')).unwrap();
    let identity = Identity::of_this_machine();
    let config = cli.config(&identity).unwrap();
    let serving = std::thread::spawn(move || run::serve(&cli, config, identity));
    let begin = Instant::now();
    while fs::read_to_string(&ready).unwrap_or_default().is_empty() {
        assert!(!serving.is_finished(), "{:?}", serving.join());
        assert!(begin.elapsed() < PATIENCE, "the target does not come up");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A configuration: listens on a port of the address, and has subsystems with a namespace of 1 MiB in memory for everybody.
pub fn config(address: Ipv4Addr, port: u16, nqns: &[&str]) -> String {
    let subsystem = |nqn: &&str| {
        format!(
            "[[subsystem]]\nnqn = \"{nqn}\"\nallow-any-host = true\n\
             [[subsystem.namespace]]\nnsid = 1\nkind = \"memory\"\nsize = \"1M\"\n"
        )
    };
    let subsystems: String = nqns.iter().map(subsystem).collect();
    format!("listen = [\"tcp://{address}:{port}\"]\n{subsystems}")
}

/// What a command left.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Outcome {
    /// Standard output of a command that must have succeeded.
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// The same, as JSON.
    pub fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// It must have failed with this exit code, and said all of this.
    pub fn failed(self, code: i32, says: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(
            self.err.starts_with("nvmf-initiator: ") || self.err.starts_with("error: "),
            "{self:?}"
        );
        for word in says {
            assert!(self.err.contains(word), "{word} is missing in {self:?}");
        }
    }
}

/// A node: a run folder with its daemon, which ends with the node, and a folder in place of `/etc/nvme`.
pub struct Node {
    folder: tempfile::TempDir,
}

impl Node {
    pub fn new() -> Node {
        let node = Node {
            folder: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(node.etc()).unwrap();
        node
    }

    /// In place of `/etc/nvme`.
    pub fn etc(&self) -> PathBuf {
        self.folder.path().join("etc")
    }

    fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// Runs a command line, words parted by spaces.
    pub fn run(&self, line: &str) -> Outcome {
        self.run_in(&self.run_dir(), line)
    }

    /// The same with another run folder.
    pub fn run_in(&self, run_dir: &Path, line: &str) -> Outcome {
        let output = Command::new(env!("CARGO_BIN_EXE_nvmf-initiator"))
            .arg("--run-dir")
            .arg(run_dir)
            .arg("--etc-nvme")
            .arg(self.etc())
            .args(line.split_whitespace())
            .env_remove("RUST_LOG")
            .output()
            .unwrap();
        Outcome {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// NQNs that `list` shows, sorted.
    pub fn connected(&self) -> Vec<String> {
        let list = self.run("list --json").json();
        let controllers = list["controllers"].as_array().unwrap();
        let nqn = |controller: &Value| controller["subnqn"].as_str().unwrap().to_owned();
        let mut nqns: Vec<_> = controllers.iter().map(nqn).collect();
        nqns.sort();
        nqns
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Ok(mut socket) = UnixStream::connect(self.run_dir().join("socket")) {
            drop(socket.write_all(
                b"{\"version\":1,\"request\":{\"disconnect\":{\"what\":\"all\",\"force\":true}}}\n",
            ));
            drop(socket.read_to_string(&mut String::new()));
        }
        if let Ok(mut socket) = UnixStream::connect(self.run_dir().join("socket")) {
            drop(socket.write_all(b"{\"version\":1,\"request\":\"stop\"}\n"));
            drop(socket.read_to_string(&mut String::new()));
        }
    }
}
