//! The TOML form of a configuration.
//!
//! Keys are written as in the command line's flags, with dashes. Unknown keys are refused, so that a typing mistake never
//! turns into a default. `docs/OPERATIONS.md` shows a whole file.

mod api;
mod authentication;
mod limits;
mod pools;
mod subsystems;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nvmf_size::ByteSize;
use serde::Deserialize;
use toml::Spanned;

use super::address::Address;
use super::cli::DEFAULT_LISTEN;
use super::limits::BUSY_POLL_US;
use super::problem::{Collector, Place, Problem, Problems};
use super::{Config, CoreSet, rules};

/// The model number where none is given.
pub const DEFAULT_MODEL: &str = "nvmf-target";
/// The length of an Identify Controller model number.
pub const MODEL_CHARS: usize = 40;

/// Reads and checks the file.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let text = fs::read_to_string(path).map_err(|error| {
        Problems(vec![Problem {
            file: Some(path.to_owned()),
            line: None,
            key: String::new(),
            message: format!("cannot be read: {error}"),
        }])
    })?;
    parse(path, &text)
}

/// Checks `text`, the content of the file `path`.
pub fn parse(path: &Path, text: &str) -> Result<Config, Problems> {
    let raw: RawFile = toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map(|span| super::problem::line_of(text, span.start));
        let key = line.map(|line| key_of_line(text, line)).unwrap_or_default();
        Problems(vec![Problem {
            file: Some(path.to_owned()),
            line,
            key,
            message: in_plain_words(error.message()),
        }])
    })?;
    let mut problems = Collector::for_file(path, text);
    let config = raw.check(&mut problems);
    problems.finish(config)
}

/// What the parser says, in the words of a configuration instead of Rust's.
fn in_plain_words(message: &str) -> String {
    const NAMED: &[(&str, &str)] = &[
        (
            "invalid type: map, expected a sequence",
            "expected a list: write the name of a table in double brackets, such as [[subsystem]], and brackets around texts, such as [\"…\"]",
        ),
        (
            "expected a sequence",
            "expected a list: write brackets around it, such as [\"…\"]",
        ),
        ("expected u64", "expected a number of 0 or more"),
        ("expected u32", "expected a number of 0 or more"),
        ("expected a boolean", "expected true or false"),
        (
            "invalid socket address syntax",
            "not an IP address with a port; write ADDR:PORT, such as 192.0.2.10:4421",
        ),
    ];
    let named = NAMED
        .iter()
        .find_map(|(rust, plain)| Some(format!("{}{plain}", message.strip_suffix(rust)?)));
    named.unwrap_or_else(|| message.to_owned())
}

/// The key that line number `line` assigns to; empty for headers and continued values.
fn key_of_line(text: &str, line: usize) -> String {
    let line = text.lines().nth(line - 1).unwrap_or_default();
    match line.split_once('=') {
        Some((key, _)) if !key.trim_start().starts_with('#') => key.trim().to_owned(),
        _ => String::new(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawFile {
    listen: Option<Spanned<Vec<Spanned<Address>>>>,
    #[serde(default)]
    referrals: Vec<Address>,
    cores: Option<CoreSet>,
    busy_poll: Option<Spanned<u64>>,
    #[serde(default)]
    limits: limits::RawLimits,
    #[serde(default)]
    tcp: limits::RawTcp,
    #[serde(default)]
    keep_alive: limits::RawKeepAlive,
    #[serde(default)]
    api: api::RawApi,
    #[serde(default)]
    authentication: authentication::RawAuthentication,
    #[serde(default)]
    host: Vec<authentication::RawHost>,
    #[serde(default)]
    subsystem: Vec<Spanned<subsystems::RawSubsystem>>,
    #[serde(default)]
    pool: BTreeMap<Spanned<String>, pools::RawPool>,
}

impl RawFile {
    fn check(self, problems: &mut Collector) -> Config {
        let listeners = match self.listen {
            Some(list) => {
                let addresses: Vec<_> = list
                    .into_inner()
                    .into_iter()
                    .map(|address| {
                        let place = Place::at("listen", address.span());
                        (address.into_inner(), place)
                    })
                    .collect();
                rules::check_listeners(&addresses, problems);
                addresses.into_iter().map(|(address, _)| address).collect()
            }
            None => vec![DEFAULT_LISTEN],
        };
        let busy_poll_us = ranged("busy-poll", self.busy_poll, &BUSY_POLL_US, problems);
        let subsystems = subsystems::check(self.subsystem, problems);
        Config {
            listeners,
            subsystems,
            pools: pools::check(self.pool, problems),
            referrals: self.referrals,
            limits: self.limits.check(problems),
            tcp: self.tcp.check(problems),
            keep_alive: self.keep_alive.check(problems),
            cores: self.cores,
            busy_poll_us: busy_poll_us.unwrap_or(0) as u32,
            api: self.api.check(problems),
            authentication: self.authentication.check(self.host, problems),
        }
    }
}

/// The value if it lies in `range`; otherwise a problem, and `None`.
fn ranged(
    key: &str,
    value: Option<Spanned<u64>>,
    range: &std::ops::RangeInclusive<u64>,
    problems: &mut Collector,
) -> Option<u64> {
    let value = value?;
    if range.contains(value.get_ref()) {
        return Some(value.into_inner());
    }
    problems.push(
        &Place::at(key, value.span()),
        format!(
            "{} is out of range; write {} to {}",
            value.get_ref(),
            range.start(),
            range.end()
        ),
    );
    None
}

fn ranged_size(
    key: &str,
    value: Option<Spanned<ByteSize>>,
    range: &std::ops::RangeInclusive<u64>,
    multiple_of: u64,
    problems: &mut Collector,
) -> Option<u64> {
    let value = value?;
    let place = Place::at(key, value.span());
    let bytes = value.into_inner().0;
    if !range.contains(&bytes) {
        problems.push(
            &place,
            format!(
                "{} is out of range; write {} to {}",
                ByteSize(bytes),
                ByteSize(*range.start()),
                ByteSize(*range.end())
            ),
        );
        return None;
    }
    if bytes % multiple_of != 0 {
        problems.push(
            &place,
            format!("{bytes} is not a multiple of {multiple_of} bytes"),
        );
        return None;
    }
    Some(bytes)
}
