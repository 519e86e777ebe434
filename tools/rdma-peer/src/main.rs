//! A peer for tests over RDMA.
//!
//! ```text
//! rdma-peer verbs ADDR:PORT     both ends here: every kind of work request, private data, refusal, a wrong key, the end
//! rdma-peer refused ADDR:PORT   against a target: private data wrong in each field, and then right
//! rdma-peer silent ADDR:PORT    against a target: connects and says nothing, until the target hangs up
//! ```
//! Each step prints a line; the first that goes wrong ends the program with exit code 1 and says what.

mod link;
mod refused;
mod verbs;

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
    let [mode, address] = args.as_slice() else {
        bail!("usage: rdma-peer verbs|refused|silent ADDR:PORT");
    };
    let address: SocketAddr = address
        .parse()
        .with_context(|| format!("{address:?} is not ADDR:PORT"))?;
    match mode.as_str() {
        "verbs" => verbs::run(address),
        "refused" => refused::run(address),
        "silent" => refused::silent(address),
        _ => bail!("there is no mode {mode:?}: verbs, refused, silent"),
    }
}
