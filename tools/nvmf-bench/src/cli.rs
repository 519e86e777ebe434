//! The words of the command line and of job files: fio's, with underscores and hyphens meaning the same.
//!
//! One structure, [`JobSpec`], is the single list of options; a job file's section becomes the same arguments, so the two can
//! never disagree on a name, a default or a bound.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::units::{parse_block_size, parse_cores, parse_time};

/// fio-style load on an NVMe over Fabrics namespace or a local file, and the two compared.
#[derive(Parser, Debug)]
#[command(
    name = "nvmf-bench",
    version,
    max_term_width = 110,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
#[command(
    after_help = "WHAT in --filename: nvme+tcp://HOST:PORT/NQN?nsid=1 or nvme+rdma://… (our initiator, in this process), or a file or block device (io_uring).\n\
    Exit codes: 0 done; 1 an I/O failed or data did not verify; 2 the command line or a job file is wrong; 3 the target or file cannot be opened;\n\
    130 interrupted by Ctrl-C, after what was measured until then was printed."
)]
pub struct Cli {
    /// Compare two places instead of loading one.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// fio job files; their sections become jobs after those of the command line.
    pub job_files: Vec<PathBuf>,
    /// The job that the command line describes, if it names a file.
    #[command(flatten)]
    pub job: JobSpec,
    /// How and where the result is written.
    #[command(flatten)]
    pub output: Output,
}

/// What to do when it is not simply running jobs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the same workloads on A and on B in turn, several rounds, and print one table. Those that write overwrite what is there.
    Compare(Compare),
}

/// Options of a job that a comparison has no use for: it sets them itself, or writes nothing of the kind.
const NOT_OF_COMPARE: [&str; 8] = [
    "name",
    "filename",
    "rw",
    "bs",
    "iodepth",
    "time_based",
    "stonewall",
    "hdr_log",
];

impl Cli {
    /// Parses a command line, the program's name first.
    pub fn parse_strictly(args: Vec<String>) -> Result<Self, clap::Error> {
        let hidden = |compare: clap::Command| {
            NOT_OF_COMPARE.iter().fold(compare, |compare, id| {
                compare.mut_arg(id, |arg| arg.hide(true))
            })
        };
        let mut command = Self::command().mut_subcommand("compare", hidden);
        let matches = command.try_get_matches_from_mut(args)?;
        if let Some(compare) = matches.subcommand_matches("compare") {
            let given = |id: &&&str| compare.value_source(id) == Some(ValueSource::CommandLine);
            if let Some(id) = NOT_OF_COMPARE.iter().find(given) {
                let flag = id.replace('_', "-");
                return Err(command.error(
                    ErrorKind::ArgumentConflict,
                    format!(
                        "compare takes no --{flag}: it runs --workload RW:BS:IODEPTH on A and B"
                    ),
                ));
            }
        }
        Self::from_arg_matches(&matches)
    }
}

/// `nvmf-bench compare A B`.
#[derive(Args, Debug)]
pub struct Compare {
    /// The place in question, usually nvme+tcp://… or nvme+rdma://….
    pub a: String,
    /// The place to hold it against, usually the local file.
    pub b: String,
    /// A workload as RW:BS:IODEPTH; may be given several times.
    #[arg(long = "workload", value_parser = Workload::parse, default_values = ["randread:4k:1", "randread:4k:32", "randwrite:4k:1", "randwrite:4k:32", "read:128k:32", "write:128k:32"])]
    pub workloads: Vec<Workload>,
    /// How often A and B take turns; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub rounds: u32,
    /// Also count the CPU time of this process (the target's pid), for CPU per I/O on side A.
    #[arg(long, value_name = "PID")]
    pub target_pid: Option<u32>,
    /// Options that hold for every workload.
    #[command(flatten)]
    pub job: JobSpec,
    /// How and where the table is written.
    #[command(flatten)]
    pub output: Output,
}

/// One row of a comparison: pattern, block size and depth.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The pattern.
    pub rw: Rw,
    /// Bytes of each I/O.
    pub block_bytes: u32,
    /// I/Os in flight.
    pub iodepth: u16,
}

