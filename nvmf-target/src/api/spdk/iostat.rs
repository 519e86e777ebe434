//! `bdev_get_iostat`: counters of block devices. A tick is a nanosecond.

use std::rc::Rc;

use nvmf_rpc::RpcError;
use serde::Deserialize;
use serde_json::{Value, json};

use super::bdev_list::{Listed, all, named};
use super::{register, unsupported};
use crate::api::Methods;
use crate::api::manager::Manager;
use crate::model::LatencySummary;

/// Ticks in a second.
pub(super) const TICK_RATE: u64 = 1_000_000_000;

pub(super) fn register(methods: &mut Methods, manager: &Rc<Manager>) {
    register!(methods, manager: "bdev_get_iostat" => get_iostat,);
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GetIostat {
    name: Option<String>,
    names: Option<Vec<String>>,
    #[serde(default)]
    per_channel: bool,
    reset_mode: Option<String>,
}

async fn get_iostat(manager: Rc<Manager>, params: GetIostat) -> Result<Value, RpcError> {
    unsupported(params.per_channel, "per_channel")?;
    let resets = params.reset_mode.is_some_and(|mode| mode != "none");
    unsupported(
        resets,
        "a reset_mode other than none (others may be counting too)",
    )?;
    let bdevs = match (params.name, params.names) {
        (Some(_), Some(_)) => {
            return Err(RpcError::invalid("name and names are both given; keep one"));
        }
        (Some(name), None) => named(&manager, &[name])?,
        (None, Some(names)) => named(&manager, &names)?,
        (None, None) => all(&manager),
    };
    Ok(json!({
        "tick_rate": TICK_RATE,
        "ticks": manager.target.started.elapsed().as_nanos() as u64,
        "bdevs": bdevs.iter().map(describe).collect::<Vec<_>>(),
    }))
}

/// Latencies come from a histogram whose buckets are an eighth of their value wide: sums are too high by so much at most. Unmaps are
/// counted among the commands that move no data, whose number has no place in SPDK's form.
fn describe(bdev: &Listed) -> Value {
    let totals = &bdev.totals;
    let read = Ticks::of(&totals.read_latency);
    let write = Ticks::of(&totals.write_latency);
    json!({
        "name": bdev.name,
        "bytes_read": totals.read_bytes,
        "num_read_ops": totals.reads,
        "bytes_written": totals.written_bytes,
        "num_write_ops": totals.writes,
        "bytes_unmapped": 0,
        "num_unmap_ops": 0,
        "bytes_copied": 0,
        "num_copy_ops": 0,
        "read_latency_ticks": read.sum,
        "max_read_latency_ticks": read.max,
        "min_read_latency_ticks": read.min,
        "write_latency_ticks": write.sum,
        "max_write_latency_ticks": write.max,
        "min_write_latency_ticks": write.min,
        "unmap_latency_ticks": 0,
        "max_unmap_latency_ticks": 0,
        "min_unmap_latency_ticks": 0,
        "copy_latency_ticks": 0,
        "max_copy_latency_ticks": 0,
        "min_copy_latency_ticks": 0,
        "io_error": { "count": totals.errors },
    })
}

struct Ticks {
    sum: u64,
    max: u64,
    min: u64,
}

impl Ticks {
    fn of(latency: &LatencySummary) -> Self {
        let buckets = || latency.buckets();
        Ticks {
            sum: buckets()
                .map(|(nanos, count)| nanos.saturating_mul(count))
                .fold(0, u64::saturating_add),
            max: buckets().last().map_or(0, |(nanos, _)| nanos),
            min: buckets().next().map_or(0, |(nanos, _)| nanos),
        }
    }
}
