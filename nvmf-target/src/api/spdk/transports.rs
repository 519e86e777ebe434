//! The transports. TCP is always there, and RDMA where its libraries are: making one says what hosts may use from then on, as its options do in
//! SPDK.

use std::ops::RangeInclusive;
use std::rc::Rc;

use nvmf_io::verbs::available;
use nvmf_rpc::RpcError;
use nvmf_rpc::error::code;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{address, check_target, register, unsupported};
use crate::api::Methods;
use crate::api::manager::Manager;
use crate::api::state::TransportRecord;
use crate::config::{Carrier, limits};
use crate::control::discovery::Port;
use crate::control::target::Target;
use crate::rdma::MAX_IN_CAPSULE_BYTES;

pub(super) fn register(methods: &mut Methods, manager: &Rc<Manager>) {
    register!(methods, manager:
        "nvmf_create_transport" => create_transport,
        "nvmf_get_transports" => get_transports,
    );
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateTransport {
    trtype: String,
    tgt_name: Option<String>,
    max_queue_depth: Option<u64>,
    max_io_qpairs_per_ctrlr: Option<u64>,
    /// With the admin queue: the name that SPDK had before.
    max_qpairs_per_ctrlr: Option<u64>,
    in_capsule_data_size: Option<u64>,
    max_io_size: Option<u64>,
    c2h_success: Option<bool>,
    #[serde(default)]
    dif_insert_or_strip: bool,
    // What follows tunes SPDK's own buffers and threads.
    #[serde(rename = "io_unit_size")]
    _io_unit_size: Option<u64>,
    #[serde(rename = "max_aq_depth")]
    _max_aq_depth: Option<u64>,
    #[serde(rename = "num_shared_buffers")]
    _num_shared_buffers: Option<u64>,
    #[serde(rename = "buf_cache_size")]
    _buf_cache_size: Option<u64>,
    #[serde(rename = "abort_timeout_sec")]
    _abort_timeout_sec: Option<u64>,
    #[serde(rename = "zcopy")]
    _zcopy: Option<bool>,
    #[serde(rename = "acceptor_poll_rate")]
    _acceptor_poll_rate: Option<u64>,
    #[serde(rename = "acceptor_backlog")]
    _acceptor_backlog: Option<u64>,
    #[serde(rename = "ack_timeout")]
    _ack_timeout: Option<u64>,
    #[serde(rename = "data_wr_pool_size")]
    _data_wr_pool_size: Option<u64>,
    #[serde(rename = "sock_priority")]
    _sock_priority: Option<u64>,
    #[serde(rename = "control_msg_num")]
    _control_msg_num: Option<u64>,
    #[serde(rename = "max_srq_depth")]
    _max_srq_depth: Option<u64>,
    #[serde(rename = "no_srq")]
    _no_srq: Option<bool>,
    #[serde(rename = "no_wr_batching")]
    _no_wr_batching: Option<bool>,
    #[serde(rename = "disable_command_passthru")]
    _disable_command_passthru: Option<bool>,
    #[serde(rename = "kas")]
    _kas: Option<u64>,
    #[serde(rename = "min_kato")]
    _min_kato: Option<u64>,
}

async fn create_transport(manager: Rc<Manager>, params: CreateTransport) -> Result<bool, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let carrier = address::carrier(&params.trtype)?;
    let in_capsule_limit = match carrier {
        Carrier::Tcp => limits::IN_CAPSULE_BYTES,
        // More than its receives have room for would be cut to it.
        Carrier::Rdma => *limits::IN_CAPSULE_BYTES.start()..=u64::from(MAX_IN_CAPSULE_BYTES),
    };
    unsupported(params.dif_insert_or_strip, "dif_insert_or_strip")?;
    let queues = params
        .max_io_qpairs_per_ctrlr
        .or(params.max_qpairs_per_ctrlr.map(|all| all.saturating_sub(1)));
    let record = TransportRecord {
        queue_depth: ranged(
            "max_queue_depth",
            params.max_queue_depth,
            &limits::QUEUE_DEPTH,
        )?
        .map(|depth| depth as u16),
        io_queues: ranged("max_io_qpairs_per_ctrlr", queues, &limits::IO_QUEUES)?
            .map(|queues| queues as u16),
        in_capsule_bytes: ranged(
            "in_capsule_data_size",
            params.in_capsule_data_size,
            &in_capsule_limit,
        )?
        .map(|bytes| bytes as u32),
        max_transfer_bytes: ranged(
            "max_io_size",
            params.max_io_size,
            &limits::MAX_TRANSFER_BYTES,
        )?
        .map(|bytes| bytes as u32),
        success_flag: params.c2h_success,
    };
    if record.in_capsule_bytes.is_some_and(|bytes| bytes % 16 != 0) {
        return Err(RpcError::invalid(
            "in_capsule_data_size is no multiple of 16, which is what hosts are told in",
        ));
    }
    if record
        .max_transfer_bytes
        .is_some_and(|bytes| !bytes.is_power_of_two())
    {
        return Err(RpcError::invalid(
            "max_io_size is no power of two, which is all that MDTS can express",
        ));
    }
    if carrier == Carrier::Rdma {
        available().map_err(|error| RpcError::not_supported(error.to_string()))?;
    }
    let change = manager.begin().await;
    let mut after = manager.state().clone();
    let kept = after.transport_mut(carrier);
    if kept.is_some() {
        // The code and the words are SPDK's: scripts look for them.
        let message = format!(
            "Transport type '{}' already exists",
            address::trtype(carrier)
        );
        return Err(RpcError::internal(message));
    }
    *kept = Some(record.clone());
    let put = async {
        let transports = &manager.target.transports;
        transports.borrow_mut().insert(carrier, record);
        Ok(true)
    };
    manager.commit(&change, after, put).await
}

