//! The binary against a real target, which serves in a thread of the test.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nvmf_target::config::cli::Cli;
use nvmf_target::config::identity::Identity;
use nvmf_target::control::run;
use serde_json::Value;

const NQN: &str = "nqn.2025-01.org.example:a";
const OTHER: &str = "nqn.2025-01.org.example:b";
const HOST: &str = "nqn.2025-01.org.example:host";
const PATIENCE: Duration = Duration::from_secs(30);

struct Target {
    dir: tempfile::TempDir,
    /// Its listener, as `ADDR:PORT`.
    address: String,
}

/// A target that serves one declared subsystem; it lives as long as the test's process.
fn target() -> Target {
    let declared = ["--null", "1M", "--nqn", "nqn.2025-01.org.example:declared"];
    start(tempfile::tempdir().unwrap(), &declared)
}

/// A target with these arguments, its socket and state in `dir`.
fn start(dir: tempfile::TempDir, arguments: &[&str]) -> Target {
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut all = vec!["nvmf-target".to_owned()];
    all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    all.extend([
        "--listen".to_owned(),
        "tcp://127.0.0.1:0".to_owned(),
        "--rpc".to_owned(),
        path("rpc.sock"),
        "--state-dir".to_owned(),
        path("state"),
        "--ready-file".to_owned(),
        path("ready"),
    ]);
    let ready = dir.path().join("ready");
    std::thread::spawn(move || {
        let cli = Cli::try_from_arguments(all).unwrap();
        let identity = Identity::of_this_machine();
        let config = cli.config(&identity).unwrap();
        run::serve(&cli, config, identity).unwrap();
    });
    let start = Instant::now();
    let address = loop {
        match std::fs::read_to_string(&ready) {
            Ok(text) => break text.trim().trim_start_matches("tcp://").to_owned(),
            Err(_) => assert!(start.elapsed() < PATIENCE, "the target does not serve"),
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Target { dir, address }
}

impl Target {
    fn socket(&self) -> PathBuf {
        self.dir.path().join("rpc.sock")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvmfctl"));
        command.arg("--socket").arg(self.socket()).args(arguments);
        command.output().unwrap()
    }

    /// What a command that must succeed prints.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }

    /// The exit code of a command that must fail, and why it did.
    fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        let why = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), why)
    }
}

