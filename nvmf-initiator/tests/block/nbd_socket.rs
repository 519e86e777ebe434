//! The NBD server on a unix socket, with QEMU's and libnbd's clients at the other end.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nvmf_initiator::block::BlockForm;

use crate::device::MIB;
use crate::served::{Keeper, Served, eventually, output, run};

const FORM: BlockForm = BlockForm::NbdSocket;

/// A server of 64 MiB and the URI of its only export.
fn serve(dir: &Path, extra: &[&str]) -> (Served, String) {
    let mut arguments = vec![
        "--size",
        "67108864",
        "--name",
        "disk",
        "--runtime-dir",
        dir.to_str().unwrap(),
    ];
    arguments.extend(extra);
    let served = Served::start(FORM, &arguments);
    let uri = uri(&served);
    (served, uri)
}

fn uri(served: &Served) -> String {
    format!("nbd+unix:///disk?socket={}", served.path.display())
}

/// Removes the socket, once the server has seen that its clients are gone.
fn leave(mut served: Served) {
    eventually("the end of the last connection", || {
        served.command("detach") == "ok"
    });
}

/// Runs one command of qemu-io after the other; its output.
fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut arguments = vec!["-f", "raw", uri];
    arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
    let output = output("qemu-io", &arguments);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    // It goes on after a pattern that does not match.
    assert!(!text.contains("Pattern verification failed"), "{text}");
    text.into_owned()
}

#[test]
fn libnbd_and_qemu_agree_on_what_is_offered() {
    let dir = tempfile::tempdir().unwrap();
    let (served, uri) = serve(dir.path(), &["--block-size", "4096"]);
    let info: serde_json::Value = serde_json::from_str(&run("nbdinfo", &["--json", &uri])).unwrap();
    assert_eq!(info["protocol"], "newstyle-fixed");
    let export = &info["exports"][0];
    for (key, value) in [
        ("export-size", 64 * MIB),
        ("block_size_minimum", 4096),
        ("block_size_preferred", 4096),
        ("block_size_maximum", 4 * MIB),
    ] {
        assert_eq!(export[key], value, "{key}");
    }
    for key in [
        "can_flush",
        "can_fua",
        "can_trim",
        "can_zero",
        "can_multi_conn",
    ] {
        assert_eq!(export[key], true, "{key}");
    }
    // By LIST, and by the name that stands for the only export.
    let unnamed = format!("nbd+unix:///?socket={}", served.path.display());
    let list = run("nbdinfo", &["--list", &unnamed]);
    assert!(list.contains("export=\"disk\""), "{list}");
    let wrong = format!("nbd+unix:///other?socket={}", served.path.display());
    let refused = output("nbdinfo", &[&wrong]);
    assert!(!refused.status.success());
    let image = run("qemu-img", &["info", "--output=json", &unnamed]);
    let image: serde_json::Value = serde_json::from_str(&image).unwrap();
    assert_eq!(image["virtual-size"], 64 * MIB);
    leave(served);
}

#[test]
fn images_are_copied_by_several_connections_and_compare_equal() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let backing = dir.path().join("backing");
    let (image, back) = (dir.path().join("image"), dir.path().join("back"));
    let (image, back) = (image.to_str().unwrap(), back.to_str().unwrap());
    run(
        "dd",
        &[
            "if=/dev/urandom",
            &format!("of={image}"),
            "bs=1M",
            "count=64",
        ],
    );
    let (served, uri) = serve(
        dir.path(),
        &[
            "--backing",
            backing.to_str().unwrap(),
            "--max-transfer",
            "131072",
        ],
    );
    run(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", image, &uri],
    );
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", image, &uri],
    );
    run("cmp", &[image, backing.to_str().unwrap()]);
    run("nbdcopy", &["--connections=4", &uri, back]);
    run("cmp", &[image, back]);
    run("qemu-io", &["-f", "raw", &uri, "-c", "write -z -u 0 64M"]);
    run("nbdcopy", &["--connections=4", "--requests=64", back, &uri]);
    run("cmp", &[image, backing.to_str().unwrap()]);
    leave(served);
}

#[test]
fn discard_and_zeroes_reach_the_file() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = dir.path().join("backing");
    let (served, uri) = serve(dir.path(), &["--backing", file.to_str().unwrap()]);
    let allocated = || fs::metadata(&file).unwrap().blocks() * 512;
    qemu_io(&uri, &["write -P 0xa5 0 64M"]);
    assert_eq!(allocated(), 64 * MIB);
    qemu_io(&uri, &["discard 1M 8M"]);
    assert_eq!(allocated(), 56 * MIB);
    qemu_io(
        &uri,
        &[
            "write -z 16M 1M",
            "read -P 0 16M 1M",
            "read -P 0 1M 8M",
            "read -P 0xa5 0 1M",
            "read -P 0xa5 17M 47M",
        ],
    );
    leave(served);
}

