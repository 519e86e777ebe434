//! Tests of the configuration file: what is read, and what is refused with which words.

use super::*;
use crate::backend::BackingSpec;
use crate::config::limits::{KeepAliveBounds, Limits, TcpOptions};
use crate::config::{ApiOptions, Chosen, NamespaceConfig};
use crate::model::HostAccess;
use nvme_proto::auth::{DhChapPolicy, DhGroup, HashId};
use std::os::unix::fs::PermissionsExt;
use uuid::Uuid;

fn parse_text(text: &str) -> Result<Config, Problems> {
    parse(Path::new("t.toml"), text)
}

/// All messages for `text`, each with file, line and key.
fn messages(text: &str) -> Vec<String> {
    match parse_text(text) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.0.iter().map(ToString::to_string).collect(),
    }
}

/// The messages for a file with one good subsystem and these lines after its name.
fn subsystem_messages(lines: &str) -> Vec<String> {
    messages(&format!(
        "[[subsystem]]\nnqn = \"nqn.2025-01.org.example:a\"\n{lines}"
    ))
}

/// The messages for a namespace of these lines; they start at line 4.
fn namespace_messages(lines: &str) -> Vec<String> {
    subsystem_messages(&format!("[[subsystem.namespace]]\n{lines}"))
}

const WHOLE: &str = r#"
listen = ["tcp://127.0.0.1:4420", "tcp://[::1]:8009"]
referrals = ["tcp://10.0.0.9:8009"]
cores = "0-1"
busy-poll = 50

[limits]
queue-depth = 256
io-queues = 16
in-capsule-size = "8K"
max-transfer-size = "512K"
r2t-window = 131072
connections = 100
buffers = "64M"
handshake-ms = 5000

[tcp]
header-digest = false
data-digest = true
cpda = 3
success-flag = false

[keep-alive]
min-ms = 1000
max-ms = 60000

[[subsystem]]
nqn = "nqn.2025-01.org.example:a"
serial = "S1"
model = "Example Disk"
allowed-hosts = ["nqn.2014-08.org.nvmexpress:uuid:1"]

[[subsystem.namespace]]
kind = "file"
path = "/srv/a.img"
size = "1G"
block-size = 4096
uuid = "c8c3a6a6-7b6a-4f8c-9d5c-2d5a3a7c0b1e"
nguid = "c8c3a6a67b6a4f8c9d5c2d5a3a7c0b1f"
eui64 = "00:11:22:33:44:55:66:77"

[[subsystem.namespace]]
nsid = 7
kind = "block"
path = "/dev/sdb"
read-only = true

[[subsystem.namespace]]
kind = "passthru"
path = "/dev/ng0n1"

[[subsystem]]
nqn = "nqn.2025-01.org.example:b"
allow-any-host = true

[[subsystem.namespace]]
kind = "memory"
size = "64M"

[[subsystem.namespace]]
kind = "null"
size = "1T"
"#;