#[test]
fn things_are_made_listed_and_removed() {
    let target = target();
    assert!(target.ok(&["version"]).starts_with("nvmf-target v"));
    target.ok(&["subsystem", "create", NQN, "--serial", "S1"]);
    target.ok(&["bdev", "create", "memory", "m", "1M"]);
    target.ok(&["bdev", "create", "null", "n", "1G", "--block-size", "512"]);
    let file = target.dir.path().join("disk");
    std::fs::File::create(&file)
        .unwrap()
        .set_len(2 << 20)
        .unwrap();
    target.ok(&["bdev", "create", "file", "f", file.to_str().unwrap()]);
    assert_eq!(
        target.ok(&["namespace", "add", NQN, "f", "--nsid", "3"]),
        format!("f is namespace 3 of {NQN}\n")
    );
    target.ok(&["namespace", "add", NQN, "m"]);
    target.ok(&["host", "add", NQN, HOST]);
    target.ok(&["listener", "add", NQN, &target.address]);

    let subsystems = target.ok(&["subsystems", "list"]);
    let lines: Vec<&str> = subsystems.lines().collect();
    assert_eq!(lines.len(), 3, "{subsystems}");
    assert!(lines[0].starts_with("NQN"), "{subsystems}");
    let row: Vec<&str> = lines[2].split_whitespace().collect();
    assert_eq!(row, [NQN, "S1", "2", "1", &target.address]);
    let bdevs = target.ok(&["bdev", "list"]);
    assert!(bdevs.contains(file.to_str().unwrap()), "{bdevs}");
    assert!(
        bdevs.contains("nqn.2025-01.org.example:declared:1"),
        "{bdevs}"
    );
    let namespaces = target.json(&["namespace", "list", NQN]);
    assert_eq!(namespaces[0]["namespaces"].as_array().unwrap().len(), 2);
    assert_eq!(target.ok(&["host", "list", NQN]), format!("HOST\n{HOST}\n"));
    let listeners = target.ok(&["listener", "list", NQN]);
    assert!(listeners.contains(&target.address), "{listeners}");
    assert_eq!(target.json(&["controllers"]), Value::Array(Vec::new()));
    assert_eq!(target.json(&["queues", NQN]), Value::Array(Vec::new()));

    target.ok(&["bdev", "resize", "n", "2G"]);
    std::fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(3 << 20)
        .unwrap();
    target.ok(&["bdev", "rescan", "f"]);
    let bdevs = target.json(&["bdev", "list"]);
    let size_of = |name: &str| {
        let all = bdevs.as_array().unwrap();
        let bdev = all.iter().find(|bdev| bdev["name"] == name).unwrap();
        bdev["block_size"].as_u64().unwrap() * bdev["num_blocks"].as_u64().unwrap()
    };
    assert_eq!((size_of("n"), size_of("f")), (2 << 30, 3 << 20));

    target.ok(&["host", "any", NQN, "on"]);
    assert!(target.ok(&["host", "list", NQN]).contains("(any)"));
    target.ok(&["host", "remove", NQN, HOST]);
    target.ok(&["listener", "remove", NQN, &target.address]);
    target.ok(&["namespace", "remove", NQN, "3"]);
    for name in ["m", "n", "f"] {
        target.ok(&["bdev", "delete", name]);
    }
    target.ok(&["subsystem", "delete", NQN]);
    assert_eq!(target.json(&["pools"]), Value::Array(Vec::new()));
    assert_eq!(target.ok(&["volume", "list"]).lines().count(), 1);
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    let target = target();
    let declared = "nqn.2025-01.org.example:declared";
    target.ok(&["subsystem", "create", NQN]);
    target.ok(&["bdev", "create", "null", "n", "1M"]);
    target.ok(&["bdev", "create", "null", "free", "1M"]);
    target.ok(&["namespace", "add", NQN, "n"]);
    for (arguments, code, words) in [
        (&["subsystem", "create", "disk"][..], 1, "form of an NQN"),
        (&["subsystem", "create"], 2, "required"),
        (
            &["bdev", "create", "null", "x", "1000"],
            2,
            "whole number of blocks",
        ),
        (&["bdev", "resize", "n", "5K"], 2, "MiB"),
        (&["rpc", "bdev_get_bdevs", "{"], 2, "no JSON"),
        (&["rpc", "bdev_get_bdevs", "[]"], 2, "object"),
        (
            &["subsystem", "delete", "nqn.2025-01.org.example:no"],
            4,
            "no subsystem",
        ),
        (&["bdev", "delete", "no"], 4, "no bdev"),
        (&["subsystem", "create", NQN], 5, "already"),
        (&["namespace", "add", NQN, "n"], 6, "already"),
        (&["subsystem", "delete", declared], 8, "configuration"),
        (
            &["bdev", "delete", &format!("{declared}:1")],
            8,
            "configuration",
        ),
        (
            &["volume", "create", "p", "v", "--size", "1G"],
            4,
            "no pool",
        ),
        (&["snapshot", "create", "p", "v=s"], 4, "no pool"),
        (&["rpc", "no_such_method"], 1, "rpc_get_methods"),
        // What is wrong is called by its flag.
        (
            &[
                "subsystem",
                "create",
                OTHER,
                "--serial",
                "twenty-one characters",
            ],
            1,
            ": --serial ",
        ),
        (
            &["subsystem", "create", OTHER, "--model", " padded"],
            1,
            ": --model ",
        ),
        (
            &["subsystem", "create", OTHER, "--max-namespaces", "5000000"],
            1,
            ": --max-namespaces is 5000000",
        ),
        (
            &["namespace", "add", NQN, "free", "--nguid", "7"],
            1,
            ": --nguid ",
        ),
    ] {
        let (found, why) = target.fails(arguments);
        assert_eq!(found, code, "{arguments:?}: {why}");
        assert!(why.contains(words), "{arguments:?}: {why}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvmfctl"));
    let nowhere = command
        .args(["--socket", "/nonexistent/rpc.sock", "version"])
        .output()
        .unwrap();
    assert_eq!(nowhere.status.code(), Some(3), "{nowhere:?}");
}

#[test]
fn raw_requests_and_rates() {
    let target = target();
    let version: Value = serde_json::from_str(&target.ok(&["rpc", "spdk_get_version"])).unwrap();
    assert!(version["version"].is_string());
    let named = target.ok(&["rpc", "bdev_get_iostat", "{\"names\": []}"]);
    let named: Value = serde_json::from_str(&named).unwrap();
    assert_eq!(named["bdevs"], Value::Array(Vec::new()));
    let top = target.json(&["top", "--once", "--interval", "0.05"]);
    assert_eq!(
        top["bdevs"][0]["name"],
        "nqn.2025-01.org.example:declared:1"
    );
    assert_eq!(top["bdevs"][0]["reads_per_s"], 0.0);
    assert!(top["seconds"].as_f64().unwrap() >= 0.05, "{top}");
    let table = target.ok(&["top", "--once", "--interval", "0.05"]);
    assert!(table.starts_with("BDEV"), "{table}");
    assert!(!table.contains('\u{1b}'), "no terminal, no control codes");
    for shell in ["bash", "zsh", "fish"] {
        assert!(target.ok(&["completion", shell]).contains("nvmfctl"));
    }
}

/// A target with the pool `fast`, in a folder of it.
fn target_with_pool() -> (Target, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (pool, file) = (dir.path().join("pool"), dir.path().join("t.toml"));
    std::fs::create_dir(&pool).unwrap();
    let text = format!(
        "[pool.fast]\npath = \"{}\"\nnqn-prefix = \"nqn.2025-01.org.example\"\nrequire-mount = false\novercommit = \"allow\"\n",
        pool.display()
    );
    std::fs::write(&file, text).unwrap();
    let config = file.to_str().unwrap().to_owned();
    (start(dir, &["--config", &config]), pool)
}

