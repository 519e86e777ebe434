//! Tests of the command line: the quick form, and what is refused.

use super::*;
use crate::model::HostAccess;

fn identity() -> Identity {
    Identity::from_seed(b"test machine")
}

fn parse(arguments: &[&str]) -> Cli {
    Cli::try_from_arguments([&["nvmf-target"], arguments].concat()).unwrap()
}

fn config(arguments: &[&str]) -> Result<Config, String> {
    parse(arguments)
        .config(&identity())
        .map_err(|problems| problems.to_string())
}

fn usage_error(arguments: &[&str]) -> String {
    Cli::try_from_arguments([&["nvmf-target"], arguments].concat())
        .unwrap_err()
        .to_string()
}

#[test]
fn namespaces_are_numbered_in_the_order_given() {
    let config = config(&[
        "--null",
        "1T",
        "--file",
        "/srv/a.img:1G",
        "--memory",
        "64M",
        "--file",
        "/srv/b.img",
        "--block",
        "/dev/sdb",
        "--passthru",
        "/dev/ng0n1",
        "--null",
        "4096",
    ])
    .unwrap();
    let [subsystem] = &config.subsystems[..] else {
        panic!("one subsystem")
    };
    let namespaces: Vec<_> = subsystem
        .namespaces
        .iter()
        .map(|n| (n.nsid, n.storage.clone()))
        .collect();
    assert_eq!(
        namespaces,
        [
            (
                1,
                BackingSpec::Null {
                    size_bytes: 1 << 40
                }
            ),
            (
                2,
                BackingSpec::File {
                    path: "/srv/a.img".into(),
                    size_bytes: Some(1 << 30)
                }
            ),
            (
                3,
                BackingSpec::Memory {
                    size_bytes: 64 << 20
                }
            ),
            (
                4,
                BackingSpec::File {
                    path: "/srv/b.img".into(),
                    size_bytes: None
                }
            ),
            (
                5,
                BackingSpec::Block {
                    path: "/dev/sdb".into()
                }
            ),
            (
                6,
                BackingSpec::Passthrough {
                    path: "/dev/ng0n1".into()
                }
            ),
            (7, BackingSpec::Null { size_bytes: 4096 }),
        ]
    );
    assert_eq!(subsystem.nqn.as_str(), identity().default_nqn());
    assert_eq!(config.listeners, [DEFAULT_LISTEN]);
    assert_eq!(subsystem.hosts, HostAccess::Any, "open on loopback");
}

#[test]
fn paths_may_hold_colons_and_become_absolute() {
    for (text, path, size_bytes) in [
        ("/a:b", "/a:b", None),
        ("/a:1G", "/a", Some(1 << 30)),
        ("/a:1:2K", "/a:1", Some(2048)),
        ("/x:1/a", "/x:1/a", None),
    ] {
        let arg: FileArg = text.parse().unwrap();
        assert_eq!(
            (arg.path, arg.size_bytes),
            (path.into(), size_bytes),
            "{text}"
        );
    }
    let config = config(&["--file", "a.img"]).unwrap();
    let BackingSpec::File { path, .. } = &config.subsystems[0].namespaces[0].storage else {
        panic!("a file")
    };
    assert!(path.is_absolute() && path.ends_with("a.img"));
}

