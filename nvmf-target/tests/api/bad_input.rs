//! Every method with parameters that it must refuse, each by its code, and nothing is left behind.

use nvmf_rpc::error::code;
use serde_json::{Value, json};

use super::client;
use crate::process::NQN;

#[test]
fn every_method_refuses_what_it_does_not_know() {
    let target = client::empty();
    let methods = target.call("rpc_get_methods", Value::Null);
    let methods = methods.as_array().unwrap();
    assert!(methods.len() > 30, "{methods:?}");
    for method in methods {
        let method = method.as_str().unwrap();
        for params in [
            json!({"no_such_parameter": 1}),
            json!({"nqn": 5, "name": []}),
        ] {
            let error = target.refusal(method, params);
            assert_eq!(error.code, code::INVALID_PARAMS, "{method}: {error}");
            assert!(error.message.contains(method), "{method}: {error}");
        }
    }
}

#[test]
fn bad_values_are_refused_and_leave_nothing() {
    let target = client::empty();
    target.call(
        "nvmf_create_subsystem",
        json!({"nqn": NQN, "max_namespaces": 2}),
    );
    target.call(
        "bdev_null_create",
        json!({"name": "n", "num_blocks": 2048, "block_size": 512}),
    );
    let uuid = "c8c3a6a6-7b6a-4f8c-9d5c-2d5a3a7c0b1e";
    target.call(
        "bdev_null_create",
        json!({"name": "m", "num_blocks": 8, "block_size": 512, "uuid": uuid}),
    );
    let before = everything(&target);
    let address =
        |traddr: &str, port: &str| json!({"trtype": "TCP", "traddr": traddr, "trsvcid": port});
    let ns = |namespace: Value| json!({"nqn": NQN, "namespace": namespace});
    let subsystem = |more: Value| {
        let mut params = json!({"nqn": "nqn.2025-01.org.example:new"});
        params
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        params
    };
    for (method, params, expected) in [
        ("nvmf_create_subsystem", json!({"nqn": NQN}), code::EXISTS),
        (
            "nvmf_create_subsystem",
            json!({"nqn": "disk"}),
            code::INVALID,
        ),
        (
            "nvmf_create_subsystem",
            json!({"nqn": "nqn.2014-08.org.nvmexpress.discovery"}),
            code::INVALID,
        ),
        ("nvmf_create_subsystem", json!({}), code::INVALID_PARAMS),
        (
            "nvmf_create_subsystem",
            subsystem(json!({"max_namespaces": 100_000})),
            code::INVALID,
        ),
        (
            "nvmf_create_subsystem",
            subsystem(json!({"serial_number": "x".repeat(21)})),
            code::INVALID,
        ),
        (
            "nvmf_create_subsystem",
            subsystem(json!({"model_number": "ä"})),
            code::INVALID,
        ),
        (
            "nvmf_create_subsystem",
            subsystem(json!({"ana_reporting": true})),
            code::NOT_SUPPORTED,
        ),
        (
            "nvmf_create_subsystem",
            subsystem(json!({"min_cntlid": 5})),
            code::NOT_SUPPORTED,
        ),
        (
            "nvmf_create_subsystem",
            subsystem(json!({"tgt_name": "other"})),
            code::INTERNAL_ERROR,
        ),
        (
            "nvmf_delete_subsystem",
            json!({"nqn": "nqn.2025-01.org.example:no"}),
            code::NOT_FOUND,
        ),
        (
            "nvmf_delete_subsystem",
            json!({"nqn": "nqn.2014-08.org.nvmexpress.discovery"}),
            code::NOT_PERMITTED,
        ),
        (
            "nvmf_subsystem_add_ns",
            ns(json!({"bdev_name": "no"})),
            code::NO_DEVICE,
        ),
        (
            "nvmf_subsystem_add_ns",
            ns(json!({"bdev_name": "n", "nsid": 3})),
            code::INVALID,
        ),
        (
            "nvmf_subsystem_add_ns",
            ns(json!({"bdev_name": "n", "nguid": "12"})),
            code::INVALID,
        ),
        (
            "nvmf_subsystem_add_ns",
            ns(json!({"bdev_name": "n", "eui64": "0".repeat(16)})),
            code::INVALID,
        ),
        (
            "nvmf_subsystem_add_ns",
            ns(json!({"bdev_name": "n", "uuid": uuid})),
            code::EXISTS,
        ),
        (
            "nvmf_subsystem_add_ns",
            ns(json!({"bdev_name": "n", "ptpl_file": "/x"})),
            code::NOT_SUPPORTED,
        ),
        (
            "nvmf_subsystem_remove_ns",
            json!({"nqn": NQN, "nsid": 1}),
            code::NOT_FOUND,
        ),
        (
            "nvmf_subsystem_add_host",
            json!({"nqn": NQN, "host": "me"}),
            code::INVALID,
        ),
        (
            "nvmf_subsystem_add_host",
            json!({"nqn": NQN, "host": "nqn.h", "dhchap_key": "k"}),
            code::NOT_SUPPORTED,
        ),
        (
            "nvmf_subsystem_add_listener",
            json!({"nqn": NQN, "listen_address": address("192.0.2.1", "4420")}),
            code::ADDRESS_NOT_AVAILABLE,
        ),
        (
            "nvmf_subsystem_add_listener",
            json!({"nqn": NQN, "listen_address": address("127.0.0.1", "x")}),
            code::INVALID,
        ),
        (
            "nvmf_subsystem_add_listener",
            json!({"nqn": NQN, "listen_address": address("127.0.0.1", "1"), "secure_channel": true}),
            code::NOT_SUPPORTED,
        ),
        (
            "nvmf_create_transport",
            json!({"trtype": "FC"}),
            code::INVALID,
        ),
        (
            "nvmf_create_transport",
            json!({"trtype": "RDMA", "in_capsule_data_size": 8192}),
            code::INVALID,
        ),
        (
            "nvmf_create_transport",
            json!({"trtype": "TCP", "max_queue_depth": 1}),
            code::INVALID,
        ),
        (
            "nvmf_create_transport",
            json!({"trtype": "TCP", "max_io_size": 100_000}),
            code::INVALID,
        ),
        (
            "nvmf_get_transports",
            json!({"trtype": "FC"}),
            code::NO_DEVICE,
        ),
        (
            "bdev_malloc_create",
            json!({"num_blocks": 1, "block_size": 1000}),
            code::INVALID,
        ),
        (
            "bdev_malloc_create",
            json!({"num_blocks": 0, "block_size": 512}),
            code::INVALID,
        ),
        (
            "bdev_malloc_create",
            json!({"num_blocks": u64::MAX, "block_size": 512}),
            code::INVALID,
        ),
        (
            "bdev_malloc_create",
            json!({"num_blocks": 8, "block_size": 512, "md_size": 8}),
            code::NOT_SUPPORTED,
        ),
        (
            "bdev_null_create",
            json!({"num_blocks": 8, "block_size": 512}),
            code::INVALID_PARAMS,
        ),
        (
            "bdev_null_create",
            json!({"name": "n", "num_blocks": 8, "block_size": 512}),
            code::EXISTS,
        ),
        (
            "bdev_null_create",
            json!({"name": "nqn.x:1", "num_blocks": 8, "block_size": 512}),
            code::INVALID,
        ),
        (
            "bdev_null_create",
            json!({"name": "o", "num_blocks": 8, "block_size": 512, "uuid": uuid}),
            code::EXISTS,
        ),
        (
            "bdev_null_resize",
            json!({"name": "no", "new_size": 5}),
            code::NO_DEVICE,
        ),
        (
            "bdev_null_resize",
            json!({"name": "n", "new_size": 0}),
            code::INVALID,
        ),
        (
            "bdev_null_resize",
            json!({"name": "n", "new_size": u64::MAX}),
            code::INVALID,
        ),
        ("bdev_null_delete", json!({"name": "no"}), code::NO_DEVICE),
        (
            "bdev_aio_create",
            json!({"name": "a", "filename": "disk"}),
            code::INVALID,
        ),
        (
            "bdev_aio_create",
            json!({"name": "a", "filename": "/nonexistent/x"}),
            code::NOT_FOUND,
        ),
        (
            "bdev_aio_create",
            json!({"name": "a", "filename": "/dev/null"}),
            code::INVALID,
        ),
        (
            "bdev_uring_create",
            json!({"name": "a", "filename": "/etc"}),
            -rustix::io::Errno::ISDIR.raw_os_error(),
        ),
        ("bdev_aio_rescan", json!({"name": "n"}), code::INVALID),
        ("bdev_get_bdevs", json!({"name": "no"}), code::NO_DEVICE),
        (
            "bdev_get_iostat",
            json!({"name": "n", "names": ["n"]}),
            code::INVALID,
        ),
        (
            "bdev_get_iostat",
            json!({"names": ["n", "no"]}),
            code::NO_DEVICE,
        ),
        (
            "nvmf_subsystem_get_qpairs",
            json!({"nqn": "nqn.2025-01.org.example:no"}),
            code::NOT_FOUND,
        ),
        (
            "nvmf_subsystem_get_listeners",
            json!({"nqn": "x".repeat(300)}),
            code::INVALID,
        ),
        (
            "framework_get_config",
            json!({"name": "vhost"}),
            code::INVALID_PARAMS,
        ),
    ] {
        let error = target.refusal(method, params.clone());
        assert_eq!(error.code, expected, "{method} {params}: {error}");
        assert!(error.message.len() > 10, "{method} {params}: {error}");
    }
    // What is to be done about a missing file holds here too, where no size can be given.
    let missing = json!({"name": "a", "filename": "/nonexistent"});
    let error = target.refusal("bdev_aio_create", missing);
    assert!(
        error.message.contains("truncate -s SIZE /nonexistent"),
        "{error}"
    );
    assert_eq!(everything(&target), before);
}

/// All that the API made.
pub fn everything(target: &crate::process::Target) -> Value {
    json!([
        target.call("framework_get_config", json!({"name": "bdev"})),
        target.call("framework_get_config", json!({"name": "nvmf"})),
        target.call("nvmf_get_subsystems", Value::Null),
    ])
}
