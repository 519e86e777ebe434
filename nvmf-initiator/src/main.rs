//! `nvmf-initiator`: see [`nvmf_initiator::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    nvmf_initiator::cli::main()
}
