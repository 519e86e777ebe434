//! Clients of the target's API, async and blocking.
//!
//! Each call has a connection of its own: calls do not wait for each other, a client may be cloned and shared at
//! will, and a target that was restarted in between is no matter.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{self, AlertDescription};

use super::endpoint::Endpoint;
use super::error::RpcError;
use super::message::{Request, Response};
use super::stream::{StreamError, ValueStream};
use super::types::Method;

/// The longest response taken: far more than a list of all that one target can serve.
const MAX_RESPONSE_BYTES: usize = 256 << 20;
/// How long a call may take unless [`Client::with_timeout`] says otherwise. Fencing a host waits for its writes.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long connecting may take, TLS included, so that a machine which is off is told from a call that takes long.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 64 << 10;
/// The one identifier that is used: there is one request on a connection.
const REQUEST_ID: u64 = 1;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or not for us: nothing was done.
    #[error("{endpoint}: {source}; {}", self.remedy())]
    Connect {
        /// Where.
        endpoint: Box<Endpoint>,
        /// What the kernel or TLS said.
        source: io::Error,
    },
    /// The connection failed after the request was sent: whether it was carried out is not known.
    #[error(
        "{method}: the connection to the target failed: {source}; whether it was done is not known"
    )]
    Lost {
        /// What was called.
        method: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// No answer in time: whether it was carried out is not known.
    #[error("{method}: no answer within {after:?}; whether it was done is not known")]
    Timeout {
        /// What was called.
        method: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// What came back is no answer.
    #[error("{method}: the answer is not understood: {why}")]
    Protocol {
        /// What was called.
        method: String,
        /// What is wrong with it.
        why: String,
    },
    /// The target refused.
    #[error("{method}: {error}")]
    Refused {
        /// What was called.
        method: String,
        /// Why.
        error: RpcError,
    },
}

impl ClientError {
    /// The target's refusal, if it is one.
    pub fn refusal(&self) -> Option<&RpcError> {
        match self {
            ClientError::Refused { error, .. } => Some(error),
            _ => None,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            ClientError::Connect { endpoint, .. } if matches!(**endpoint, Endpoint::Tls { .. }) => {
                "does nvmf-target serve its API there ([api.tls]), and does each side have a valid certificate of an authority that the other trusts?"
            }
            _ => "is nvmf-target running, is this its --rpc socket, and are you its user or root?",
        }
    }

    /// The code of the target's refusal, if it is one.
    pub fn code(&self) -> Option<i32> {
        self.refusal().map(|error| error.code)
    }
}

/// What both clients do alike: one call, from the request's bytes to the result.
struct Call {
    method: String,
    answers: ValueStream,
}

impl Call {
    fn new(method: &str, params: Value) -> Result<(Self, Vec<u8>), ClientError> {
        let call = Call {
            method: method.to_owned(),
            answers: ValueStream::new(MAX_RESPONSE_BYTES),
        };
        let params = match params {
            Value::Object(params) => params,
            Value::Null => Map::new(),
            _ => return Err(call.protocol("parameters are an object")),
        };
        let request = Request {
            method: method.to_owned(),
            params,
            id: Some(REQUEST_ID.into()),
        };
        Ok((call, request.to_value().to_string().into_bytes()))
    }

    /// Takes what was received; the result once it is complete.
    fn received(&mut self, bytes: &[u8]) -> Result<Option<Value>, ClientError> {
        if bytes.is_empty() {
            return Err(self.lost(ErrorKind::UnexpectedEof.into()));
        }
        self.answers.push(bytes);
        let answer = self.answers.next_value();
        let Some(value) = answer.map_err(|error: StreamError| self.protocol(error))? else {
            return Ok(None);
        };
        let response: Response =
            serde_json::from_value(value).map_err(|error| self.protocol(error))?;
        if let Some(error) = response.error {
            let method = self.method.clone();
            return Err(ClientError::Refused { method, error });
        }
        if response.id != REQUEST_ID {
            return Err(self.protocol("it answers another request"));
        }
        match response.result {
            Some(result) => Ok(Some(result)),
            None => Err(self.protocol("it has neither result nor error")),
        }
    }

    fn protocol(&self, why: impl ToString) -> ClientError {
        ClientError::Protocol {
            method: self.method.clone(),
            why: why.to_string(),
        }
    }

    fn lost(&self, source: io::Error) -> ClientError {
        ClientError::Lost {
            method: self.method.clone(),
            source,
        }
    }
}

fn params_of<M: Method>(params: &M) -> Result<Value, ClientError> {
    serde_json::to_value(params).map_err(|error| ClientError::Protocol {
        method: M::NAME.to_owned(),
        why: error.to_string(),
    })
}

fn result_of<T: DeserializeOwned>(method: &str, value: Value) -> Result<T, ClientError> {
    serde_json::from_value(value).map_err(|error| ClientError::Protocol {
        method: method.to_owned(),
        why: error.to_string(),
    })
}

/// A connection of either kind.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

async fn connect(endpoint: &Endpoint) -> io::Result<Box<dyn Connection>> {
    match endpoint {
        Endpoint::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        Endpoint::Tls {
            address,
            name,
            credentials,
        } => {
            let config = credentials.config().map_err(io::Error::other)?;
            let socket = TcpStream::connect(address).await?;
            socket.set_nodelay(true)?;
            let connector = TlsConnector::from(Arc::new(config));
            Ok(Box::new(connector.connect(name.clone(), socket).await?))
        }
    }
}

/// Whether the target turned our certificate down. In TLS 1.3 it says so after the client is done with its part of the handshake, and so
/// after the request may have been sent; but it looks at nothing of it.
fn is_turned_down(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(
        inner,
        Some(rustls::Error::AlertReceived(
            AlertDescription::AccessDenied
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRequired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::DecryptError
                | AlertDescription::HandshakeFailure
                | AlertDescription::UnknownCA
                | AlertDescription::UnsupportedCertificate
        ))
    )
}

/// An async client; needs a tokio runtime with I/O and time.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
    timeout: Duration,
}

