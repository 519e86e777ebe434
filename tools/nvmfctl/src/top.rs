//! `nvmfctl top`: rates of block devices, from two looks at their counters.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::thread::sleep;
use std::time::Duration;

use nvmf_rpc::BlockingClient;
use serde_json::{Value, json};

use crate::cli::Top;
use crate::error::Error;
use crate::lists::cell;
use crate::size;
use crate::table::Table;

/// Puts the cursor at the top and clears what is below.
const HOME: &str = "\x1b[H\x1b[J";

/// Counters at one instant.
struct Look {
    seconds: f64,
    tick_rate: f64,
    bdevs: BTreeMap<String, Value>,
}

/// What a block device did in between.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rates {
    reads: f64,
    read_bytes: f64,
    read_latency_us: f64,
    writes: f64,
    written_bytes: f64,
    write_latency_us: f64,
    errors: u64,
}

/// Shows rates until it is interrupted, or once.
pub fn run(client: &BlockingClient, options: &Top, json: bool) -> Result<(), Error> {
    let mut before = look(client, &options.names)?;
    let mut output = std::io::stdout();
    let clear = !options.once && output.is_terminal();
    loop {
        sleep(options.interval.max(Duration::from_millis(10)));
        let after = look(client, &options.names)?;
        let rates = between(&before, &after);
        let text = match json {
            true => to_json(&rates, after.seconds - before.seconds).to_string(),
            false => to_table(&rates).to_string(),
        };
        let home = if clear && !json { HOME } else { "" };
        writeln!(output, "{home}{}", text.trim_end())?;
        output.flush()?;
        if options.once {
            return Ok(());
        }
        before = after;
    }
}

fn look(client: &BlockingClient, names: &[String]) -> Result<Look, Error> {
    let params = match names {
        [] => Value::Null,
        names => json!({ "names": names }),
    };
    Ok(read(&client.call("bdev_get_iostat", params)?))
}

fn read(result: &Value) -> Look {
    let tick_rate = result["tick_rate"].as_f64().unwrap_or(1.0).max(1.0);
    let bdevs = result["bdevs"].as_array().into_iter().flatten();
    Look {
        seconds: result["ticks"].as_f64().unwrap_or(0.0) / tick_rate,
        tick_rate,
        bdevs: bdevs
            .map(|bdev| (cell(&bdev["name"]), bdev.clone()))
            .collect(),
    }
}

/// Only of what was there both times; a target that was started again in between counts from zero.
fn between(before: &Look, after: &Look) -> Vec<(String, Rates)> {
    let seconds = (after.seconds - before.seconds).max(1e-6);
    let mut all = Vec::new();
    for (name, now) in &after.bdevs {
        let Some(then) = before.bdevs.get(name) else {
            continue;
        };
        let grown = |key: &str| {
            let count = |value: &Value| value[key].as_u64().unwrap_or(0);
            count(now).saturating_sub(count(then)) as f64
        };
        let latency = |ticks: &str, ops: &str| match grown(ops) {
            0.0 => 0.0,
            ops => grown(ticks) / ops / after.tick_rate * 1e6,
        };
        let errors = |value: &Value| value["io_error"]["count"].as_u64().unwrap_or(0);
        let rates = Rates {
            reads: grown("num_read_ops") / seconds,
            read_bytes: grown("bytes_read") / seconds,
            read_latency_us: latency("read_latency_ticks", "num_read_ops"),
            writes: grown("num_write_ops") / seconds,
            written_bytes: grown("bytes_written") / seconds,
            write_latency_us: latency("write_latency_ticks", "num_write_ops"),
            errors: errors(now).saturating_sub(errors(then)),
        };
        all.push((name.clone(), rates));
    }
    // The busiest first.
    let load = |rates: &Rates| rates.reads + rates.writes;
    all.sort_by(|a, b| load(&b.1).total_cmp(&load(&a.1)).then(a.0.cmp(&b.0)));
    all
}

fn to_table(rates: &[(String, Rates)]) -> Table {
    let mut table = Table::new(&[
        "BDEV",
        "READ/S",
        "READ B/S",
        "READ US",
        "WRITE/S",
        "WRITE B/S",
        "WRITE US",
        "ERRORS",
    ]);
    for (name, rates) in rates {
        table.row([
            name.clone(),
            format!("{:.0}", rates.reads),
            size::show(rates.read_bytes as u64),
            format!("{:.0}", rates.read_latency_us),
            format!("{:.0}", rates.writes),
            size::show(rates.written_bytes as u64),
            format!("{:.0}", rates.write_latency_us),
            rates.errors.to_string(),
        ]);
    }
    table
}

fn to_json(rates: &[(String, Rates)], seconds: f64) -> Value {
    let bdevs = rates.iter().map(|(name, rates)| {
        json!({
            "name": name,
            "reads_per_s": rates.reads, "read_bytes_per_s": rates.read_bytes,
            "read_latency_us": rates.read_latency_us,
            "writes_per_s": rates.writes, "written_bytes_per_s": rates.written_bytes,
            "write_latency_us": rates.write_latency_us, "errors": rates.errors,
        })
    });
    json!({ "seconds": seconds, "bdevs": bdevs.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_what_happened_in_between() {
        let at = |ticks: u64, reads: u64| {
            read(&json!({ "tick_rate": 1000, "ticks": ticks, "bdevs": [
                { "name": "a", "num_read_ops": reads, "bytes_read": reads * 4096,
                  "read_latency_ticks": reads * 5, "io_error": { "count": reads / 100 } },
                { "name": format!("only{ticks}") },
            ]}))
        };
        let rates = between(&at(1000, 100), &at(3000, 300));
        assert_eq!(rates.len(), 1, "the others were not there both times");
        let a = rates[0].1;
        assert_eq!((a.reads, a.read_bytes), (100.0, 409_600.0));
        assert_eq!((a.read_latency_us, a.errors), (5000.0, 2));
        let restarted = between(&at(3000, 300), &at(100, 1));
        assert_eq!(restarted[0].1.reads, 0.0);
    }
}
