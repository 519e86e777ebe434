//! `[limits]`, `[tcp]` and `[keep-alive]` of the file.

use nvmf_size::ByteSize;
use serde::Deserialize;
use toml::Spanned;

use super::{ranged, ranged_size};
use crate::config::limits::{self, KeepAliveBounds, Limits, TcpOptions};
use crate::config::problem::{Collector, Place};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawLimits {
    queue_depth: Option<Spanned<u64>>,
    io_queues: Option<Spanned<u64>>,
    in_capsule_size: Option<Spanned<ByteSize>>,
    max_transfer_size: Option<Spanned<ByteSize>>,
    r2t_window: Option<Spanned<ByteSize>>,
    connections: Option<Spanned<u64>>,
    buffers: Option<Spanned<ByteSize>>,
    handshake_ms: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawTcp {
    header_digest: Option<bool>,
    data_digest: Option<bool>,
    cpda: Option<Spanned<u64>>,
    success_flag: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawKeepAlive {
    min_ms: Option<Spanned<u64>>,
    max_ms: Option<Spanned<u64>>,
}

impl RawLimits {
    pub fn check(self, problems: &mut Collector) -> Limits {
        let d = Limits::default();
        let transfer_place = self
            .max_transfer_size
            .as_ref()
            .map(|size| Place::at("max-transfer-size", size.span()));
        let max_transfer_bytes = ranged_size(
            "max-transfer-size",
            self.max_transfer_size,
            &limits::MAX_TRANSFER_BYTES,
            1,
            problems,
        );
        if let (Some(bytes), Some(place)) = (max_transfer_bytes, transfer_place)
            && !bytes.is_power_of_two()
        {
            problems.push(
                &place,
                format!(
                    "{} is no power of two, which is all that MDTS can express; write {}",
                    ByteSize(bytes),
                    ByteSize(bytes.next_power_of_two() / 2)
                ),
            );
        }
        let or = |value: Option<u64>, default: u64| value.unwrap_or(default);
        let depth = ranged(
            "queue-depth",
            self.queue_depth,
            &limits::QUEUE_DEPTH,
            problems,
        );
        let queues = ranged("io-queues", self.io_queues, &limits::IO_QUEUES, problems);
        let in_capsule = ranged_size(
            "in-capsule-size",
            self.in_capsule_size,
            &limits::IN_CAPSULE_BYTES,
            16,
            problems,
        );
        let window = ranged_size(
            "r2t-window",
            self.r2t_window,
            &limits::R2T_WINDOW_BYTES,
            4096,
            problems,
        );
        let connections = ranged(
            "connections",
            self.connections,
            &limits::CONNECTIONS,
            problems,
        );
        let buffers = ranged_size("buffers", self.buffers, &limits::BUFFER_BYTES, 1, problems);
        let handshake = ranged(
            "handshake-ms",
            self.handshake_ms,
            &limits::HANDSHAKE_MS,
            problems,
        );
        Limits {
            queue_depth: or(depth, d.queue_depth.into()) as u16,
            io_queues: or(queues, d.io_queues.into()) as u16,
            in_capsule_bytes: or(in_capsule, d.in_capsule_bytes.into()) as u32,
            max_transfer_bytes: or(max_transfer_bytes, d.max_transfer_bytes.into()) as u32,
            r2t_window_bytes: or(window, d.r2t_window_bytes.into()) as u32,
            connections: or(connections, d.connections as u64) as usize,
            buffer_bytes: or(buffers, d.buffer_bytes),
            handshake_ms: or(handshake, d.handshake_ms.into()) as u32,
        }
    }
}

impl RawTcp {
    pub fn check(self, problems: &mut Collector) -> TcpOptions {
        let d = TcpOptions::default();
        TcpOptions {
            header_digest: self.header_digest.unwrap_or(d.header_digest),
            data_digest: self.data_digest.unwrap_or(d.data_digest),
            cpda: ranged("cpda", self.cpda, &limits::CPDA, problems).unwrap_or(0) as u8,
            success_flag: self.success_flag.unwrap_or(d.success_flag),
        }
    }
}

impl RawKeepAlive {
    pub fn check(self, problems: &mut Collector) -> KeepAliveBounds {
        let max_place = self
            .max_ms
            .as_ref()
            .map(|max| Place::at("max-ms", max.span()));
        let min = ranged("min-ms", self.min_ms, &limits::KEEP_ALIVE_MS, problems);
        let max = ranged("max-ms", self.max_ms, &limits::KEEP_ALIVE_MS, problems);
        if let (Some(min), Some(max), Some(place)) = (min, max, max_place)
            && max < min
        {
            problems.push(&place, format!("{max} is less than min-ms, which is {min}"));
        }
        KeepAliveBounds {
            min_ms: min.unwrap_or(0) as u32,
            max_ms: max.map(|max| max as u32),
        }
    }
}