#[test]
fn a_durable_write_is_forced_and_a_flush_flushes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut served, uri) = serve(dir.path(), &[]);
    // QEMU flushes when it closes.
    qemu_io(&uri, &["write -f -P 1 0 4k", "write -z -f 8k 4k", "flush"]);
    assert!(served.count("fua-writes") >= 1);
    // Two that were asked for: the explicit one, and the one after the zeroes.
    assert!(served.count("flushes") >= 2);
    leave(served);
}

#[test]
fn a_read_only_export_refuses_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut served, uri) = serve(dir.path(), &["--read-only"]);
    let refused = output("qemu-io", &["-f", "raw", &uri, "-c", "write 0 4k"]);
    assert!(!refused.status.success(), "{refused:?}");
    let info = run("nbdinfo", &[&uri]);
    assert!(info.contains("is_read_only: true"), "{info}");
    assert_eq!(served.count("writes"), 0);
    leave(served);
}

#[test]
fn a_new_size_is_seen_by_those_who_connect_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (mut served, uri) = serve(dir.path(), &[]);
    assert_eq!(served.command(&format!("resize {}", 128 * MIB)), "ok");
    assert_eq!(
        run("nbdinfo", &["--size", &uri]).trim(),
        (128 * MIB).to_string()
    );
    qemu_io(&uri, &["write -P 7 127M 1M", "read -P 7 127M 1M"]);
    leave(served);
}

#[test]
fn a_connected_client_is_a_use_until_forced() {
    let dir = tempfile::tempdir().unwrap();
    let (mut served, uri) = serve(dir.path(), &[]);
    let mut qemu = Qemu::open(&["-f", "raw", &uri]);
    qemu.command("write -P 3 0 4k");
    let refusal = served.command("detach");
    let expected = format!("open in qemu-io (process {})", qemu.child.id());
    assert!(refusal.contains(&expected), "{refusal}");
    let path = served.path.clone();
    assert_eq!(served.command("detach --force"), "ok");
    assert!(!path.exists());
    let answer = qemu.command("read 0 4k");
    assert!(answer.contains("read failed"), "{answer}");
}

#[test]
fn a_killed_server_is_resumed_under_a_client_that_reconnects() {
    const KILLS: u64 = 4;
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = dir.path().join("backing");
    let arguments = [
        "--size",
        "67108864",
        "--name",
        "disk",
        "--runtime-dir",
        dir.path().to_str().unwrap(),
        "--backing",
        file.to_str().unwrap(),
    ];
    let mut keeper = Keeper::new();
    let mut served = keeper.serve(FORM, &arguments);
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},export=disk,reconnect-delay=60",
        served.path.display()
    );
    let mut qemu = Qemu::open(&["--image-opts", &image]);
    for round in 0..KILLS {
        // Many requests at once, so that some are at the server when it dies.
        for at in 0..32 {
            qemu.say(&format!(
                "aio_write -P {} {}M 512k",
                round * 32 + at + 1,
                at
            ));
        }
        eventually("writes", || served.count("writes") > 4);
        served.kill();
        served = keeper.resume(&arguments);
        qemu.command("aio_flush");
        for at in 0..32 {
            let read = qemu.command(&format!("read -P {} {}M 512k", round * 32 + at + 1, at));
            assert!(
                read.contains("read 524288/524288") && !read.contains("failed"),
                "{read}"
            );
        }
    }
    drop(qemu);
    drop(keeper);
    eventually("the end of the connection", || {
        served.command("detach") == "ok"
    });
}

/// A qemu-io that takes commands as long as it lives.
struct Qemu {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Qemu {
    fn open(arguments: &[&str]) -> Qemu {
        let mut child = Command::new("sh")
            // Line by line in both directions: what it has read ahead it forgets to look at.
            .args(["-c", "exec stdbuf -i0 -oL qemu-io \"$@\" 2>&1", "sh"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stdin = child.stdin.take();
        let mut qemu = Qemu {
            child,
            stdin,
            stdout,
        };
        qemu.command("length");
        qemu
    }

    fn say(&mut self, command: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    /// Everything that it says until it has carried out the command.
    fn command(&mut self, command: &str) -> String {
        self.say(command);
        self.say("help no-such-command");
        let mut text = String::new();
        loop {
            let start = text.len();
            let count = self.stdout.read_line(&mut text).unwrap();
            assert!(count > 0, "qemu-io ended: {text}");
            if text[start..].contains("no-such-command") {
                return text;
            }
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.wait();
    }
}