#[test]
fn volumes_are_found_and_pruned_by_their_labels() {
    let (target, _) = target_with_pool();
    for (name, node) in [("a", "n1"), ("b", "n1"), ("c", "n1"), ("d", "n2")] {
        let (on, named) = (format!("on={node}"), format!("id={name}"));
        target.ok(&[
            "volume", "create", "fast", name, "--size", "1M", "--label", &on, "--label", &named,
        ]);
    }
    target.ok(&["volume", "create", "fast", "plain", "--size", "1M"]);
    let names = |arguments: &[&str]| -> Vec<String> {
        let found = target.json(&[&["volume", "list"], arguments].concat());
        let found = found.as_array().unwrap().iter();
        let mut names: Vec<_> = found
            .map(|volume| volume["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&[]).len(), 5);
    assert_eq!(names(&["--label", "on"]), ["a", "b", "c", "d"]);
    assert_eq!(names(&["--label", "on=n1"]), ["a", "b", "c"]);
    assert_eq!(names(&["--label", "on=n1", "--label", "id=b"]), ["b"]);
    assert_eq!(names(&["--label", "on=n"]), [""; 0]);
    let table = target.ok(&["volume", "list", "--label", "id=d"]);
    assert!(
        table.contains("LABELS") && table.contains("id=d on=n2"),
        "{table}"
    );
    // Without --yes nothing happens, and it is said what would.
    let outcomes = |arguments: &[&str]| -> Vec<String> {
        let all = target.json(&[&["volume", "prune", "--label", "on=n1"], arguments].concat());
        let all = all.as_array().unwrap().iter();
        all.map(|volume| volume["outcome"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(outcomes(&[]), ["removed with --yes"; 3]);
    assert_eq!(names(&[]).len(), 5);
    assert_eq!(
        outcomes(&["--yes", "--most", "2"]),
        ["removed", "removed", "left for the next time (--most)"]
    );
    assert_eq!(names(&["--label", "on=n1"]).len(), 1);
    assert_eq!(outcomes(&["--yes"]), ["removed"]);
    assert_eq!(outcomes(&["--yes"]), [""; 0]);
    assert_eq!(names(&[]), ["d", "plain"]);
    let (code, why) = target.fails(&["volume", "prune", "--label", "on", "--pool", "none"]);
    assert_eq!(code, 4, "{why}");
}

#[test]
fn volumes_are_made_grown_granted_and_removed() {
    let (target, pool) = target_with_pool();
    let made = target.ok(&[
        "volume", "create", "fast", "v", "--size", "8M", "--label", "a=b",
    ]);
    assert_eq!(made, "nqn.2025-01.org.example:fast:v namespace 1\n");
    let (code, why) = target.fails(&["volume", "create", "fast", "v", "--size", "8M"]);
    assert_eq!(code, 5, "{why}");
    target.ok(&["volume", "resize", "fast", "v", "16M"]);
    target.ok(&["volume", "grant", "fast", "v", HOST]);
    let volumes = target.json(&["volume", "list", "--pool", "fast"]);
    assert_eq!(volumes[0]["size_bytes"], 16 << 20);
    assert_eq!(volumes[0]["hosts"][0], HOST);
    assert_eq!(volumes[0]["labels"]["a"], "b");
    let listed = target.ok(&["volume", "list"]);
    let row: Vec<&str> = listed.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        (row[0], row[1], row[2], row[4]),
        ("fast", "v", "16M", "1"),
        "{listed}"
    );
    let pools = target.ok(&["pools"]);
    assert!(
        pools.contains("fast") && pools.contains(pool.to_str().unwrap()),
        "{pools}"
    );
    // The volume's subsystem is the pool's to change, and says so.
    let nqn = "nqn.2025-01.org.example:fast:v";
    let (code, why) = target.fails(&["host", "add", nqn, HOST]);
    assert_eq!(code, 8, "{why}");
    assert!(why.contains("pool_"), "{why}");
    target.ok(&["volume", "revoke", "fast", "v", HOST]);
    assert_eq!(
        target
            .ok(&["snapshot", "list", "--volume", "v"])
            .lines()
            .count(),
        1
    );
    // Either the file system here has reflinks, or it is said what is missing.
    let snapshot = target.run(&["snapshot", "create", "fast", "v=s"]);
    if snapshot.status.success() {
        target.ok(&["volume", "create", "fast", "clone", "--from-snapshot", "s"]);
        target.ok(&["volume", "delete", "fast", "clone"]);
        target.ok(&["snapshot", "delete", "fast", "s"]);
    } else {
        let why = String::from_utf8(snapshot.stderr).unwrap();
        assert!(why.contains("reflink"), "{why}");
    }
    target.ok(&["volume", "delete", "fast", "v"]);
    let (code, why) = target.fails(&["volume", "delete", "fast", "v"]);
    assert_eq!(code, 4, "{why}");
}
