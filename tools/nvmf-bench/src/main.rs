//! `nvmf-bench`: load on a namespace or a file in fio's words, and the two compared.

mod cli;
mod compare;
mod engine;
mod interrupt;
mod jobfile;
mod pattern;
mod report;
mod run;
mod stats;
mod units;
mod verify;
mod worker;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cli::{Cli, Command, Compare, Format, JobSpec, Output, normalise};
use crate::report::svg;
use crate::stats::JobStats;

/// Everything was done.
const EXIT_DONE: u8 = 0;
/// An I/O failed or data did not verify.
const EXIT_IO: u8 = 1;
/// A job is described wrongly.
const EXIT_USAGE: u8 = 2;
/// A place cannot be opened or reached.
const EXIT_OPEN: u8 = 3;

fn main() -> ExitCode {
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("NVMF_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let cli = Cli::parse_strictly(normalise(std::env::args())).unwrap_or_else(|error| error.exit());
    if let Err(error) = interrupt::watch() {
        eprintln!("nvmf-bench: Ctrl-C will end it without figures: {error}");
    }
    let outcome = match &cli.command {
        Some(Command::Compare(options)) => run_compare(options),
        None => run_jobs(&cli),
    };
    let code = outcome.unwrap_or_else(|error| {
        eprintln!("nvmf-bench: {error:#}");
        EXIT_OPEN
    });
    ExitCode::from(if interrupt::came() {
        interrupt::EXIT
    } else {
        code
    })
}

fn run_jobs(cli: &Cli) -> Result<u8> {
    let mut jobs: Vec<JobSpec> = cli
        .job
        .filename
        .is_some()
        .then(|| cli.job.clone())
        .into_iter()
        .collect();
    for path in &cli.job_files {
        match jobfile::read(path) {
            Ok(more) => jobs.extend(more),
            Err(error) => {
                eprintln!("nvmf-bench: {error:#}");
                return Ok(EXIT_USAGE);
            }
        }
    }
    if jobs.is_empty() {
        eprintln!(
            "nvmf-bench: no job: give --filename WHAT or a job file (--help lists the options)"
        );
        return Ok(EXIT_USAGE);
    }
    for job in &jobs {
        if let Err(wrong) = job.check() {
            eprintln!("nvmf-bench: job {}: {wrong}", job.name);
            return Ok(EXIT_USAGE);
        }
    }
    cli.output.try_files()?;
    let (stats, failure) = run::run(&jobs, !cli.output.quiet);
    let failure = match failure {
        Some(failure) if stats.is_empty() => return Err(failure),
        failure => failure,
    };
    let results: Vec<(JobSpec, JobStats)> = jobs.into_iter().zip(stats).collect();
    let text = match cli.output.output_format {
        Format::Normal => results
            .iter()
            .map(|(spec, stats)| report::text::job(spec, stats))
            .collect(),
        Format::Json => serde_json::to_string_pretty(&report::json::document(&results))? + "\n",
    };
    emit(&cli.output, &text)?;
    if let Some(path) = &cli.output.hdr_log {
        report::hdr::write(path, &results)?;
    }
    if let Some(path) = &cli.output.svg {
        let lines: Vec<svg::Line<'_>> = results
            .iter()
            .flat_map(|(spec, stats)| {
                [("read", &stats.read), ("write", &stats.write)].map(|(word, d)| svg::Line {
                    name: format!("{} {word}", spec.name),
                    latency: &d.latency,
                })
            })
            .collect();
        std::fs::write(path, svg::latency_plot("Latency", &lines))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    match failure {
        Some(failure) => Err(failure),
        None if results.iter().any(|(_, stats)| stats.errors > 0) => Ok(EXIT_IO),
        None => Ok(EXIT_DONE),
    }
}

fn run_compare(options: &Compare) -> Result<u8> {
    options.output.try_files()?;
    let rows = compare::compare(options)?;
    let text = match options.output.output_format {
        Format::Normal => compare::table(options, &rows),
        Format::Json => serde_json::to_string_pretty(&compare::json(options, &rows))? + "\n",
    };
    emit(&options.output, &text)?;
    if let Some(path) = &options.output.svg {
        let totals: Vec<_> = rows
            .iter()
            .map(|row| (row.name.clone(), row.last.0.total(), row.last.1.total()))
            .collect();
        let lines: Vec<svg::Line<'_>> = totals
            .iter()
            .flat_map(|(name, a, b)| {
                [
                    svg::Line {
                        name: format!("{name}, A"),
                        latency: &a.latency,
                    },
                    svg::Line {
                        name: format!("{name}, B"),
                        latency: &b.latency,
                    },
                ]
            })
            .collect();
        std::fs::write(path, svg::latency_plot("Latency, A against B", &lines))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(if rows.iter().any(|row| !row.errors.is_empty()) {
        EXIT_IO
    } else {
        EXIT_DONE
    })
}

fn emit(output: &Output, text: &str) -> Result<()> {
    match &output.output {
        Some(path) => {
            std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
        }
        None => {
            let mut stdout = std::io::stdout();
            let written = stdout.write_all(text.as_bytes());
            match written.and_then(|()| stdout.flush()) {
                // A reader that has seen enough is no failure.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
                written => written.context("writing the output"),
            }
        }
    }
}