impl Client {
    /// Where the target is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// A client of the target there. Nothing is opened yet.
    pub fn new(endpoint: impl Into<Endpoint>) -> Self {
        Client {
            endpoint: endpoint.into(),
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// The same with another bound on the time that a call may take.
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Client { timeout, ..self }
    }

    /// Calls a method of ours.
    pub async fn request<M: Method>(&self, params: &M) -> Result<M::Result, ClientError> {
        let result = self.call(M::NAME, params_of(params)?).await?;
        result_of(M::NAME, result)
    }

    /// Calls any method; `params` is an object, or null for none.
    pub async fn call(&self, method: &str, params: Value) -> Result<Value, ClientError> {
        let (call, request) = Call::new(method, params)?;
        match timeout(self.timeout, self.exchange(call, &request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ClientError::Timeout {
                method: method.to_owned(),
                after: self.timeout,
            }),
        }
    }

    async fn exchange(&self, mut call: Call, request: &[u8]) -> Result<Value, ClientError> {
        let not_connected = |source| ClientError::Connect {
            endpoint: Box::new(self.endpoint.clone()),
            source,
        };
        let limit = CONNECT_LIMIT.min(self.timeout);
        let connected = timeout(limit, connect(&self.endpoint)).await;
        // Nobody there within the limit, or a failure before it.
        let connected = connected.map_err(|_| ErrorKind::TimedOut.into()).flatten();
        let mut socket = connected.map_err(not_connected)?;
        let sent = match socket.write_all(request).await {
            // What TLS holds back goes out too.
            Ok(()) => socket.flush().await,
            failed => failed,
        };
        // A target that refused early has left its answer.
        let failure = sent.err();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let count = match (socket.read(&mut buffer).await, &failure) {
                (Ok(0), Some(error)) => return Err(call.lost(error.kind().into())),
                (Ok(count), _) => count,
                (Err(error), _) if is_turned_down(&error) => return Err(not_connected(error)),
                (Err(error), _) => return Err(call.lost(error)),
            };
            if let Some(result) = call.received(&buffer[..count])? {
                return Ok(result);
            }
        }
    }
}

/// A blocking client. Not for async code, which it would hold up: that has [`Client`].
#[derive(Clone, Debug)]
pub struct BlockingClient(Client);

impl BlockingClient {
    /// A client of the target there. Nothing is opened yet.
    pub fn new(endpoint: impl Into<Endpoint>) -> Self {
        BlockingClient(Client::new(endpoint))
    }

    /// The same with another bound on the time that a call may take.
    pub fn with_timeout(self, timeout: Duration) -> Self {
        BlockingClient(self.0.with_timeout(timeout))
    }

