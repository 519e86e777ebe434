//! `nvmfctl`: the management API of `nvmf-target` for people: tables, or the API's own JSON with `--json`.

mod cli;
mod error;
mod lists;
mod pools;
mod requests;
mod size;
mod table;
mod top;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use nvmf_rpc::{BlockingClient, Endpoint};
use serde_json::Value;

use cli::{Cli, Command};
use error::Error;
use table::Table;

/// What a command has to say.
pub enum Output {
    /// The API's result, for `--json`, and the table that people see.
    Listed(Value, Table),
    /// The API's result, and a line for people.
    Done(Value, String),
    /// The same for both.
    Raw(Value),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has seen enough.
        Err(Error::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("nvmfctl: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: &Cli) -> Result<(), Error> {
    if let Command::Completion { shell } = &cli.command {
        let mut command = Cli::command();
        let mut script = Vec::new();
        clap_complete::generate(*shell, &mut command, "nvmfctl", &mut script);
        std::io::stdout().write_all(&script)?;
        return Ok(());
    }
    let client = BlockingClient::new(Endpoint::written(&cli.socket, &cli.tls)?);
    let client = client.with_timeout(cli.timeout);
    let output = match &cli.command {
        Command::Completion { .. } => return Ok(()),
        Command::Top(options) => return top::run(&client, options, cli.json),
        Command::Subsystem(command) => requests::subsystem(&client, command),
        Command::Namespace(command) => requests::namespace(&client, command),
        Command::Host(command) => requests::host(&client, command),
        Command::Listener(command) => requests::listener(&client, command),
        Command::Bdev(command) => requests::bdev(&client, command),
        Command::Controllers { nqn } => lists::controllers(&client, nqn.as_deref()),
        Command::Queues { nqn } => lists::queues(&client, nqn.as_deref()),
        Command::Pools { name } => pools::pools(&client, name.clone()),
        Command::Volume(command) => pools::volume(&client, command),
        Command::Snapshot(command) => pools::snapshot(&client, command),
        Command::Rpc { method, params } => requests::raw(&client, method, params.as_deref()),
        Command::Version => requests::version(&client),
    }?;
    let mut text = match output {
        Output::Listed(value, _) | Output::Done(value, _) if cli.json => pretty(&value),
        Output::Listed(_, table) => table.to_string(),
        Output::Done(_, line) => line,
        Output::Raw(value) => pretty(&value),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn pretty(value: &Value) -> String {
    format!("{value:#}")
}
