//! A peer for tests over RDMA.
//!
//! ```text
//! rdma-peer verbs ADDR:PORT      both ends here: every kind of work request, private data, refusal, a wrong key, the end
//!
//! against a target; NQN is a subsystem of it, NSID a namespace of at least 1 MiB that may be overwritten:
//! rdma-peer refused ADDR:PORT    private data wrong in each field, and then right
//! rdma-peer capsules ADDR:PORT NQN NSID   commands wrong in each field, while another host does I/O
//! rdma-peer silent ADDR:PORT     connects and sends no Connect, until the target hangs up
//! rdma-peer half ADDR:PORT       asks for a connection and never looks at the answer, until it is killed
//! rdma-peer mute ADDR:PORT NQN NSID   asks for data, takes one response, and says nothing more, until the target hangs up
//! rdma-peer dying ADDR:PORT NQN NSID   sends 24 commands and takes few responses, until it is killed in the middle of transfers
//!
//! between a host whose queues have at most 32 entries, and a target:
//! rdma-peer between ADDR:PORT TARGET-ADDR:PORT keep|keep-and-use|use|steal|twice   passes everything on, but does with the keys to the host's
//!     memory as the word says: never invalidates them; the same, and uses one that should be closed; invalidates as it is asked to,
//!     and uses one; invalidates that of another command; invalidates none and answers twice. Until it is killed, or finds memory open that should not be
//! ```
//! Each step prints a line; the first that goes wrong ends the program with exit code 1 and says what.

mod between;
mod capsules;
mod connects;
mod dying;
mod host;
mod link;
mod refused;
mod silent;
mod verbs;
mod windows;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rdma-peer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let at = |address: &str| -> Result<SocketAddr> {
        let parsed = address.parse();
        parsed.with_context(|| format!("{address:?} is not ADDR:PORT"))
    };
    let number = |nsid: &str| -> Result<u32> {
        let parsed = nsid.parse();
        parsed.with_context(|| format!("{nsid:?} is no NSID"))
    };
    match words.as_slice() {
        ["verbs", address] => verbs::run(at(address)?),
        ["refused", address] => refused::run(at(address)?),
        ["capsules", address, nqn, nsid] => capsules::run(at(address)?, nqn, number(nsid)?),
        ["silent", address] => silent::no_connect(at(address)?),
        ["half", address] => silent::half(at(address)?),
        ["mute", address, nqn, nsid] => silent::mute(at(address)?, nqn, number(nsid)?),
        ["dying", address, nqn, nsid] => dying::run(at(address)?, nqn, number(nsid)?),
        ["between", listen, target, fault] => {
            between::run(at(listen)?, at(target)?, fault.parse()?)
        }
        _ => bail!(
            "usage: rdma-peer verbs|refused|silent|half ADDR:PORT, capsules|mute|dying ADDR:PORT NQN NSID, between ADDR:PORT ADDR:PORT FAULT"
        ),
    }
}
