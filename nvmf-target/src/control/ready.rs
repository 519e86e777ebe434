//! Telling others that hosts can connect, and later that they cannot: the ready file and the service manager.

use std::fs;
use std::io;
use std::path::Path;

use sd_notify::NotifyState;

use crate::config::Address;
use crate::logging::print_line;
use crate::model::Nqn;

/// Writes the addresses, one `tcp://ADDR:PORT` or `rdma://ADDR:PORT` a line, so that the file is either absent or complete.
pub fn write_ready_file(path: &Path, addresses: &[Address]) -> io::Result<()> {
    let lines: String = addresses
        .iter()
        .map(|address| format!("{address}\n"))
        .collect();
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    fs::write(&temporary, lines)?;
    fs::rename(&temporary, path)
}

/// Prints what a host must be told to connect, NQNs and addresses, and tells the service manager that hosts can.
pub fn announce(addresses: &[Address], nqns: &[Nqn], json: bool) {
    for nqn in nqns {
        let line = if json {
            serde_json::json!({ "event": "serving", "nqn": nqn.to_string() }).to_string()
        } else {
            format!("serving {nqn}")
        };
        print_line(io::stdout(), &line);
    }
    for address in addresses {
        let address = address.to_string();
        let line = if json {
            serde_json::json!({ "event": "listening", "address": address }).to_string()
        } else {
            format!("listening on {address}")
        };
        print_line(io::stdout(), &line);
    }
    ready("hosts can connect");
}

/// Tells the service manager, if there is one.
pub fn notify(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told of a change of state");
    }
}

/// Hosts can connect.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is being read again; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the monotonic clock cannot be read"),
    }
}

/// No more hosts are accepted.
pub fn stopping() {
    notify(&[
        NotifyState::Stopping,
        NotifyState::Status("finishing commands"),
    ]);
}
