//! Where log lines go and how they look.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// A text that is no filter.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is no log filter; write error, warn, info, debug or trace, or TARGET=LEVEL with commas between, such as info,nvmf_target::control=debug"
)]
pub struct FilterError(String);

/// Prints a line. That nobody reads it is no reason to end.
pub fn print_line(mut to: impl Write, line: &str) {
    let _ = writeln!(to, "{line}");
}

/// A level or a list of `TARGET=LEVEL`. A lone word that is no level would be taken for a target, and log nothing.
fn parse(filter: &str) -> Result<EnvFilter, FilterError> {
    let wrong = || FilterError(filter.to_owned());
    let understood = |part: &str| {
        let part = part.trim();
        part.contains('=') || (!part.is_empty() && part.parse::<LevelFilter>().is_ok())
    };
    if !filter.split(',').all(understood) {
        return Err(wrong());
    }
    EnvFilter::builder().parse(filter).map_err(|_| wrong())
}

/// Sends log lines to standard error, as text or as one JSON object a line. `filter` is a level or a list of
/// `TARGET=LEVEL`.
pub fn start(filter: &str, json: bool) -> Result<(), FilterError> {
    let filter = parse(filter)?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    if json {
        subscriber.json().flatten_event(true).init();
    } else {
        // Under systemd the journal has the time already, and colours would be escape sequences.
        let terminal = io::stderr().is_terminal();
        let subscriber = subscriber.with_ansi(terminal).with_target(false);
        if std::env::var_os("JOURNAL_STREAM").is_some() {
            subscriber.without_time().init();
        } else {
            subscriber.init();
        }
    }
    Ok(())
}

/// An error with its causes, but for those that it names itself.
pub fn with_causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("gone").context("a: gone").context("b");
        assert_eq!(with_causes(&error), "b: a: gone");
    }

    #[test]
    fn levels_and_targets_are_filters_and_other_words_are_not() {
        for good in [
            "info",
            "off",
            "warn,nvmf_target::shard=trace",
            "nvmf_io=debug",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["loud", "", "info,loud", "a=loud"] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(
                error.contains("is no log filter; write error, warn"),
                "{error}"
            );
        }
    }
}
