//! `nvmf-target`: serves files, block devices, local NVMe and memory over NVMe/TCP.

use std::process::ExitCode;

use nvmf_target::config::cli::Cli;
use nvmf_target::config::identity::Identity;
use nvmf_target::control::run::{self, EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE};
use nvmf_target::logging;

fn main() -> ExitCode {
    let cli = Cli::from_process();
    ExitCode::from(serve(&cli))
}

fn serve(cli: &Cli) -> u8 {
    if let Err(error) = logging::start(&cli.log, cli.json) {
        report(
            cli,
            "--log",
            &format!("{:?} is no filter: {error}", cli.log),
        );
        return EXIT_USAGE;
    }
    let identity = Identity::of_this_machine();
    let config = match cli.config(&identity) {
        Ok(config) => config,
        Err(problems) => {
            for problem in &problems.0 {
                let place = problem.place();
                report(cli, &place, &problem.message);
            }
            return EXIT_USAGE;
        }
    };
    if cli.check {
        if cli.json {
            println!("{}", serde_json::json!({ "event": "checked", "ok": true }));
        } else {
            println!("nothing wrong");
        }
        return EXIT_STOPPED;
    }
    match run::serve(cli, config, identity) {
        Ok(code) => code,
        Err(error) => {
            report(cli, "", &format!("{error:#}"));
            EXIT_FAILED
        }
    }
}

/// Says on standard error what is wrong, and where.
fn report(cli: &Cli, place: &str, message: &str) {
    if cli.json {
        let line = serde_json::json!({ "event": "error", "place": place, "message": message });
        eprintln!("{line}");
    } else if place.is_empty() {
        eprintln!("nvmf-target: {message}");
    } else {
        eprintln!("nvmf-target: {place}: {message}");
    }
}
