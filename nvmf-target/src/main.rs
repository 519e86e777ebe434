//! `nvmf-target`: serves files, block devices, local NVMe and memory over NVMe/TCP and NVMe/RDMA.

use std::process::ExitCode;

use nvmf_target::api::tls::Tls;
use nvmf_target::config::cli::Cli;
use nvmf_target::config::identity::Identity;
use nvmf_target::control::run::{self, EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE};
use nvmf_target::logging::{self, print_line};

fn main() -> ExitCode {
    let cli = Cli::from_process();
    ExitCode::from(serve(&cli))
}

fn serve(cli: &Cli) -> u8 {
    if let Err(error) = logging::start(&cli.log, cli.json) {
        report(cli, "--log", &error.to_string());
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
        if let Some(tls) = &config.api.tls
            && let Err(error) = Tls::load(tls)
        {
            report(cli, "api.tls", &error.to_string());
            return EXIT_USAGE;
        }
        let ok = serde_json::json!({ "event": "checked", "ok": true }).to_string();
        let line = if cli.json { &ok } else { "nothing wrong" };
        print_line(std::io::stdout(), line);
        return EXIT_STOPPED;
    }
    match run::serve(cli, config, identity) {
        Ok(code) => code,
        Err(error) => {
            report(cli, "", &logging::with_causes(&error));
            EXIT_FAILED
        }
    }
}

/// Says on standard error what is wrong, and where.
fn report(cli: &Cli, place: &str, message: &str) {
    let line = if cli.json {
        serde_json::json!({ "event": "error", "place": place, "message": message }).to_string()
    } else if place.is_empty() {
        format!("nvmf-target: {message}")
    } else {
        format!("nvmf-target: {place}: {message}")
    };
    print_line(std::io::stderr(), &line);
}
