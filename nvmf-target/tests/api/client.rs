//! A target with an API, and clients of it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nvmf_rpc::stream::ValueStream;
use nvmf_rpc::{BlockingClient, RpcError};
use serde_json::{Value, json};

use crate::common::host::PATIENCE;
use crate::process::Target;

pub const SOCKET: &str = "rpc.sock";
pub const STATE: &str = "state";

/// A target that serves nothing yet, its socket and state in its directory.
pub fn empty() -> Target {
    empty_in(tempfile::tempdir().unwrap())
}

/// The same in a directory that may have the state of one before.
pub fn empty_in(dir: tempfile::TempDir) -> Target {
    start_in(dir, &[])
}

/// The same with more arguments.
pub fn start_in(dir: tempfile::TempDir, arguments: &[&str]) -> Target {
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (socket, state) = (path(SOCKET), path(STATE));
    let api = ["--rpc", &socket, "--state-dir", &state];
    Target::start(dir, &[&api, arguments].concat())
}

impl Target {
    pub fn socket(&self) -> PathBuf {
        self.file(SOCKET)
    }

    pub fn rpc(&self) -> BlockingClient {
        BlockingClient::new(self.socket()).with_timeout(PATIENCE)
    }

    /// The result of a call that must succeed.
    pub fn call(&self, method: &str, params: Value) -> Value {
        match self.rpc().call(method, params.clone()) {
            Ok(result) => result,
            Err(error) => panic!("{params}: {error}"),
        }
    }

    /// The refusal of a call that must be refused.
    pub fn refusal(&self, method: &str, params: Value) -> RpcError {
        match self.rpc().call(method, params.clone()) {
            Ok(result) => panic!("{method} {params}: {result}"),
            Err(error) => match error.refusal() {
                Some(refusal) => refusal.clone(),
                None => panic!("{method} {params}: {error}"),
            },
        }
    }

    /// A connection to write raw bytes to.
    pub fn raw(&self) -> Raw {
        let socket = UnixStream::connect(self.socket()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Raw::new(socket)
    }
}

/// What carries bytes to and from a target.
pub trait Socket: Read + Write {}

impl<T: Read + Write> Socket for T {}

/// A client that sends whatever a test likes.
pub struct Raw {
    pub socket: Box<dyn Socket>,
    values: ValueStream,
}

impl Raw {
    pub fn new(socket: impl Socket + 'static) -> Self {
        Raw {
            socket: Box::new(socket),
            values: ValueStream::new(1 << 30),
        }
    }

    pub fn send(&mut self, text: impl AsRef<[u8]>) -> &mut Self {
        self.socket.write_all(text.as_ref()).unwrap();
        self
    }

    /// The next answer; `None` once the target has closed.
    pub fn next(&mut self) -> Option<Value> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(value) = self.values.next_value().unwrap() {
                return Some(value);
            }
            match self.socket.read(&mut buffer).unwrap() {
                0 => return None,
                count => self.values.push(&buffer[..count]),
            }
        }
    }

    /// Sends a text and returns the next answer.
    pub fn ask(&mut self, text: impl AsRef<[u8]>) -> Value {
        self.send(text);
        self.next().expect("an answer")
    }
}

/// A request with the identifier `id`.
pub fn request(id: u64, method: &str) -> Value {
    json!({"jsonrpc": "2.0", "method": method, "id": id})
}
