//! Our declarations of the RDMA libraries' structures against their headers: a C compiler says how large each is and where its fields lie.
//!
//! Needs a C compiler and the headers (Debian: gcc, libibverbs-dev, librdmacm-dev; `tools/setup/apt.sh` installs them). Where they are
//! missing the test fails and says so: it is the only thing that stands between a wrong number and corrupted memory.
#![cfg(not(miri))]

use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::process::Command;

use nvmf_io::verbs::abi::*;

/// A line for each fact: what C calls it, and what we make of it.
struct Facts(Vec<(String, usize)>);

impl Facts {
    fn size(&mut self, c: &str, ours: usize) {
        self.0.push((format!("sizeof({c})"), ours));
    }

    fn offset(&mut self, c: &str, field: &str, ours: usize) {
        self.0.push((format!("offsetof({c}, {field})"), ours));
    }

    fn value(&mut self, c: &str, ours: usize) {
        self.0.push((format!("(size_t)({c})"), ours));
    }
}

/// Offsets of fields that have the same name on both sides, or `ours = "theirs"`.
macro_rules! offsets {
    ($facts:expr, $ours:ty, $c:literal: $($field:ident $(= $theirs:literal)?),* $(,)?) => {$(
        #[allow(unused_variables)]
        let name = stringify!($field);
        $(let name = $theirs;)?
        $facts.offset($c, name, offset_of!($ours, $field));
    )*};
}

macro_rules! values {
    ($facts:expr, $($name:ident),* $(,)?) => {$(
        $facts.value(stringify!($name), $name as usize);
    )*};
}