impl Workload {
    fn parse(text: &str) -> Result<Self, String> {
        let bad =
            || format!("'{text}' is not a workload: write RW:BS:IODEPTH, such as randread:4k:32");
        let mut parts = text.split(':');
        let (Some(rw), Some(bs), Some(depth), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        let iodepth = depth
            .parse()
            .ok()
            .filter(|d| (1..=1024).contains(d))
            .ok_or_else(bad)?;
        Ok(Self {
            rw: Rw::from_str(rw, true).map_err(|_| bad())?,
            block_bytes: parse_block_size(bs)?,
            iodepth,
        })
    }

    /// The name by which the row is shown.
    pub fn name(&self) -> String {
        let bs = if self.block_bytes >= 1 << 20 {
            format!("{}m", self.block_bytes >> 20)
        } else if self.block_bytes >= 1024 {
            format!("{}k", self.block_bytes >> 10)
        } else {
            self.block_bytes.to_string()
        };
        format!("{} {} QD{}", self.rw.name(), bs, self.iodepth)
    }
}

/// The access pattern, in fio's words.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rw {
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
    /// Random reads.
    Randread,
    /// Random writes.
    Randwrite,
    /// Random reads and writes mixed.
    Randrw,
    /// Sequential reads and writes mixed.
    #[value(name = "rw", alias = "readwrite")]
    Mixed,
}

impl Rw {
    /// Whether offsets are random.
    pub fn is_random(self) -> bool {
        matches!(self, Self::Randread | Self::Randwrite | Self::Randrw)
    }
    /// Whether any I/O is a write.
    pub fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::Randread)
    }
    /// The percentage of reads when `mix` is what a mixed pattern asks for.
    pub fn read_percent(self, mix: u8) -> u8 {
        match self {
            Self::Read | Self::Randread => 100,
            Self::Write | Self::Randwrite => 0,
            Self::Randrw | Self::Mixed => mix,
        }
    }
    /// fio's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Randrw => "randrw",
            Self::Mixed => "rw",
        }
    }
}

/// What is written into each block so that it can be verified.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Nothing.
    #[value(alias = "0")]
    None,
    /// A header with offset and generation, and a CRC32C over the whole block.
    Crc32c,
}

/// One job. Field names are fio's option names.
#[derive(Args, Clone, Debug)]
pub struct JobSpec {
    /// Name of the job.
    #[arg(long, default_value = "job")]
    pub name: String,
    /// Where the I/O goes: nvme+tcp://HOST:PORT/NQN?nsid=N, nvme+rdma://…, a file, or a block device.
    #[arg(long, value_name = "WHAT")]
    pub filename: Option<String>,
    /// The access pattern.
    #[arg(long, alias = "readwrite", default_value = "read", value_enum)]
    pub rw: Rw,
    /// Percentage of reads in a mixed pattern.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub rwmixread: u8,
    /// Bytes of each I/O.
    #[arg(long, alias = "blocksize", default_value = "4k", value_parser = parse_block_size)]
    pub bs: u32,
    /// I/Os in flight for each job.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub iodepth: u16,
    /// Threads that run this job, each with a connection or ring of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub numjobs: u16,
    /// Stop after this time even if --size is not reached.
    #[arg(long, value_parser = parse_time)]
    pub runtime: Option<Duration>,
    /// Go on until --runtime even if --size is reached, over and over.
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = parse_flag, action = clap::ArgAction::Set)]
    pub time_based: bool,
    /// Begin when the jobs before this one have ended, instead of together with them.
    #[arg(long, alias = "wait-for-previous", num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = parse_flag, action = clap::ArgAction::Set)]
    pub stonewall: bool,
    /// Run this long before anything is counted.
    #[arg(long, default_value = "0", value_parser = parse_time)]
    pub ramp_time: Duration,
    /// Bytes that each job works over and transfers (default: all from --offset on).
    #[arg(long, value_parser = nvmf_size::parse)]
    pub size: Option<u64>,
    /// First byte of the range.
    #[arg(long, default_value = "0", value_parser = nvmf_size::parse)]
    pub offset: u64,
    /// Stamp what is written and check it on reading back.
    #[arg(long, default_value = "none", value_enum)]
    pub verify: Verify,
    /// I/Os a second for each job.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate_iops: Option<u64>,
    /// Cores that the job's threads may use, one each in turn.
    #[arg(long, value_name = "LIST", value_parser = parse_cores)]
    pub cpus_allowed: Option<std::vec::Vec<usize>>,
    /// Spin this many microseconds for a completion before sleeping.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    pub busy_poll: u64,
    /// Bypass the page cache of a local file.
    #[arg(long, num_args = 0..=1, default_value = "true", default_missing_value = "true", value_parser = parse_flag, action = clap::ArgAction::Set)]
    pub direct: bool,
    /// Seed of the random offsets.
    #[arg(long, default_value_t = 0x9e37_79b9)]
    pub randseed: u64,
    /// Header digests on NVMe/TCP.
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = parse_flag, action = clap::ArgAction::Set)]
    pub hdr_digest: bool,
    /// Data digests on NVMe/TCP.
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = parse_flag, action = clap::ArgAction::Set)]
    pub data_digest: bool,
    /// Host NQN to connect as (default: /etc/nvme/hostnqn).
    #[arg(long)]
    pub hostnqn: Option<String>,
}