fn ranged(
    key: &str,
    value: Option<u64>,
    range: &RangeInclusive<u64>,
) -> Result<Option<u64>, RpcError> {
    match value {
        Some(value) if !range.contains(&value) => Err(RpcError::invalid(format!(
            "{key} is {value}; write {} to {}",
            range.start(),
            range.end()
        ))),
        value => Ok(value),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GetTransports {
    trtype: Option<String>,
    tgt_name: Option<String>,
}

async fn get_transports(manager: Rc<Manager>, params: GetTransports) -> Result<Value, RpcError> {
    check_target(params.tgt_name.as_deref())?;
    let target = &manager.target;
    let mut there = vec![Carrier::Tcp];
    let rdma_made = target.transports.borrow().contains_key(&Carrier::Rdma);
    let listens = |port: &Port| port.carrier == Carrier::Rdma;
    if rdma_made || target.listeners.ports().iter().any(listens) {
        there.push(Carrier::Rdma);
    }
    if let Some(trtype) = params.trtype {
        there.retain(|carrier| address::trtype(*carrier).eq_ignore_ascii_case(&trtype));
        if there.is_empty() {
            let message =
                format!("there is no transport {trtype:?}; nvmf_get_transports lists all");
            return Err(RpcError::new(code::NO_DEVICE, message));
        }
    }
    Ok(there
        .into_iter()
        .map(|carrier| describe(target, carrier))
        .collect())
}

fn describe(target: &Target, carrier: Carrier) -> Value {
    let limits = target.announced(carrier);
    let config = target.config.borrow();
    let mut transport = json!({
        "trtype": address::trtype(carrier),
        "max_queue_depth": limits.controller.max_queue_entries,
        "max_io_qpairs_per_ctrlr": limits.controller.max_io_queues,
        "in_capsule_data_size": limits.controller.in_capsule_bytes,
        "max_io_size": limits.controller.max_transfer_bytes,
        "max_aq_depth": 32,
        "num_shared_buffers": config.limits.buffer_bytes / u64::from(limits.r2t_window_bytes),
        "buf_cache_size": 0,
        "dif_insert_or_strip": false,
        "zcopy": false,
        "abort_timeout_sec": 1,
    });
    let own = match carrier {
        Carrier::Tcp => json!({
            "io_unit_size": limits.r2t_window_bytes,
            "c2h_success": limits.success_flag,
            "sock_priority": 0,
        }),
        // Every queue has receives of its own, and data move in one piece.
        Carrier::Rdma => json!({
            "io_unit_size": limits.controller.max_transfer_bytes,
            "no_srq": true,
        }),
    };
    if let (Value::Object(transport), Value::Object(own)) = (&mut transport, own) {
        transport.extend(own);
    }
    transport
}
