//! The API over TCP: who gets in, who does not, what each may do, and what somebody without a certificate can do to us.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use nvmf_rpc::error::code;
use nvmf_rpc::tls::{ClientFiles, authorities, provider};
use nvmf_rpc::{BlockingClient, ClientError, Endpoint, TlsArgs};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::certificates::{Authority, Pair};
use super::client::{Raw, SOCKET, request};
use super::protocol;
use crate::common::host::PATIENCE;
use crate::process::Target;

/// Connections that may be without a certificate at one time (`MAX_HANDSHAKES`).
const HANDSHAKES: usize = 32;
/// Connections with one at one time (`MAX_CONNECTIONS`).
const CONNECTIONS: usize = 128;

/// A target whose API is served over TCP too.
struct Served {
    target: Target,
    authority: Authority,
    server: Pair,
    address: SocketAddr,
}

impl Served {
    /// With more lines in `[api.tls]`.
    fn with(lines: &str) -> Self {
        let authority = Authority::new("authority");
        let server = authority.server();
        let dir = tempfile::tempdir().unwrap();
        let text = text(&dir.path().join(SOCKET), &authority, &server, lines);
        let mut target = Target::with_file_in(dir, &text);
        let line = target.wait_log_seen("management API on tls://");
        let address = line
            .rsplit("tls://")
            .next()
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        Served {
            target,
            authority,
            server,
            address,
        }
    }

    fn text(&self, lines: &str) -> String {
        text(&self.target.socket(), &self.authority, &self.server, lines)
    }

    fn client(&self, files: &ClientFiles) -> BlockingClient {
        client(self.address, files)
    }

    /// A client with a certificate that is in order.
    fn named(&self, name: &str) -> BlockingClient {
        self.client(&self.authority.trusted_by(&self.authority.client(name)))
    }

    /// A connection of such a client to write raw bytes to.
    fn raw(&self, files: &ClientFiles) -> Raw {
        raw(self.address, files.config().unwrap())
    }
}

fn text(socket: &std::path::Path, authority: &Authority, server: &Pair, lines: &str) -> String {
    format!(
        "listen = [\"tcp://127.0.0.1:0\"]\n[api]\nsocket = {socket:?}\nstate-dir = \"none\"\n[api.tls]\nlisten = \"127.0.0.1:0\"\ncertificate = {:?}\nkey = {:?}\nclient-ca = {:?}\n{lines}\n",
        server.certificate, server.key, authority.file
    )
}

fn client(address: SocketAddr, files: &ClientFiles) -> BlockingClient {
    let args = TlsArgs {
        tls_ca: Some(files.ca.clone()),
        tls_cert: Some(files.certificate.clone()),
        tls_key: Some(files.key.clone()),
    };
    let endpoint = format!("tls://localhost:{}", address.port());
    BlockingClient::new(Endpoint::written(&endpoint, &args).unwrap()).with_timeout(PATIENCE)
}