#[test]
fn a_whole_file_is_read_key_by_key() {
    let config = parse_text(WHOLE).unwrap();
    assert_eq!(
        config.listeners,
        [
            "tcp://127.0.0.1:4420".parse().unwrap(),
            "tcp://[::1]:8009".parse().unwrap()
        ]
    );
    assert_eq!(
        config.referrals,
        ["tcp://10.0.0.9:8009".parse::<Address>().unwrap()]
    );
    assert_eq!(config.cores, Some("0,1".parse().unwrap()));
    assert_eq!(config.busy_poll_us, 50);
    assert_eq!(
        config.limits,
        Limits {
            queue_depth: 256,
            io_queues: 16,
            in_capsule_bytes: 8192,
            max_transfer_bytes: 512 << 10,
            r2t_window_bytes: 131072,
            connections: 100,
            buffer_bytes: 64 << 20,
            handshake_ms: 5000,
        }
    );
    assert_eq!(
        config.tcp,
        TcpOptions {
            header_digest: false,
            data_digest: true,
            cpda: 3,
            success_flag: false
        }
    );
    assert_eq!(
        config.keep_alive,
        KeepAliveBounds {
            min_ms: 1000,
            max_ms: Some(60000)
        }
    );
    let [a, b] = &config.subsystems[..] else {
        panic!("two subsystems")
    };
    assert_eq!(a.nqn.as_str(), "nqn.2025-01.org.example:a");
    assert_eq!(
        (a.serial.as_deref(), a.model.as_str()),
        (Some("S1"), "Example Disk")
    );
    let host = "nqn.2014-08.org.nvmexpress:uuid:1".parse().unwrap();
    assert_eq!(a.hosts, HostAccess::Only([host].into()));
    assert_eq!(
        a.namespaces[0],
        NamespaceConfig {
            nsid: 1,
            storage: BackingSpec::File {
                path: "/srv/a.img".into(),
                size_bytes: Some(1 << 30)
            },
            block_bytes: Some(4096),
            read_only: false,
            uuid: Some(Uuid::parse_str("c8c3a6a6-7b6a-4f8c-9d5c-2d5a3a7c0b1e").unwrap()),
            nguid: Some(0xc8c3_a6a6_7b6a_4f8c_9d5c_2d5a_3a7c_0b1f_u128.to_be_bytes()),
            eui64: Some([0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77]),
        }
    );
    assert!(a.namespaces[1].read_only);
    let nsids: Vec<u32> = a.namespaces.iter().map(|n| n.nsid).collect();
    assert_eq!(nsids, [1, 7, 8], "each the next after the one above");
    assert_eq!(b.hosts, HostAccess::Any);
    assert_eq!(
        (b.serial.as_deref(), b.model.as_str()),
        (None, "nvmf-target")
    );
    assert_eq!(
        b.namespaces[1].storage,
        BackingSpec::Null {
            size_bytes: 1 << 40
        }
    );
}

#[test]
fn what_is_left_out_is_closed_and_has_defaults() {
    let config = parse_text("[[subsystem]]\nnqn = \"nqn.2025-01.org.example:a\"\n").unwrap();
    assert_eq!(config.listeners, [DEFAULT_LISTEN]);
    assert!(DEFAULT_LISTEN.is_loopback());
    assert_eq!(
        config.subsystems[0].hosts,
        HostAccess::Only(Default::default()),
        "no list means nobody"
    );
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.tcp, TcpOptions::default());
    assert_eq!((config.cores, config.busy_poll_us), (None, 0));
}

#[test]
fn a_missing_file_is_named() {
    let problems = load(Path::new("/nonexistent/t.toml")).unwrap_err();
    assert_eq!(
        problems.to_string(),
        "/nonexistent/t.toml: cannot be read: No such file or directory (os error 2)"
    );
}

