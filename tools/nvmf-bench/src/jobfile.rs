//! fio job files: `[global]` and named sections of `key=value` lines.
//!
//! Each section is turned into command-line arguments and read by the same parser as the command line, so an unknown key or a
//! value out of bounds is refused with the file and line it stands on. What fio knows and we do not is refused too, by name:
//! running something other than what was asked for is worse than not running it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::cli::{JobSpec, normalise};

/// Keys that fio needs and that change nothing here, since io_uring and one process with threads are what there is.
const ACCEPTED_AND_MEANINGLESS: &[&str] = &[
    "ioengine",
    "thread",
    "group_reporting",
    "norandommap",
    "gtod_reduce",
];

#[derive(Parser)]
#[command(name = "job", no_binary_name = true)]
struct Section {
    #[command(flatten)]
    job: JobSpec,
}

struct Line {
    number: usize,
    argument: String,
}

/// Reads a job file into its jobs, `[global]` applied to each section that follows it.
pub fn read(path: &Path) -> Result<Vec<JobSpec>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("job file {}", path.display()))?;
    parse(&text).with_context(|| format!("job file {}", path.display()))
}

fn parse(text: &str) -> Result<Vec<JobSpec>> {
    let mut global: Vec<Line> = Vec::new();
    let mut sections: Vec<(String, Vec<Line>)> = Vec::new();
    let mut in_global = false;
    for (index, raw) in text.lines().enumerate() {
        let number = index + 1;
        let line = raw.trim();
        if line.is_empty() || line.starts_with('#') || line.starts_with(';') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            in_global = name == "global";
            if !in_global {
                let inherited = global
                    .iter()
                    .map(|l| Line {
                        number: l.number,
                        argument: l.argument.clone(),
                    })
                    .collect();
                sections.push((name.to_owned(), inherited));
            }
            continue;
        }
        let key = line.split('=').next().unwrap_or(line).trim();
        if ACCEPTED_AND_MEANINGLESS.contains(&key) {
            continue;
        }
        let argument = format!(
            "--{}",
            line.split_once('=').map_or_else(
                || line.to_owned(),
                |(k, v)| format!("{}={}", k.trim(), v.trim())
            )
        );
        let into = match sections.last_mut() {
            _ if in_global => &mut global,
            Some((_, lines)) => lines,
            None => bail!("line {number}: '{line}' stands before any [section]"),
        };
        into.push(Line { number, argument });
    }
    if sections.is_empty() {
        bail!("no job: write a section such as [randread] after [global]");
    }
    sections
        .into_iter()
        .map(|(name, lines)| section(name, &lines))
        .collect()
}

fn section(name: String, lines: &[Line]) -> Result<JobSpec> {
    // Each line alone first, so that a bad one can be named by its number.
    for line in lines {
        if let Err(error) = Section::try_parse_from(normalise([line.argument.clone()])) {
            let said = error.to_string();
            let first = said
                .lines()
                .next()
                .unwrap_or_default()
                .trim_start_matches("error: ");
            bail!(
                "line {}: {}",
                line.number,
                first.replace("argument '--", "option '")
            );
        }
    }
    // A later line overrides an earlier one of the same key, as a section overrides [global].
    let mut arguments: Vec<String> = Vec::new();
    for argument in normalise(lines.iter().map(|l| l.argument.clone())) {
        let key = argument.split('=').next().unwrap_or_default().to_owned();
        arguments.retain(|a| a.split('=').next() != Some(&key));
        arguments.push(argument);
    }
    if !arguments.iter().any(|a| a.starts_with("--name=")) {
        arguments.push(format!("--name={name}"));
    }
    Ok(Section::try_parse_from(arguments)?.job)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Rw;

    #[test]
    fn sections_inherit_from_global_and_override_it() {
        let jobs = parse("# a comment\n[global]\nioengine=io_uring\nbs=4k\niodepth=32\nruntime=2\ntime_based\nfilename=/tmp/f\n\n[reads]\nrw=randread\n[big]\nrw=write\nbs=128k\n").unwrap();
        assert_eq!(jobs.len(), 2);
        assert_eq!(
            (
                jobs[0].name.as_str(),
                jobs[0].rw,
                jobs[0].bs,
                jobs[0].iodepth
            ),
            ("reads", Rw::Randread, 4096, 32)
        );
        assert_eq!(
            (jobs[1].name.as_str(), jobs[1].rw, jobs[1].bs),
            ("big", Rw::Write, 131072)
        );
        assert!(jobs[0].time_based);
    }

    #[test]
    fn a_job_may_wait_for_those_before_it() {
        let text = "[a]\nrw=write\n[b]\nstonewall\n[c]\nwait_for_previous=1\n";
        let jobs = parse(text).unwrap();
        let waits: Vec<bool> = jobs.iter().map(|job| job.stonewall).collect();
        assert_eq!(waits, [false, true, true]);
    }

    #[test]
    fn a_bad_line_is_named_by_number() {
        let error = format!(
            "{:#}",
            parse("[global]\nbs=4k\n[a]\nrw=randread\nzonemode=strided\n").unwrap_err()
        );
        assert!(
            error.contains("line 5") && error.contains("zonemode"),
            "{error}"
        );
        let error = format!("{:#}", parse("[a]\niodepth=0\n").unwrap_err());
        assert!(error.contains("line 2"), "{error}");
        let error = format!("{:#}", parse("bs=4k\n").unwrap_err());
        assert!(error.contains("line 1"), "{error}");
    }
}
