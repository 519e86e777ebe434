//! Requests in the bytes that SPDK's Python client sends: `json.dumps` with an indent of 2, several joined by a line end, no
//! line end after the last; answers read as it reads them, with a decoder that takes one value off a buffer.

use std::process::Command;

use serde_json::Value;

use super::client;
use crate::process::NQN;

/// Made for these tests; it sends what SPDK's `python/spdk/rpc/client.py` sends and reads as that does.
const SCRIPT: &str = r#"
import json, socket, sys

sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
sock.connect(sys.argv[1])
sock.settimeout(20)
last_id, left = 0, ""

def send(*calls):
    global last_id
    requests = []
    for method, params in calls:
        last_id += 1
        request = {"jsonrpc": "2.0", "method": method, "id": last_id}
        if params:
            request["params"] = params
        requests.append(request)
    sock.sendall("\n".join(json.dumps(r, indent=2) for r in requests).encode("utf-8"))
    return [r["id"] for r in requests]

def receive():
    global left
    while True:
        left = left.lstrip()
        try:
            value, end = json.JSONDecoder().raw_decode(left)
            left = left[end:]
            return value
        except ValueError:
            data = sock.recv(4096)
            if not data:
                raise SystemExit("closed with %r" % left)
            left += data.decode("utf-8")

def call(method, **params):
    (wanted,) = send((method, params))
    answer = receive()
    assert answer["id"] == wanted, answer
    return answer.get("result", answer.get("error"))

nqn, port = sys.argv[2], sys.argv[3]
results = {
    "transport": call("nvmf_create_transport", trtype="TCP", io_unit_size=16384, max_io_qpairs_per_ctrlr=8,
                      in_capsule_data_size=8192),
    "again": call("nvmf_create_transport", trtype="TCP"),
    "malloc": call("bdev_malloc_create", num_blocks=16384, block_size=4096, name="Malloc0"),
    "subsystem": call("nvmf_create_subsystem", nqn=nqn, serial_number="SPDK00000000000001",
                      allow_any_host=True, max_namespaces=32, ana_reporting=False, min_cntlid=1, max_cntlid=65519),
    "ns": call("nvmf_subsystem_add_ns", nqn=nqn, namespace={"bdev_name": "Malloc0"}),
    "listener": call("nvmf_subsystem_add_listener", nqn=nqn,
                     listen_address={"trtype": "TCP", "adrfam": "ipv4", "traddr": "127.0.0.1", "trsvcid": port}),
    "subsystems": call("nvmf_get_subsystems"),
    "bdevs": call("bdev_get_bdevs", name="Malloc0"),
    "missing": call("bdev_get_bdevs", name="no"),
}
ids = send(("spdk_get_version", {}), ("rpc_get_methods", {"current": True}), ("nvmf_get_stats", {}))
results["pipelined"] = [receive()["id"] for _ in ids] == ids
print(json.dumps(results))
"#;

#[test]
fn a_script_written_for_spdk_works() {
    let target = client::empty();
    let output = Command::new("python3")
        .args(["-c", SCRIPT])
        .arg(target.socket())
        .args([NQN, &target.address().port().to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    for done in ["transport", "subsystem", "listener", "pipelined"] {
        assert_eq!(results[done], true, "{done}: {results}");
    }
    assert_eq!(
        (&results["malloc"], &results["ns"]),
        (&"Malloc0".into(), &1.into())
    );
    assert_eq!(results["again"]["code"], -32603);
    assert_eq!(results["missing"]["code"], -19);
    let subsystems = results["subsystems"].as_array().unwrap();
    assert_eq!(subsystems[0]["subtype"], "Discovery");
    assert_eq!(subsystems[1]["serial_number"], "SPDK00000000000001");
    assert_eq!(subsystems[1]["namespaces"][0]["bdev_name"], "Malloc0");
    assert_eq!(results["bdevs"][0]["num_blocks"], 16384);
    assert_eq!(results["bdevs"][0]["product_name"], "Malloc disk");
}