#[test]
fn beyond_loopback_somebody_must_be_named() {
    assert_eq!(
        config(&["--null", "1G", "--listen", "tcp://0.0.0.0:4420"]).unwrap_err(),
        "--listen: tcp://0.0.0.0:4420 can be reached from other machines; name the hosts that may connect with --allow-host NQN, or give --allow-any-host"
    );
    let mixed = [
        "--null",
        "1G",
        "--listen",
        "tcp://127.0.0.1",
        "--listen",
        "tcp://10.0.0.1",
    ];
    assert!(config(&mixed).unwrap_err().contains("tcp://10.0.0.1:4420"));
    let open = config(&[
        "--null",
        "1G",
        "--listen",
        "tcp://0.0.0.0",
        "--allow-any-host",
    ])
    .unwrap();
    assert_eq!(open.subsystems[0].hosts, HostAccess::Any);
    let closed = config(&[
        "--null",
        "1G",
        "--listen",
        "tcp://0.0.0.0",
        "--allow-host",
        "nqn.h",
    ])
    .unwrap();
    let host = "nqn.h".parse().unwrap();
    assert_eq!(closed.subsystems[0].hosts, HostAccess::Only([host].into()));
    let both = ["--null", "1G", "--allow-host", "nqn.h", "--allow-any-host"];
    assert_eq!(
        config(&both).unwrap_err(),
        "--allow-any-host: any host may connect, so the list of allowed hosts would have no effect; keep one of the two"
    );
}

#[test]
fn each_mistake_says_what_to_write() {
    assert_eq!(
        config(&[]).unwrap_err(),
        "nothing to serve: give at least one of --file, --block, --passthru, --memory, --null, or --config FILE, or --rpc PATH to be told later; --help explains them"
    );
    assert_eq!(
        config(&["--null", "1G", "--nqn", "disk"]).unwrap_err(),
        "--nqn: \"disk\" does not have the form of an NQN: write nqn.YYYY-MM.REVERSED-DOMAIN:NAME, such as nqn.2025-01.org.example:disk1"
    );
    assert_eq!(
        config(&["--null", "1G", "--block-size", "1024"]).unwrap_err(),
        "--block-size: 1024 is not a block size; write 512 or 4096"
    );
    assert_eq!(
        config(&["--null", "100"]).unwrap_err(),
        "--null: 100 bytes hold no block; write at least 512"
    );
    assert_eq!(
        config(&["--null", "1G", "--busy-poll", "5000000"]).unwrap_err(),
        "--busy-poll: 5000000 is out of range; write 0 to 1000000"
    );
    assert_eq!(
        config(&[
            "--file",
            "/a",
            "--file",
            "/a",
            "--nqn",
            "nqn.2025-01.org.example:a"
        ])
        .unwrap_err(),
        "--file: /a belongs to namespace 1 of nqn.2025-01.org.example:a already; only read-only namespaces of different subsystems may share storage"
    );
    let twice = [
        "--null",
        "1G",
        "--listen",
        "tcp://127.0.0.1",
        "--listen",
        "tcp://127.0.0.1:4420",
    ];
    assert_eq!(
        config(&twice).unwrap_err(),
        "--listen: tcp://127.0.0.1:4420 is given twice; leave one out"
    );
    let unknown = usage_error(&["--null", "1G", "--listen", "fc://10.0.0.1:4420"]);
    assert!(
        unknown.contains("write tcp://ADDR:PORT or rdma://ADDR:PORT"),
        "{unknown}"
    );
    let size = usage_error(&["--memory", "1.5G"]);
    assert!(size.contains("\"1.5G\" is not a size"), "{size}");
    let file_size = usage_error(&["--file", "/a:10X"]);
    assert!(file_size.contains("\"10X\" is not a size"), "{file_size}");
    let conflict = usage_error(&["--config", "x.toml", "--null", "1G"]);
    assert!(conflict.contains("cannot be used with"), "{conflict}");
}

#[test]
fn options_reach_the_configuration() {
    let config = config(&[
        "--null",
        "1G",
        "--block-size",
        "4096",
        "--read-only",
        "--nqn",
        "nqn.2025-01.org.example:a",
        "--cores",
        "1",
        "--busy-poll",
        "100",
        "--listen",
        "tcp://127.0.0.1:0",
    ])
    .unwrap();
    let namespace = &config.subsystems[0].namespaces[0];
    assert_eq!(
        (namespace.block_bytes, namespace.read_only),
        (Some(4096), true)
    );
    assert_eq!(
        config.subsystems[0].nqn.as_str(),
        "nqn.2025-01.org.example:a"
    );
    assert_eq!(config.cores, Some("1".parse().unwrap()));
    assert_eq!(config.busy_poll_us, 100);
    assert_eq!(config.listeners[0].socket.port(), 0);
}

