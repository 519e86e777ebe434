//! What the command says and how it exits.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Output, Stdio};

use crate::process::{NQN, Target, command};

fn run(arguments: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command().args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn mistakes_exit_with_2_and_say_what_to_do() {
    for (arguments, says) in [
        (
            &["--null", "1G", "--listen", "tcp://0.0.0.0:0"][..],
            "--allow-any-host",
        ),
        (
            &["--null", "1G", "--listen", "fc://127.0.0.1"],
            "rdma://ADDR:PORT",
        ),
        (&["--null", "1G", "--log", "loud"], "--log"),
        (&[], "nothing to serve"),
        (&["--config", "/nonexistent.toml"], "/nonexistent.toml"),
        (&["--frobnicate"], "--frobnicate"),
    ] {
        let (code, stdout, stderr) = run(arguments);
        assert_eq!(code, 2, "{arguments:?}: {stderr}");
        assert!(stderr.contains(says), "{arguments:?}: {stderr}");
        assert!(stdout.is_empty(), "{stdout}");
    }
}

#[test]
fn what_cannot_start_exits_with_1() {
    for (path, says) in [
        ("/nonexistent.img", "give a size"),
        ("/nonexistent/a.img:1G", "its folder is not there"),
    ] {
        let (code, _, stderr) = run(&["--file", path]);
        assert_eq!(code, 1);
        assert!(
            stderr.contains("/nonexistent") && stderr.contains(says),
            "{stderr}"
        );
    }
    let running = Target::quick(&[]);
    let listen = format!("tcp://{}", running.address());
    let (code, _, stderr) = run(&["--null", "1G", "--listen", &listen]);
    assert_eq!(code, 1);
    assert!(
        stderr.contains(&listen[6..]) && stderr.contains("another process listens there"),
        "{stderr}"
    );
}

#[test]
fn check_judges_without_starting_anything() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.toml");
    let image = dir.path().join("a.img");
    let namespace = format!(
        "[[subsystem.namespace]]\nkind = \"file\"\npath = \"{}\"\nsize = \"1M\"\n",
        image.display()
    );
    fs::write(
        &path,
        format!("[[subsystem]]\nnqn = \"nqn.2025-01.org.example:a\"\n{namespace}"),
    )
    .unwrap();
    let path = path.to_str().unwrap();
    assert_eq!(
        run(&["--config", path, "--check"]),
        (0, "nothing wrong\n".into(), String::new())
    );
    assert!(!image.exists(), "nothing is made");
    let (code, stdout, _) = run(&["--config", path, "--check", "--json"]);
    assert_eq!(
        (code, stdout.trim()),
        (0, r#"{"event":"checked","ok":true}"#)
    );
    fs::write(path, "busy-poll = -1\n").unwrap();
    let (code, _, stderr) = run(&["--config", path, "--check"]);
    assert_eq!(code, 2);
    assert!(
        stderr.contains(&format!("{path}:1: busy-poll: ")),
        "{stderr}"
    );
    let (code, _, stderr) = run(&["--config", path, "--check", "--json"]);
    assert_eq!(code, 2);
    let line: serde_json::Value = serde_json::from_str(&stderr).unwrap();
    assert_eq!(line["place"], format!("{path}:1: busy-poll"));
}

#[test]
fn version_and_help_exit_with_0() {
    let (code, stdout, _) = run(&["--version"]);
    assert_eq!(
        (code, stdout.trim()),
        (0, concat!("nvmf-target ", env!("CARGO_PKG_VERSION")))
    );
    let (code, stdout, _) = run(&["--help"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("Exit status:"), "{stdout}");
}

#[test]
fn what_hosts_need_to_connect_is_printed() {
    let mut child = command()
        .args([
            "--null",
            "1G",
            "--nqn",
            NQN,
            "--listen",
            "tcp://127.0.0.1:0",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let printed: Vec<String> = lines.by_ref().take(2).map(Result::unwrap).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(printed[0], format!("serving {NQN}"));
    assert!(
        printed[1].starts_with("listening on tcp://127.0.0.1:"),
        "{printed:?}"
    );
}