#[test]
fn syntax_and_type_errors_name_file_line_and_key() {
    assert_eq!(
        messages("\nbusy-poll = \"fast\"\n"),
        ["t.toml:2: busy-poll: invalid type: string \"fast\", expected a number of 0 or more"]
    );
    for (text, says) in [
        ("listen = \"tcp://127.0.0.1\"", "write brackets around it"),
        ("[subsystem]\nnqn = \"a\"", "[[subsystem]]"),
        ("[tcp]\nheader-digest = 1", "expected true or false"),
        ("[api.tls]\nlisten = \"here\"", "write ADDR:PORT"),
        ("[[subsystem]]\nnqn = 1", "expected a string"),
        (
            "[[subsystem]]\nnqn = \"a\"\n[[subsystem.namespace]]\nnsid = -1",
            "expected a number of 0 or more",
        ),
    ] {
        let messages = messages(text);
        assert!(
            messages.len() == 1 && messages[0].contains(says),
            "{messages:?}"
        );
    }
    assert_eq!(
        messages("listne = []\n"),
        [
            "t.toml:1: listne: unknown field `listne`, expected one of `listen`, `referrals`, `cores`, `busy-poll`, `limits`, `tcp`, `keep-alive`, `api`, `authentication`, `host`, `subsystem`, `pool`"
        ]
    );
    assert_eq!(
        messages("[limits]\n# a = comment\nqueue_depth = 3\n"),
        [
            "t.toml:3: queue_depth: unknown field `queue_depth`, expected one of `queue-depth`, `io-queues`, `in-capsule-size`, `max-transfer-size`, `r2t-window`, `connections`, `buffers`, `handshake-ms`"
        ]
    );
    assert_eq!(
        messages("listen = [\"fc://10.0.0.1:4420\"]\n"),
        [
            "t.toml:1: listen: \"fc://10.0.0.1:4420\": transport \"fc\" is unknown; write tcp://ADDR:PORT or rdma://ADDR:PORT"
        ]
    );
    assert_eq!(
        messages("cores = \"3-1\"\n"),
        ["t.toml:1: cores: \"3-1\": the range \"3-1\" runs backwards; write 1-3"]
    );
    let torn = messages("listen = [\n");
    assert!(torn[0].starts_with("t.toml:"), "{torn:?}");
}

#[test]
fn limits_out_of_range_say_the_range() {
    let limit = |line: &str| messages(&format!("[limits]\n{line}\n"));
    assert_eq!(
        limit("queue-depth = 1"),
        ["t.toml:2: queue-depth: 1 is out of range; write 2 to 1024"]
    );
    assert_eq!(
        limit("io-queues = 0"),
        ["t.toml:2: io-queues: 0 is out of range; write 1 to 128"]
    );
    assert_eq!(
        limit("in-capsule-size = \"1M\""),
        ["t.toml:2: in-capsule-size: 1 MiB is out of range; write 0 bytes to 16 KiB"]
    );
    assert_eq!(
        limit("in-capsule-size = 100"),
        ["t.toml:2: in-capsule-size: 100 is not a multiple of 16 bytes"]
    );
    assert_eq!(
        limit("max-transfer-size = \"4M\""),
        ["t.toml:2: max-transfer-size: 4 MiB is out of range; write 8 KiB to 2 MiB"]
    );
    assert_eq!(
        limit("max-transfer-size = \"96K\""),
        [
            "t.toml:2: max-transfer-size: 96 KiB is no power of two, which is all that MDTS can express; write 64 KiB"
        ]
    );
    assert_eq!(
        limit("r2t-window = 5000"),
        ["t.toml:2: r2t-window: 5000 is not a multiple of 4096 bytes"]
    );
    assert_eq!(
        limit("connections = 0"),
        ["t.toml:2: connections: 0 is out of range; write 1 to 65536"]
    );
    assert_eq!(
        limit("handshake-ms = 5"),
        ["t.toml:2: handshake-ms: 5 is out of range; write 100 to 120000"]
    );
    assert_eq!(
        limit("buffers = \"1M\""),
        ["t.toml:2: buffers: 1 MiB is out of range; write 8 MiB to 1 TiB"]
    );
    assert_eq!(
        limit("buffers = \"64X\""),
        [
            "t.toml:2: buffers: \"64X\" is not a size: write bytes, or a whole number with K, M, G, T or P (powers of 1024), such as 512M or 10GiB"
        ]
    );
    assert_eq!(
        messages("[tcp]\ncpda = 32\n"),
        ["t.toml:2: cpda: 32 is out of range; write 0 to 31"]
    );
    assert_eq!(
        messages("busy-poll = 2000000\n"),
        ["t.toml:1: busy-poll: 2000000 is out of range; write 0 to 1000000"]
    );
    assert_eq!(
        messages("[keep-alive]\nmin-ms = 5000\nmax-ms = 1000\n"),
        ["t.toml:3: max-ms: 1000 is less than min-ms, which is 5000"]
    );
    assert_eq!(
        messages("[keep-alive]\nmin-ms = 5\n"),
        ["t.toml:2: min-ms: 5 is out of range; write 100 to 3600000"]
    );
}