impl JobSpec {
    /// What no option says wrongly by itself: options that do not go together.
    pub fn check(&self) -> Result<(), String> {
        match (&self.filename, self.time_based, self.runtime) {
            (None, ..) => Err(
                "--filename is missing: name a file, a block device, nvme+tcp://HOST:PORT/NQN?nsid=N or nvme+rdma://…".into(),
            ),
            (_, true, None) => Err("--time-based needs a --runtime".into()),
            _ => Ok(()),
        }
    }
}

/// Where the result goes.
#[derive(Args, Clone, Debug)]
pub struct Output {
    /// What is printed at the end.
    #[arg(long, default_value = "normal", value_enum)]
    pub output_format: Format,
    /// Write the result to this file instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write the latency histograms, in the HdrHistogram interval log format.
    #[arg(long, value_name = "FILE")]
    pub hdr_log: Option<PathBuf>,
    /// Draw latency over percentile as an SVG.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Do not show progress.
    #[arg(long)]
    pub quiet: bool,
}

impl Output {
    /// Sees that the files can be written, so that nobody learns it only after a long run.
    pub fn try_files(&self) -> anyhow::Result<()> {
        for path in [&self.output, &self.hdr_log, &self.svg]
            .into_iter()
            .flatten()
        {
            // A pipe's reader takes the end of this trial for the end of what it gets.
            if path.metadata().is_ok_and(|at| !at.is_file()) {
                continue;
            }
            let opened = OpenOptions::new().append(true).create(true).open(path);
            opened.with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }
}

/// The result's form.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Normal,
    /// fio's JSON.
    Json,
}

fn parse_flag(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" | "yes" => Ok(true),
        "0" | "false" | "no" => Ok(false),
        _ => Err(format!("'{text}': write 1 or 0")),
    }
}

/// fio spells options with underscores, our help with hyphens: both are taken.
pub fn normalise(args: impl IntoIterator<Item = String>) -> Vec<String> {
    args.into_iter()
        .map(|arg| match arg.strip_prefix("--") {
            Some(rest) => {
                let (name, value) = rest
                    .split_once('=')
                    .map_or((rest, None), |(n, v)| (n, Some(v)));
                let name = name.replace('_', "-");
                value.map_or_else(|| format!("--{name}"), |v| format!("--{name}={v}"))
            }
            None => arg,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::parse_strictly(normalise(line.split_whitespace().map(String::from)))
    }

    #[test]
    fn fio_spelling_is_taken() {
        let cli = parse("nvmf-bench --filename=/tmp/x --rw=randrw --rwmixread=70 --bs=4k --iodepth 32 --ramp_time=1 --time_based --runtime=5 --output-format=json --cpus_allowed=0-1").unwrap();
        assert_eq!(
            (cli.job.rw, cli.job.rwmixread, cli.job.bs, cli.job.iodepth),
            (Rw::Randrw, 70, 4096, 32)
        );
        assert!(cli.job.time_based);
        assert_eq!(cli.job.cpus_allowed, Some(vec![0, 1]));
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        for line in [
            "nvmf-bench --iodepth=0",
            "nvmf-bench --iodepth=5000",
            "nvmf-bench --bs=3k",
            "nvmf-bench --rw=sideways",
            "nvmf-bench --nonsense=1",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn compare_refuses_what_it_would_not_heed() {
        for flag in [
            "--rw=read",
            "--bs 8k",
            "--iodepth=2",
            "--filename=/f",
            "--hdr_log=/f",
        ] {
            let error = parse(&format!("nvmf-bench compare a b {flag}")).unwrap_err();
            let said = error.to_string();
            assert!(said.contains("compare takes no --"), "{said}");
            assert_eq!(error.exit_code(), 2);
        }
        assert!(parse("nvmf-bench compare a b --size=1m --numjobs=2").is_ok());
    }

    #[test]
    fn compare_has_default_workloads() {
        let cli =
            parse("nvmf-bench compare nvme+tcp://127.0.0.1:4420/nqn?nsid=1 /tmp/file --runtime 2")
                .unwrap();
        let Some(Command::Compare(compare)) = cli.command else {
            panic!("no compare")
        };
        assert_eq!(compare.workloads.len(), 6);
        assert_eq!(compare.workloads[0].name(), "randread 4k QD1");
    }
}