fn facts() -> Facts {
    let mut f = Facts(Vec::new());

    // Those that we allocate: whole.
    f.size("struct ibv_device_attr", size_of::<IbvDeviceAttr>());
    f.size("struct ibv_qp_cap", size_of::<IbvQpCap>());
    f.size("struct ibv_qp_init_attr", size_of::<IbvQpInitAttr>());
    f.size("struct ibv_sge", size_of::<IbvSge>());
    f.size("struct ibv_recv_wr", size_of::<IbvRecvWr>());
    f.size("struct ibv_send_wr", size_of::<IbvSendWr>());
    f.size("struct ibv_mw_bind_info", size_of::<IbvMwBindInfo>());
    f.size("struct ibv_wc", size_of::<IbvWc>());
    f.size("struct rdma_conn_param", size_of::<RdmaConnParam>());
    // Those that the libraries allocate, and that we declare whole all the same.
    f.size("struct ibv_context_ops", size_of::<IbvContextOps>());
    f.size("struct ibv_pd", size_of::<IbvPd>());
    f.size("struct ibv_mr", size_of::<IbvMr>());
    f.size("struct ibv_mw", size_of::<IbvMw>());
    f.size("struct ibv_comp_channel", size_of::<IbvCompChannel>());
    f.size("struct rdma_event_channel", size_of::<RdmaEventChannel>());
    f.size("struct rdma_addr", size_of::<RdmaAddr>());
    f.size("struct rdma_route", size_of::<RdmaRoute>());

    offsets!(f, IbvContext, "struct ibv_context": device, ops, cmd_fd, async_fd, num_comp_vectors);
    offsets!(f, IbvContextOps, "struct ibv_context_ops":
        alloc_mw, bind_mw, dealloc_mw, poll_cq, req_notify_cq, post_srq_recv, post_send, post_recv);
    offsets!(f, IbvDeviceAttr, "struct ibv_device_attr":
        fw_ver, node_guid, sys_image_guid, max_mr_size, page_size_cap, vendor_id, vendor_part_id, hw_ver, max_qp, max_qp_wr,
        device_cap_flags, max_sge, max_sge_rd, max_cq, max_cqe, max_mr, max_pd, max_qp_rd_atom, max_ee_rd_atom, max_res_rd_atom,
        max_qp_init_rd_atom, max_ee_init_rd_atom, atomic_cap, max_ee, max_rdd, max_mw, max_raw_ipv6_qp, max_raw_ethy_qp,
        max_mcast_grp, max_mcast_qp_attach, max_total_mcast_qp_attach, max_ah, max_fmr, max_map_per_fmr, max_srq, max_srq_wr,
        max_srq_sge, max_pkeys, local_ca_ack_delay, phys_port_cnt);
    offsets!(f, IbvPd, "struct ibv_pd": context, handle);
    offsets!(f, IbvMr, "struct ibv_mr": context, pd, addr, length, handle, lkey, rkey);
    offsets!(f, IbvMw, "struct ibv_mw": context, pd, rkey, handle, kind = "type");
    offsets!(f, IbvCompChannel, "struct ibv_comp_channel": context, fd, refcnt);
    offsets!(f, IbvCq, "struct ibv_cq": context, channel, cq_context, handle, cqe);
    offsets!(f, IbvQp, "struct ibv_qp":
        context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num, state, qp_type);
    offsets!(f, IbvQpCap, "struct ibv_qp_cap":
        max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data);
    offsets!(f, IbvQpInitAttr, "struct ibv_qp_init_attr":
        qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all);
    offsets!(f, IbvSge, "struct ibv_sge": addr, length, lkey);
    offsets!(f, IbvRecvWr, "struct ibv_recv_wr": wr_id, next, sg_list, num_sge);
    offsets!(f, IbvSendWr, "struct ibv_send_wr":
        wr_id, next, sg_list, num_sge, opcode, send_flags, invalidate_rkey, remote_addr = "wr.rdma.remote_addr",
        rkey = "wr.rdma.rkey", _qp_type = "qp_type", bind_mw);
    offsets!(f, IbvMwBindInfo, "struct ibv_mw_bind_info": mr, addr, length, mw_access_flags);
    let bind = offset_of!(IbvSendWr, bind_mw);
    f.offset(
        "struct ibv_send_wr",
        "bind_mw.mw",
        bind + offset_of!(IbvSendBindMw, mw),
    );
    f.offset(
        "struct ibv_send_wr",
        "bind_mw.rkey",
        bind + offset_of!(IbvSendBindMw, rkey),
    );
    f.offset(
        "struct ibv_send_wr",
        "bind_mw.bind_info",
        bind + offset_of!(IbvSendBindMw, bind_info),
    );
    offsets!(f, IbvWc, "struct ibv_wc":
        wr_id, status, opcode, vendor_err, byte_len, invalidated_rkey, qp_num, src_qp, wc_flags, pkey_index, slid, sl,
        dlid_path_bits);
    offsets!(f, RdmaEventChannel, "struct rdma_event_channel": fd);
    offsets!(f, RdmaAddr, "struct rdma_addr": src = "src_storage", dst = "dst_storage");
    offsets!(f, RdmaRoute, "struct rdma_route": addr, path_rec, num_paths);
    offsets!(f, RdmaCmId, "struct rdma_cm_id": verbs, channel, context, qp, route, ps, port_num);
    offsets!(f, RdmaConnParam, "struct rdma_conn_param":
        private_data, private_data_len, responder_resources, initiator_depth, flow_control, retry_count, rnr_retry_count, srq,
        qp_num);
    offsets!(f, RdmaCmEvent, "struct rdma_cm_event": id, listen_id, event, status, conn = "param.conn");

    values!(
        f,
        RDMA_PS_TCP,
        RDMA_OPTION_ID,
        RDMA_OPTION_ID_TOS,
        RDMA_OPTION_ID_REUSEADDR,
        RDMA_OPTION_ID_AFONLY,
        IBV_QPT_RC,
        IBV_MW_TYPE_2,
        IBV_ACCESS_LOCAL_WRITE,
        IBV_ACCESS_REMOTE_WRITE,
        IBV_ACCESS_REMOTE_READ,
        IBV_ACCESS_MW_BIND,
        IBV_WR_RDMA_WRITE,
        IBV_WR_SEND,
        IBV_WR_RDMA_READ,
        IBV_WR_LOCAL_INV,
        IBV_WR_BIND_MW,
        IBV_WR_SEND_WITH_INV,
        IBV_SEND_FENCE,
        IBV_SEND_SIGNALED,
        IBV_SEND_INLINE,
        IBV_WC_SUCCESS,
        IBV_WC_WR_FLUSH_ERR,
        IBV_WC_WITH_INV,
        IBV_DEVICE_MEM_WINDOW,
        IBV_DEVICE_MEM_MGT_EXTENSIONS,
        IBV_DEVICE_MEM_WINDOW_TYPE_2A,
        IBV_DEVICE_MEM_WINDOW_TYPE_2B,
        RDMA_CM_EVENT_ADDR_RESOLVED,
        RDMA_CM_EVENT_ADDR_ERROR,
        RDMA_CM_EVENT_ROUTE_RESOLVED,
        RDMA_CM_EVENT_ROUTE_ERROR,
        RDMA_CM_EVENT_CONNECT_REQUEST,
        RDMA_CM_EVENT_CONNECT_RESPONSE,
        RDMA_CM_EVENT_CONNECT_ERROR,
        RDMA_CM_EVENT_UNREACHABLE,
        RDMA_CM_EVENT_REJECTED,
        RDMA_CM_EVENT_ESTABLISHED,
        RDMA_CM_EVENT_DISCONNECTED,
        RDMA_CM_EVENT_DEVICE_REMOVAL,
        RDMA_CM_EVENT_ADDR_CHANGE,
        RDMA_CM_EVENT_TIMEWAIT_EXIT
    );
    f
}

#[test]
fn structures_and_constants_are_those_of_the_headers() {
    let facts = facts().0;
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("abi.c"), folder.path().join("abi"));
    let mut c = String::from(
        "#include <stddef.h>\n#include <stdio.h>\n#include <infiniband/verbs.h>\n#include <rdma/rdma_cma.h>\nint main(void) {\n",
    );
    for (expression, _) in &facts {
        writeln!(c, "  printf(\"%zu\\n\", {expression});").unwrap();
    }
    c.push_str("}\n");
    std::fs::write(&source, c).unwrap();
    let built = Command::new("cc")
        .arg("-o")
        .args([&program, &source])
        .output()
        .expect("a C compiler named cc (Debian: apt install gcc)");
    assert!(
        built.status.success(),
        "the RDMA headers do not compile (Debian: apt install libibverbs-dev librdmacm-dev):\n{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let output = Command::new(&program).output().unwrap();
    let theirs: Vec<usize> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(theirs.len(), facts.len());
    let wrong: Vec<String> = facts
        .iter()
        .zip(&theirs)
        .filter(|((_, ours), theirs)| ours != *theirs)
        .map(|((expression, ours), theirs)| format!("{expression} is {theirs}, ours is {ours}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