#[test]
fn listeners_are_given_once() {
    assert_eq!(
        messages("listen = []\n"),
        [
            "t.toml: listen: the list is empty, so no host could connect; write an address such as tcp://127.0.0.1:4420, or leave the key out"
        ]
    );
    assert_eq!(
        messages("listen = [\"tcp://127.0.0.1\",\n \"tcp://127.0.0.1:4420\"]\n"),
        ["t.toml:2: listen: tcp://127.0.0.1:4420 is given twice; leave one out"]
    );
    assert!(messages("listen = [\"tcp://127.0.0.1:0\", \"tcp://127.0.0.1:0\"]\n").is_empty());
}

#[test]
fn subsystems_are_named_once_and_well() {
    assert_eq!(
        messages("[[subsystem]]\nserial = \"x\"\n"),
        ["t.toml:1: missing field `nqn`"]
    );
    assert_eq!(
        messages("[[subsystem]]\nnqn = \"disk1\"\n"),
        [
            "t.toml:2: nqn: \"disk1\" does not have the form of an NQN: write nqn.YYYY-MM.REVERSED-DOMAIN:NAME, such as nqn.2025-01.org.example:disk1"
        ]
    );
    assert_eq!(
        messages("[[subsystem]]\nnqn = \"nqn.2014-08.org.nvmexpress.discovery\"\n"),
        [
            "t.toml:2: nqn: nqn.2014-08.org.nvmexpress.discovery is the discovery service, which every listener has; give the subsystem a name of its own"
        ]
    );
    let twice = subsystem_messages("[[subsystem]]\nnqn = \"nqn.2025-01.org.example:a\"\n");
    assert_eq!(
        twice,
        ["t.toml:4: nqn: this NQN belongs to another subsystem already; give each its own"]
    );
    assert_eq!(
        subsystem_messages("serial = \"123456789012345678901\"\n"),
        [
            "t.toml:3: serial: \"123456789012345678901\" has 21 bytes; write 1 to 20 ASCII characters"
        ]
    );
    assert_eq!(
        subsystem_messages("model = \"disk \"\n"),
        [
            "t.toml:3: model: \"disk \": write printable ASCII characters, with no blank at either end"
        ]
    );
    let serials = subsystem_messages(
        "serial = \"s\"\n[[subsystem]]\nnqn = \"nqn.2025-01.org.example:b\"\nserial = \"s\"\n",
    );
    assert_eq!(
        serials,
        [
            "t.toml:6: serial: this serial number belongs to nqn.2025-01.org.example:a already; give each its own"
        ]
    );
}

#[test]
fn hosts_are_a_list_or_everyone() {
    assert_eq!(
        subsystem_messages("allow-any-host = true\nallowed-hosts = [\"nqn.h\"]\n"),
        [
            "t.toml:3: allow-any-host: any host may connect, so the list of allowed hosts would have no effect; keep one of the two"
        ]
    );
    assert_eq!(
        subsystem_messages("allowed-hosts = [\"nqn.h\", \"nqn.h\"]\n"),
        ["t.toml:3: allowed-hosts: the host nqn.h is given twice; leave one out"]
    );
    assert_eq!(
        subsystem_messages("allowed-hosts = [\"h\"]\n"),
        [
            "t.toml:3: allowed-hosts: \"h\" does not have the form of an NQN: write what the host has in /etc/nvme/hostnqn, which starts with \"nqn.\""
        ]
    );
}