fn socket(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn raw(address: SocketAddr, config: ClientConfig) -> Raw {
    let name = "localhost".try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    Raw::new(StreamOwned::new(connection, socket(address)))
}

/// What a connection that must be refused says; nothing of the API may come.
fn refused(client: &BlockingClient) -> String {
    match client.call("spdk_get_version", Value::Null) {
        Err(error @ ClientError::Connect { .. }) => error.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_client_with_a_certificate_does_all_that_the_socket_can() {
    let served = Served::with("");
    let client = served.named("csi");
    let device = json!({"name": "n", "num_blocks": 8, "block_size": 512});
    assert_eq!(
        client.call("bdev_null_create", device.clone()).unwrap(),
        "n"
    );
    let listed = served.target.call("bdev_get_bdevs", Value::Null);
    assert_eq!(listed[0]["name"], "n");
    let error = client.call("bdev_null_create", device).unwrap_err();
    assert_eq!(error.code(), Some(code::EXISTS), "{error}");
}

#[test]
fn whoever_shows_no_valid_certificate_is_turned_away() {
    let served = Served::with("");
    let (ours, others) = (&served.authority, Authority::new("another"));
    // Turned away by the target.
    for (client, alert) in [
        (others.client("csi"), "UnknownCA"),
        (ours.expired("late"), "CertificateExpired"),
        (ours.server(), "UnsupportedCertificate"),
    ] {
        let text = refused(&served.client(&ours.trusted_by(&client)));
        assert!(text.contains(alert), "{alert}: {text}");
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(authorities(&ours.file).unwrap());
    let mut nobody = raw(served.address, config.with_no_client_auth());
    let mut buffer = [0; 64];
    // The handshake is over for the client before the target has seen that there is no certificate.
    let _ = nobody
        .socket
        .write_all(request(1, "spdk_get_version").to_string().as_bytes());
    let error = nobody.socket.read(&mut buffer).unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
    // Turned away by the client: nobody else's target is taken for ours.
    let text = refused(&served.client(&others.trusted_by(&ours.client("csi"))));
    assert!(text.contains("UnknownIssuer"), "{text}");
    // No TLS at all.
    for garbage in [
        request(1, "spdk_get_version").to_string().as_bytes(),
        &[0xff; 4096],
        b"\x16\x03\x01\xff\xff",
    ] {
        let mut plain = socket(served.address);
        plain.write_all(garbage).unwrap();
        plain.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // A reset is as good as an end.
        let _ = plain.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        assert!(!text.contains('{'), "the API answered: {text}");
    }
    served
        .named("csi")
        .call("spdk_get_version", Value::Null)
        .unwrap();
}

#[test]
fn clients_do_what_their_names_allow() {
    let authority = Authority::new("elsewhere");
    let pair = authority.client("by-fingerprint");
    let openssl = std::process::Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(&pair.certificate)
        .output()
        .unwrap();
    let printed = String::from_utf8(openssl.stdout).unwrap();
    let fingerprint = printed.trim().rsplit('=').next().unwrap();
    let lines = format!(
        "clients = [\"csi.example.org\", \"sha256:{fingerprint}\"]\nread-only-clients = [\"monitor\"]"
    );
    let mut served = Served::with(&lines);
    let device = |name: &str| json!({"name": name, "num_blocks": 8, "block_size": 512});
    served
        .named("csi.example.org")
        .call("bdev_null_create", device("a"))
        .unwrap();
    // A certificate that is listed still has to be signed by the right authority.
    refused(&served.client(&served.authority.trusted_by(&pair)));

    let stranger = served.named("stranger");
    let error = stranger.call("spdk_get_version", Value::Null).unwrap_err();
    assert_eq!(error.code(), Some(code::ACCESS), "{error}");
    assert!(error.to_string().contains("sha256:"), "{error}");
    served
        .target
        .wait_log("not of a client that may use this API");

    let monitor = served.named("monitor");
    let methods = monitor.call("rpc_get_methods", Value::Null).unwrap();
    let before = super::bad_input::everything(&served.target);
    let mut readable = 0;
    for method in methods.as_array().unwrap() {
        let method = method.as_str().unwrap();
        let parameters = json!({"no_such_parameter": 1});
        let error = monitor.call(method, parameters).unwrap_err();
        let changes = [
            "create", "delete", "add", "remove", "allow", "resize", "rescan",
        ];
        let expected = if changes
            .iter()
            .any(|verb| method.split('_').any(|word| word == *verb))
        {
            code::ACCESS
        } else {
            readable += 1;
            code::INVALID_PARAMS
        };
        assert_eq!(error.code(), Some(expected), "{method}: {error}");
    }
    assert!(readable >= 10, "{readable}");
    assert_eq!(
        monitor.call("bdev_get_bdevs", Value::Null).unwrap()[0]["name"],
        "a"
    );
    let files = served
        .authority
        .trusted_by(&served.authority.client("monitor"));
    let batch = json!([request(1, "spdk_get_version"), {"jsonrpc": "2.0", "method": "bdev_null_delete", "params": {"name": "a"}, "id": 2}]);
    let answers = served.raw(&files).ask(batch.to_string());
    assert!(answers[0]["result"].is_object(), "{answers}");
    assert_eq!(answers[1]["error"]["code"], code::ACCESS, "{answers}");
    assert_eq!(super::bad_input::everything(&served.target), before);
}

#[test]
fn a_fingerprint_lets_its_certificate_in() {
    let mut served = Served::with("clients = [\"nobody\"]");
    let pair = served.authority.client("someone");
    let files = served.authority.trusted_by(&pair);
    let error = served
        .client(&files)
        .call("spdk_get_version", Value::Null)
        .unwrap_err();
    let text = error.to_string();
    // The refusal has the name to write.
    let name = text
        .split_whitespace()
        .find(|word| word.starts_with("sha256:"))
        .unwrap();
    let listed = served.text(&format!("clients = [\"nobody\", \"{name}\"]"));
    assert!(served.target.reload(&listed).contains("reloaded"));
    served
        .client(&files)
        .call("spdk_get_version", Value::Null)
        .unwrap();
}

#[test]
fn certificates_are_renewed_under_open_connections() {
    let mut served = Served::with("");
    let files = served.authority.trusted_by(&served.authority.client("csi"));
    let ask = request(1, "spdk_get_version").to_string();
    let mut open = served.raw(&files);
    assert_eq!(open.ask(&ask)["id"], 1);
    // Files that cannot be used change nothing.
    let good = fs::read(&served.server.certificate).unwrap();
    for bad in [
        &b"-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n"[..],
        b"",
    ] {
        fs::write(&served.server.certificate, bad).unwrap();
        let said = served.target.hang_up();
        assert!(
            said.contains("stays as it was") && said.contains("localhost.pem"),
            "{said}"
        );
        served
            .client(&files)
            .call("spdk_get_version", Value::Null)
            .unwrap();
    }
    fs::write(&served.server.certificate, good).unwrap();
    // Another authority altogether, in the same places.
    let renewed = Authority::new("renewed");
    let server = renewed.server();
    for (new, place) in [
        (&server.certificate, &served.server.certificate),
        (&server.key, &served.server.key),
        (&renewed.file, &served.authority.file),
    ] {
        fs::copy(new, place).unwrap();
    }
    let old = files.config().unwrap();
    assert!(served.target.hang_up().contains("reloaded"));
    assert_eq!(open.ask(&ask)["id"], 1, "the connection goes on");
    let renewed_client = renewed.client("csi");
    served
        .client(&renewed.trusted_by(&renewed_client))
        .call("spdk_get_version", Value::Null)
        .unwrap();
    refused(&served.client(&files));
    drop(old);
    // Whoever is on no list any more is told so at the next request.
    let listed = served.text("clients = [\"another\"]");
    assert!(served.target.reload(&listed).contains("reloaded"));
    assert_eq!(open.ask(&ask)["error"]["code"], code::ACCESS);
    assert_eq!(open.next(), None);
    served.target.call("spdk_get_version", Value::Null);
}

#[test]
fn nobody_holds_places_without_a_certificate() {
    let mut served = Served::with("");
    let files = served.authority.trusted_by(&served.authority.client("csi"));
    let ask = request(1, "spdk_get_version").to_string();
    let mut open = served.raw(&files);
    assert_eq!(open.ask(&ask)["id"], 1);
    let before = served.target.open_files();
    let mut silent: Vec<_> = (0..HANDSHAKES).map(|_| socket(served.address)).collect();
    // One of them begins and does not end.
    silent[0].write_all(b"\x16\x03\x01\x02\x00\x01").unwrap();
    let mut one_more = socket(served.address);
    assert_eq!(one_more.read(&mut [0]).unwrap_or(0), 0);
    served.target.wait_log("have not shown a certificate yet");
    // Those who are in, and those on the socket, notice nothing.
    assert_eq!(open.ask(&ask)["id"], 1);
    served.target.call("spdk_get_version", Value::Null);
    for mut socket in silent {
        // An alert may come before the end.
        let _ = socket.read_to_end(&mut Vec::new());
    }
    let start = Instant::now();
    while served.target.open_files() > before {
        assert!(start.elapsed() < PATIENCE, "files stay open");
        std::thread::yield_now();
    }
    served
        .client(&files)
        .call("spdk_get_version", Value::Null)
        .unwrap();
}

#[test]
fn connections_are_bounded_on_each_way_by_itself() {
    let served = Served::with("");
    let files = served.authority.trusted_by(&served.authority.client("csi"));
    let ask = request(1, "spdk_get_version").to_string();
    let connect = |_| {
        let mut raw = served.raw(&files);
        assert_eq!(raw.ask(&ask)["id"], 1);
        raw
    };
    let mut open: Vec<_> = (0..CONNECTIONS).map(connect).collect();
    let error = served
        .client(&files)
        .call("spdk_get_version", Value::Null)
        .unwrap_err();
    assert_eq!(error.code(), Some(code::BUSY), "{error}");
    served.target.call("spdk_get_version", Value::Null);
    assert_eq!(open[0].ask(&ask)["id"], 1);
    open.pop();
    let start = Instant::now();
    while served
        .client(&files)
        .call("spdk_get_version", Value::Null)
        .is_err()
    {
        assert!(start.elapsed() < PATIENCE, "no connection is free again");
    }
}

#[test]
fn what_a_certified_client_sends_is_bounded_as_on_the_socket() {
    let served = Served::with("");
    let files = served.authority.trusted_by(&served.authority.client("csi"));
    protocol::end_with_garbage(|| served.raw(&files));
    protocol::flood(&served.target, served.raw(&files));
}

#[test]
fn certificates_that_cannot_be_used_stop_the_start() {
    let authority = Authority::new("authority");
    let (server, other) = (authority.server(), authority.client("other"));
    let good = |dir: &tempfile::TempDir| text(&dir.path().join(SOCKET), &authority, &server, "");
    let key = format!("{:?}", server.key);
    for (wrong, expected) in [
        (format!("{:?}", other.key), "not usable for TLS"),
        (
            "\"/nonexistent/key\"".to_owned(),
            "/nonexistent/key: cannot be read",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.toml");
        fs::write(&path, good(&dir).replace(&key, &wrong)).unwrap();
        let path = path.to_str().unwrap().to_owned();
        let check = crate::process::command()
            .args(["--config", &path, "--check"])
            .output()
            .unwrap();
        assert_eq!(check.status.code(), Some(2), "{check:?}");
        let said = String::from_utf8(check.stderr).unwrap();
        assert!(
            said.contains("api.tls") && said.contains(expected),
            "{said}"
        );
        let mut target = Target::spawn(dir, &["--config", &path], &[]);
        assert_eq!(target.wait_exit().code(), Some(1));
        target.wait_log(expected);
    }
    // A place that is taken, likewise.
    let served = Served::with("");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.toml");
    fs::write(
        &path,
        good(&dir).replace("\"127.0.0.1:0\"", &format!("\"{}\"", served.address)),
    )
    .unwrap();
    let path = path.to_str().unwrap().to_owned();
    let mut target = Target::spawn(dir, &["--config", &path], &[]);
    assert_eq!(target.wait_exit().code(), Some(1));
    target.wait_log("another process listens there");
}

#[test]
fn tls_alone_is_enough_and_ends_with_the_target() {
    let authority = Authority::new("authority");
    let server = authority.server();
    let dir = tempfile::tempdir().unwrap();
    let file = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let (certificate, key, ca) = (
        file(&server.certificate),
        file(&server.key),
        file(&authority.file),
    );
    let arguments = [
        "--rpc",
        "none",
        "--rpc-tls",
        "127.0.0.1:0",
        "--rpc-cert",
        &certificate,
        "--rpc-key",
        &key,
        "--rpc-client-ca",
        &ca,
        "--rpc-read-only-client",
        "monitor",
    ];
    let mut target = Target::start(dir, &arguments);
    assert!(!target.file(SOCKET).exists());
    let line = target.wait_log_seen("management API on tls://");
    let address = line
        .rsplit("tls://")
        .next()
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let monitor = client(address, &authority.trusted_by(&authority.client("monitor")));
    monitor.call("spdk_get_version", Value::Null).unwrap();
    let error = monitor
        .call("bdev_null_delete", json!({"name": "n"}))
        .unwrap_err();
    assert_eq!(error.code(), Some(code::ACCESS), "{error}");
    target.signal(Signal::TERM);
    assert!(target.wait_exit().success());
    refused(&monitor);
}