    /// Calls a method of ours.
    pub fn request<M: Method>(&self, params: &M) -> Result<M::Result, ClientError> {
        self.run(self.0.request(params))
    }

    /// Calls any method; `params` is an object, or null for none.
    pub fn call(&self, method: &str, params: Value) -> Result<Value, ClientError> {
        self.run(self.0.call(method, params))
    }

    /// A call is short and rare: a runtime of its own costs it little.
    fn run<T>(&self, call: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| ClientError::Connect {
                endpoint: Box::new(self.0.endpoint.clone()),
                source,
            })?;
        let outcome = runtime.block_on(call);
        // A name that nobody resolves in time is not waited for.
        runtime.shutdown_background();
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::code;
    use crate::types::{DeleteVolume, GetPools};
    use serde_json::json;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::thread;

    /// A server that reads one request and writes `answer` in pieces; returns what it read.
    fn serve(answer: &'static str) -> (tempfile::TempDir, PathBuf, thread::JoinHandle<Value>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rpc.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut requests = ValueStream::new(1 << 20);
            let mut buffer = [0; 512];
            let request = loop {
                if let Some(request) = requests.next_value().unwrap() {
                    break request;
                }
                let count = socket.read(&mut buffer).unwrap();
                assert_ne!(count, 0, "the client closed before it had sent a request");
                requests.push(&buffer[..count]);
            };
            for piece in answer.as_bytes().chunks(3) {
                socket.write_all(piece).unwrap();
            }
            request
        });
        (dir, path, thread)
    }

    fn runtime() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    }

    #[test]
    fn a_call_goes_there_and_back() {
        let answer = "{\n  \"jsonrpc\": \"2.0\",\n  \"id\": 1,\n  \"result\": []\n}";
        let (_dir, path, server) = serve(answer);
        let pools = BlockingClient::new(&path).request(&GetPools::default());
        assert_eq!(pools.unwrap(), []);
        let sent = json!({"jsonrpc": "2.0", "method": "pool_get_pools", "id": 1});
        assert_eq!(server.join().unwrap(), sent);

        let (_dir, path, server) = serve("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":true}\n");
        let delete = DeleteVolume {
            pool: "p".into(),
            name: "v".into(),
            force: true,
        };
        let client = Client::new(&path);
        assert!(runtime().block_on(client.request(&delete)).unwrap());
        let params = &server.join().unwrap()["params"];
        assert_eq!(params, &json!({"pool": "p", "name": "v", "force": true}));
    }

    #[test]
    fn a_refusal_keeps_code_and_data() {
        let answer = "{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":-17,\"message\":\"there is one\",\"data\":{\"name\":\"v\"}}}";
        let (_dir, path, _server) = serve(answer);
        let error = runtime()
            .block_on(Client::new(&path).call("m", Value::Null))
            .unwrap_err();
        assert_eq!(error.code(), Some(code::EXISTS));
        assert_eq!(error.refusal().unwrap().data, Some(json!({"name": "v"})));
        assert_eq!(error.to_string(), "m: there is one (code -17)");
    }

    #[test]
    fn what_goes_wrong_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("none");
        let error = BlockingClient::new(&missing)
            .call("m", Value::Null)
            .unwrap_err();
        assert!(matches!(error, ClientError::Connect { .. }), "{error}");
        for (answer, expected) in [
            ("{\"jsonrpc\":\"2.0\"", "whether it was done is not known"),
            ("hello", "begins no JSON"),
            ("[]", "not understood"),
            (
                "{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":1}",
                "another request",
            ),
            ("{\"jsonrpc\":\"2.0\",\"id\":1}", "neither result nor error"),
        ] {
            let (_dir, path, _server) = serve(answer);
            let error = runtime()
                .block_on(Client::new(&path).call("m", Value::Null))
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{answer}: {error}");
        }
    }

    #[test]
    fn a_target_that_does_not_answer_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rpc.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let patience = Duration::from_millis(20);
        let client = Client::new(&path).with_timeout(patience);
        let error = runtime()
            .block_on(client.call("m", Value::Null))
            .unwrap_err();
        assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
        let client = BlockingClient::new(&path).with_timeout(patience);
        let error = client.call("m", Value::Null).unwrap_err();
        assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    }
}