#[test]
fn storage_needs_what_its_kind_needs() {
    assert_eq!(
        namespace_messages("kind = \"tape\"\n"),
        [
            "t.toml:4: kind: unknown variant `tape`, expected one of `file`, `block`, `passthru`, `memory`, `null`"
        ]
    );
    assert_eq!(
        namespace_messages("kind = \"file\"\n"),
        ["t.toml:3: namespace: this kind needs a path; write path = \"/PATH\""]
    );
    assert_eq!(
        namespace_messages("kind = \"file\"\npath = \"a.img\"\n"),
        ["t.toml:5: path: a.img depends on where the target is started; write an absolute path"]
    );
    assert_eq!(
        namespace_messages("kind = \"null\"\n"),
        ["t.toml:3: namespace: this kind needs a size; write size = \"SIZE\", such as \"1G\""]
    );
    assert_eq!(
        namespace_messages("kind = \"null\"\nsize = 1024\npath = \"/x\"\n"),
        ["t.toml:6: path: memory and null namespaces have no path; leave the key out"]
    );
    assert_eq!(
        namespace_messages("kind = \"block\"\npath = \"/dev/sdb\"\nsize = 1024\n"),
        ["t.toml:6: size: a device has the size it has; leave the key out"]
    );
    assert_eq!(
        namespace_messages("kind = \"memory\"\nsize = 100\n"),
        [
            "t.toml:5: size: 100 bytes hold no block; write at least 512",
            "t.toml:3: namespace: this kind needs a size; write size = \"SIZE\", such as \"1G\""
        ]
    );
    assert_eq!(
        namespace_messages("kind = \"null\"\nsize = \"9000P\"\n")[0],
        "t.toml:5: size: 10133099161583616000 bytes are more than Linux can address in a file; write less than 8 EiB"
    );
    assert_eq!(
        namespace_messages("kind = \"null\"\nsize = \"1G\"\nblock-size = 1024\n"),
        ["t.toml:6: block-size: 1024 is not a block size; write 512 or 4096"]
    );
    assert_eq!(
        namespace_messages("kind = \"passthru\"\npath = \"/dev/ng0n1\"\nblock-size = 512\n"),
        [
            "t.toml:6: block-size: a passed-through namespace has the block size of its device; leave the key out"
        ]
    );
}

#[test]
fn identifiers_are_well_formed_and_unique() {
    let with =
        |line: &str| namespace_messages(&format!("kind = \"null\"\nsize = \"1G\"\n{line}\n"));
    assert_eq!(
        with("nsid = 0"),
        ["t.toml:6: nsid: 0 is out of range; write 1 to 1024"]
    );
    assert_eq!(
        with("uuid = \"00000000-0000-0000-0000-000000000000\""),
        [
            "t.toml:6: uuid: \"00000000-0000-0000-0000-000000000000\" is not a UUID; write one such as c8c3a6a6-7b6a-4f8c-9d5c-2d5a3a7c0b1e, not all zeroes"
        ]
    );
    assert_eq!(
        with("nguid = \"12\""),
        [
            "t.toml:6: nguid: \"12\" is not an identifier of 16 bytes; write 32 hexadecimal digits, not all zeroes"
        ]
    );
    assert_eq!(
        with("eui64 = \"0000000000000000\""),
        [
            "t.toml:6: eui64: \"0000000000000000\" is not an identifier of 8 bytes; write 16 hexadecimal digits, not all zeroes"
        ]
    );
    let uuid = "uuid = \"c8c3a6a6-7b6a-4f8c-9d5c-2d5a3a7c0b1e\"";
    let second = format!("{uuid}\n[[subsystem.namespace]]\nkind = \"null\"\nsize = 512\n{uuid}");
    assert_eq!(
        with(&second),
        [
            "t.toml:10: uuid: this UUID belongs to namespace 1 of nqn.2025-01.org.example:a already; give each its own"
        ]
    );
    assert_eq!(
        with("nsid = 3\n[[subsystem.namespace]]\nkind = \"null\"\nsize = 512\nnsid = 3"),
        [
            "t.toml:10: nsid: this NSID belongs to another namespace of this subsystem already; give each its own"
        ]
    );
}

