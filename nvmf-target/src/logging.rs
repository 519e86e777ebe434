//! Where log lines go and how they look.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// Sends log lines to standard error, as text or as one JSON object a line. `filter` is a level or a list of
/// `TARGET=LEVEL`.
pub fn start(filter: &str, json: bool) -> Result<(), ParseError> {
    let filter = EnvFilter::builder().parse(filter)?;
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
