//! The transport. TCP is always there: making it says what hosts may use from then on, as its options do in SPDK.

use std::ops::RangeInclusive;
use std::rc::Rc;

use nvmf_rpc::RpcError;
use nvmf_rpc::error::code;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{check_target, register, unsupported};
use crate::api::Methods;
use crate::api::manager::Manager;
use crate::api::state::TransportRecord;
use crate::config::limits;

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
    if !params.trtype.eq_ignore_ascii_case("TCP") {
        return Err(RpcError::not_supported(format!(
            "trtype {:?}: the API makes TCP; declare others in the configuration",
            params.trtype
        )));
    }
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
            &limits::IN_CAPSULE_BYTES,
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
    let change = manager.begin().await;
    let mut after = manager.state().clone();
    if after.transport.is_some() {
        // The code and the words are SPDK's: scripts look for them.
        return Err(RpcError::internal("Transport type 'TCP' already exists"));
    }
    after.transport = Some(record.clone());
    let put = async {
        manager.target.transport.replace(record);
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
    if let Some(trtype) = params.trtype
        && !trtype.eq_ignore_ascii_case("TCP")
    {
        let message = format!("there is no transport {trtype:?}; nvmf_get_transports lists all");
        return Err(RpcError::new(code::NO_DEVICE, message));
    }
    let target = &manager.target;
    let limits = target.announced();
    let config = target.config.borrow();
    Ok(json!([{
        "trtype": "TCP",
        "max_queue_depth": limits.controller.max_queue_entries,
        "max_io_qpairs_per_ctrlr": limits.controller.max_io_queues,
        "in_capsule_data_size": limits.controller.in_capsule_bytes,
        "max_io_size": limits.controller.max_transfer_bytes,
        "io_unit_size": limits.r2t_window_bytes,
        "max_aq_depth": 32,
        "num_shared_buffers": config.limits.buffer_bytes / u64::from(limits.r2t_window_bytes),
        "buf_cache_size": 0,
        "dif_insert_or_strip": false,
        "zcopy": false,
        "c2h_success": limits.success_flag,
        "sock_priority": 0,
        "abort_timeout_sec": 1,
    }]))
}