#[test]
fn storage_is_shared_by_readers_of_different_subsystems_only() {
    let namespace = |options: &str| {
        format!("[[subsystem.namespace]]\nkind = \"file\"\npath = \"/srv/a\"\n{options}\n")
    };
    let (reader, writer) = (namespace("read-only = true"), namespace(""));
    let other = "[[subsystem]]\nnqn = \"nqn.2025-01.org.example:b\"\n";
    let problem = "path: /srv/a belongs to namespace 1 of nqn.2025-01.org.example:a already; only read-only namespaces of different subsystems may share storage";
    assert_eq!(
        subsystem_messages(&format!("{reader}{writer}")),
        [format!("t.toml:9: {problem}")]
    );
    assert_eq!(
        subsystem_messages(&format!("{reader}{reader}")),
        [format!("t.toml:9: {problem}")]
    );
    assert_eq!(
        subsystem_messages(&format!("{writer}{other}{reader}")),
        [format!("t.toml:11: {problem}")]
    );
    assert!(subsystem_messages(&format!("{reader}{other}{reader}")).is_empty());
}

#[test]
fn every_problem_is_reported_at_once() {
    let all = messages(
        "busy-poll = 9999999\n[limits]\nqueue-depth = 0\n[[subsystem]]\nnqn = \"x\"\n[[subsystem.namespace]]\nkind = \"null\"\n",
    );
    assert_eq!(all.len(), 4, "{all:?}");
}

#[test]
fn the_api_is_where_the_file_says() {
    let api = parse(Path::new("t.toml"), "").unwrap().api;
    assert_eq!(api, ApiOptions::default());
    let text = "[api]\nsocket = \"/run/a.sock\"\nstate-dir = \"none\"\n";
    let api = parse(Path::new("t.toml"), text).unwrap().api;
    assert_eq!(api.socket, Chosen::At("/run/a.sock".into()));
    assert_eq!(api.state_dir, Chosen::Off);
    assert_eq!(
        messages("[api]\nsocket = \"a.sock\"\n"),
        [
            "t.toml:2: socket: a.sock depends on where the target is started; write an absolute path, or \"none\""
        ]
    );
}

#[test]
fn the_api_over_tcp_is_all_there_or_refused() {
    let good = "[api.tls]\nlisten = \"10.0.0.1:4421\"\ncertificate = \"/c\"\nkey = \"/k\"\nclient-ca = \"/ca\"\n";
    let tls = parse(Path::new("t.toml"), good).unwrap().api.tls.unwrap();
    assert_eq!(tls.listen, "10.0.0.1:4421".parse().unwrap());
    assert_eq!(tls.certificate, Path::new("/c"));
    assert_eq!(tls.key, Path::new("/k"));
    assert_eq!(tls.client_ca, Path::new("/ca"));
    assert!(tls.clients.is_empty() && tls.read_only_clients.is_empty());
    let named = format!("{good}clients = [\"csi\"]\nread-only-clients = [\"monitor\"]\n");
    let tls = parse(Path::new("t.toml"), &named).unwrap().api.tls.unwrap();
    assert_eq!(tls.clients, ["csi".parse().unwrap()]);
    assert_eq!(tls.read_only_clients, ["monitor".parse().unwrap()]);
    for (text, expected) in [
        (
            "[api]\nsocket = \"tcp://10.0.0.1:9000\"\n",
            "mutual TLS alone",
        ),
        (&good.replace("key = \"/k\"\n", ""), "missing field `key`"),
        (
            &good.replace("client-ca = \"/ca\"\n", ""),
            "missing field `client-ca`",
        ),
        (
            &good.replace("10.0.0.1:4421", "10.0.0.1"),
            "write ADDR:PORT",
        ),
        (
            &good.replace("/k", "k"),
            "t.toml:4: key: k depends on where",
        ),
        (
            &format!("{good}clients = [\"10.0.0.1\"]\n"),
            "names no client",
        ),
        (
            &format!("{good}clients = [\"sha256:12\"]\n"),
            "64 hexadecimal digits",
        ),
        (&format!("{good}ciphers = []\n"), "unknown field `ciphers`"),
    ] {
        let found = messages(text);
        assert!(
            found.len() == 1 && found[0].contains(expected),
            "{text}: {found:?}"
        );
    }
}

