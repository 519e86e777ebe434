//! What the service manager and those who wait for the ready file are told.

use std::fs;
use std::os::unix::net::UnixDatagram;

use rustix::process::Signal;

use crate::common::host::PATIENCE;
use crate::process::{NQN, Target};

#[test]
fn the_service_manager_follows_start_reload_and_stop() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let next = || {
        let mut buffer = [0; 1024];
        let count = manager.recv(&mut buffer).expect("a notification");
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    };
    let arguments = ["--null", "1M", "--nqn", NQN];
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap())];
    let mut target = Target::start_in(tempfile::tempdir().unwrap(), &arguments, &environment);
    assert!(next().lines().any(|line| line == "READY=1"));
    target.signal(Signal::HUP);
    let reloading = next();
    assert!(
        reloading.lines().any(|line| line == "RELOADING=1"),
        "{reloading}"
    );
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    assert!(next().contains("READY=1"));
    target.signal(Signal::TERM);
    assert!(next().contains("STOPPING=1"));
    assert_eq!(target.wait_exit().code(), Some(0));
}

#[test]
fn the_ready_file_follows_the_listeners_and_goes_with_the_process() {
    let text = |list: &str| format!("listen = [{list}]\n[[subsystem]]\nnqn = \"{NQN}\"\n");
    let one = "\"tcp://127.0.0.1:0\"";
    let mut target = Target::with_file(&text(one));
    let ready = target.file("ready");
    let lines = || fs::read_to_string(&ready).unwrap().lines().count();
    assert_eq!(lines(), 1);
    target.reload(&text(&format!("{one}, \"tcp://127.0.0.2:0\"")));
    assert_eq!(lines(), 2);
    assert_eq!(target.stop().code(), Some(0));
    assert!(!ready.exists());
}

#[test]
fn one_file_is_served_by_one_target() {
    let dir = tempfile::tempdir().unwrap();
    let argument = format!("{}:1M", dir.path().join("a.img").display());
    let mut first = Target::start(tempfile::tempdir().unwrap(), &["--file", &argument]);
    let arguments = ["--file", &argument];
    let mut second = Target::spawn(tempfile::tempdir().unwrap(), &arguments, &[]);
    second.wait_log("is served already");
    assert!(!second.file("ready").exists());
    first.signal(Signal::KILL);
    first.wait_exit();
    second.wait_ready();
}
