//! A peer for tests over RDMA.
//!
//! ```text
//! rdma-peer verbs ADDR:PORT     both ends here: every kind of work request, private data, refusal, a wrong key, the end
//! ```
//! Each step prints a line; the first that goes wrong ends the program with exit code 1 and says what.

mod link;
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
        bail!("usage: rdma-peer verbs ADDR:PORT");
    };
    let address: SocketAddr = address
        .parse()
        .with_context(|| format!("{address:?} is not ADDR:PORT"))?;
    match mode.as_str() {
        "verbs" => verbs::run(address),
        _ => bail!("there is no mode {mode:?}: verbs"),
    }
}