#[test]
fn flags_win_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.toml");
    std::fs::write(
        &path,
        "cores = \"0\"\nbusy-poll = 7\nlisten = [\"tcp://127.0.0.1:1\"]\n",
    )
    .unwrap();
    let path = path.to_str().unwrap();
    let from_file = config(&["--config", path]).unwrap();
    assert_eq!(
        (from_file.busy_poll_us, from_file.listeners[0].socket.port()),
        (7, 1)
    );
    let over = config(&[
        "--config",
        path,
        "--cores",
        "2",
        "--busy-poll",
        "9",
        "--listen",
        "tcp://127.0.0.1:2",
    ])
    .unwrap();
    assert_eq!((over.busy_poll_us, over.listeners[0].socket.port()), (9, 2));
    assert_eq!(over.cores, Some("2".parse().unwrap()));
}

#[test]
fn the_help_documents_signals_and_exit_codes() {
    let help = Cli::command().render_long_help().to_string();
    for text in [
        "Exit status:",
        "SIGHUP",
        "--ready-file",
        "[default: tcp://127.0.0.1:4420",
    ] {
        assert!(help.contains(text), "{text} is missing from:\n{help}");
    }
    Cli::command().debug_assert();
}

#[test]
fn a_target_may_start_empty_to_be_told_later() {
    let empty = config(&["--rpc", "/run/a.sock"]).unwrap();
    assert!(empty.subsystems.is_empty());
    assert_eq!(empty.api.socket, Chosen::At("/run/a.sock".into()));
    assert_eq!(
        empty.api.state_dir,
        Chosen::Off,
        "a trial run keeps nothing"
    );
    let kept = config(&["--null", "1G", "--state-dir", "/srv/state"]).unwrap();
    assert_eq!(kept.subsystems.len(), 1);
    assert_eq!(kept.api.state_dir, Chosen::At("/srv/state".into()));
    assert!(config(&["--rpc", "none"]).is_err(), "nobody could tell it");
    assert_eq!(
        config(&["--rpc", "tcp://127.0.0.1:9000"]).unwrap_err(),
        "--rpc: tcp://127.0.0.1:9000: over TCP the management API is served with mutual TLS alone, by [api.tls] in the file or --rpc-tls; write the path of a unix socket"
    );
}

#[test]
fn the_api_over_tcp_takes_all_its_flags_or_none() {
    let files = [
        "--rpc-cert",
        "/c",
        "--rpc-key",
        "/k",
        "--rpc-client-ca",
        "ca",
    ];
    let all = [&["--rpc-tls", "127.0.0.1:4421"], &files[..]].concat();
    let served = config(&[&all[..], &["--rpc-client", "csi"]].concat()).unwrap();
    assert!(served.subsystems.is_empty(), "to be told later");
    let tls = served.api.tls.unwrap();
    assert_eq!(tls.listen, "127.0.0.1:4421".parse().unwrap());
    assert!(tls.client_ca.is_absolute());
    assert_eq!(tls.clients, ["csi".parse().unwrap()]);
    assert!(usage_error(&files).contains("--rpc-tls"));
    assert!(usage_error(&all[..4]).contains("--rpc-key"));
    let unnamed = [&all[..], &["--rpc-read-only-client", "10.0.0.1"]].concat();
    assert!(usage_error(&unnamed).contains("names no client"));
}

#[test]
fn flags_after_those_of_the_api_are_not_under_its_heading() {
    let command = <Cli as clap::CommandFactory>::command();
    let heading = |id: &str| {
        let flag = command.get_arguments().find(|arg| arg.get_id() == id);
        flag.unwrap().get_help_heading()
    };
    assert!(heading("rpc_key").unwrap().contains("TLS"));
    assert_eq!((heading("check"), heading("log")), (None, None));
}