#[test]
fn the_documented_files_are_read_and_show_the_defaults() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/OPERATIONS.md");
    let docs = fs::read_to_string(path).unwrap();
    let docs = docs.replace("uuid:…", &format!("uuid:{}", Uuid::from_u128(1)));
    let docs = docs.replace("sha256:3a5f…", &format!("sha256:{}", "3a".repeat(32)));
    let keys = keys();
    let docs = docs.replace("/etc/nvmf-target/keys", keys.path().to_str().unwrap());
    let files = docs.split("```toml\n").skip(1);
    let files: Vec<_> = files
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert_eq!(files.len(), 4, "the file, [api.tls], a pool, and hosts");
    for file in &files {
        assert_eq!(messages(file), [""; 0], "{file}");
    }
    let config = parse_text(files[0]).unwrap();
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.tcp, TcpOptions::default());
    let hosts = parse_text(files[3]).unwrap().authentication;
    assert_eq!(hosts.policy, DhChapPolicy::default());
}

const PLAIN: &str = "DHHC-1:00:AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAl7OaH:";
const TRANSFORMED: &str = "DHHC-1:01:BAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAhIiOdu0CL:";

/// A folder with key files under the names of the documentation.
fn keys() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("node1", PLAIN), ("ctrl1", TRANSFORMED)] {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    dir
}

#[test]
fn hosts_that_have_to_authenticate() {
    let dir = keys();
    let dir = dir.path().display();
    let host = |nqn: &str, key: &str, ctrl: &str| {
        format!(
            "[[host]]\nnqn = \"{nqn}\"\ndhchap-key-file = \"{dir}/{key}\"\ndhchap-ctrl-key-file = \"{dir}/{ctrl}\"\n"
        )
    };
    let config = parse_text(&host("nqn.h", "node1", "ctrl1")).unwrap();
    let keys = &config.authentication.keys[&"nqn.h".parse().unwrap()];
    assert_eq!(keys.host, PLAIN.parse().unwrap());
    assert_eq!(keys.controller, Some(TRANSFORMED.parse().unwrap()));
    assert_eq!(config.authentication.policy, DhChapPolicy::default());
    assert!(!format!("{config:?}").contains("AQIDBAUG"));

    let chosen = "[authentication]\nhashes = [\"sha512\"]\ndh-groups = [\"ffdhe4096\", \"null\"]\n";
    let policy = parse_text(chosen).unwrap().authentication.policy;
    assert_eq!(policy.hashes, [HashId::Sha512]);
    assert_eq!(policy.groups, [DhGroup::Ffdhe4096, DhGroup::Null]);

    for (text, says) in [
        (
            host("nqn.h", "node1", "node1"),
            "t.toml:2: nqn: the host and the controller have the same secret",
        ),
        (
            host("nqn.h", "node1", "ctrl1") + &host("nqn.h", "node1", "ctrl1"),
            "t.toml:6: nqn: the host nqn.h is given twice",
        ),
        (
            host("nqn.h", "gone", "ctrl1"),
            "t.toml:3: dhchap-key-file: ",
        ),
        (
            "[[host]]\nnqn = \"nqn.h\"\ndhchap-key-file = \"key\"\n".into(),
            "write an absolute path",
        ),
        (
            "[authentication]\nhashes = [\"md5\"]\n".into(),
            "\"md5\" is none of sha256",
        ),
        (
            "[authentication]\ndh-groups = []\n".into(),
            "t.toml:2: dh-groups: the list is empty",
        ),
    ] {
        let messages = messages(&text);
        assert_eq!(messages.len(), 1, "{messages:?}");
        assert!(messages[0].contains(says), "{messages:?}");
    }
}
