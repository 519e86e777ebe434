//! The management API: JSON-RPC 2.0 on a unix socket, and over TCP with mutual TLS, served by the control thread.
//!
//! # Adding methods
//!
//! A method is a name and an async function from a [`Target`] and parameters to a result. Modules register theirs in a [`Methods`]
//! table before the socket opens:
//!
//! ```ignore
//! pub fn register(methods: &mut Methods, pools: &Rc<Pools>) {
//!     let pools = Rc::clone(pools);
//!     // `CreateVolume` names the method and its result (nvmf_rpc::types::Method) …
//!     methods.add(move |target, params: CreateVolume| {
//!         let pools = Rc::clone(&pools);
//!         async move { pools.create_volume(&target, params).await }
//!     });
//!     // … other methods are named here.
//!     methods.add_named("spdk_get_version", |_, _: NoParams| async { Ok(version()) });
//! }
//! ```
//!
//! What holds for all methods:
//! - Parameters are deserialised before the function runs; parameter types refuse unknown fields.
//! - The function runs on the control thread, beside everything else there: it must not block (file operations go to
//!   `tokio::task::spawn_blocking`), and borrows of cells never live across an await.
//! - It runs to its end even if the client has gone. Methods of other connections run meanwhile. What changes the target goes through
//!   [`crate::control::live`], which takes changes one at a time.
//! - A method with `_get_` in its name changes nothing: clients that may only read may call it, and no other.
//! - An error's message says what, where, and what to do.
//!
//! | module | what lives there |
//! |---|---|
//! | [`server`] | where the API is served; the unix socket's clients |
//! | [`connection`] | one connection: a stream of JSON values, bounded |
//! | [`remote`], [`tls`] | clients over TCP; their certificates, and what each may do |
//! | [`places`] | the greatest number of connections |
//! | [`socket`] | the socket file: who may connect, and what a dead target left |
//! | [`state_dir`], [`open`] | where what the API makes is kept; what is done when a default cannot be had |
//! | [`manager`], [`state`] | what the API made: kept, brought back, changed |
//! | [`bdev`] | block devices |
//! | [`spdk`] | the methods that SPDK has too |
//! | [`base`] | `rpc_get_methods`, `spdk_get_version` |

pub mod base;
pub mod bdev;
pub mod connection;
pub mod manager;
pub mod open;
pub mod places;
pub mod remote;
pub mod server;
pub mod socket;
pub mod spdk;
pub mod state;
pub mod state_dir;
pub mod tls;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use nvmf_rpc::error::code;
use nvmf_rpc::message::{Request, Response};
use nvmf_rpc::{Method, RpcError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::task::yield_now;

use crate::backend::BackingError;
use crate::control::live::LiveError;
use crate::control::target::Target;

/// Most requests of one batch: enough for any script, and few enough for answers that list all there is to be kept together.
const MAX_BATCH: usize = 100;

/// The parameters of a method that has none.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

/// What a client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Call every method.
    All,
    /// Call those that change nothing.
    Read,
}

type Answer = Pin<Box<dyn Future<Output = Result<Value, RpcError>>>>;
type Handler = Box<dyn Fn(Rc<Target>, Map<String, Value>) -> Answer>;

/// All methods, by name.
#[derive(Default)]
pub struct Methods(BTreeMap<&'static str, Handler>);

impl Methods {
    /// Adds the method that the parameters name.
    pub fn add<M, F>(&mut self, method: impl Fn(Rc<Target>, M) -> F + 'static)
    where
        M: Method + 'static,
        F: Future<Output = Result<M::Result, RpcError>> + 'static,
    {
        self.add_named(M::NAME, method);
    }

    /// Adds a method under `name`.
    pub fn add_named<P, R, F>(
        &mut self,
        name: &'static str,
        method: impl Fn(Rc<Target>, P) -> F + 'static,
    ) where
        P: DeserializeOwned,
        R: Serialize,
        F: Future<Output = Result<R, RpcError>> + 'static,
    {
        let handler = move |target, params| -> Answer {
            let params: P = match serde_json::from_value(Value::Object(params)) {
                Ok(params) => params,
                Err(error) => {
                    let error = RpcError::params(format!("parameters of {name}: {error}"));
                    return Box::pin(std::future::ready(Err(error)));
                }
            };
            let running = method(target, params);
            Box::pin(async move {
                let result = serde_json::to_value(running.await?);
                result.map_err(|error| RpcError::internal(format!("the result of {name}: {error}")))
            })
        };
        let before = self.0.insert(name, Box::new(handler));
        assert!(before.is_none(), "the method {name} is registered twice");
    }

    /// The names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.keys().copied()
    }

    /// Carries out what one JSON value asks: a request, or a batch of them one after the other. `None` where nobody waits for an answer.
    pub async fn answer(&self, target: &Rc<Target>, rights: Rights, value: Value) -> Option<Value> {
        let Value::Array(batch) = value else {
            return self.answer_one(target, rights, value).await;
        };
        if batch.is_empty() || batch.len() > MAX_BATCH {
            let message = format!(
                "a batch of {}; send 1 to {MAX_BATCH} requests in one",
                batch.len()
            );
            return Some(refusal(
                Value::Null,
                RpcError::new(code::INVALID_REQUEST, message),
            ));
        }
        let mut answers = Vec::new();
        for value in batch {
            answers.extend(self.answer_one(target, rights, value).await);
            // As between requests: the thread has others to serve.
            yield_now().await;
        }
        (!answers.is_empty()).then_some(Value::Array(answers))
    }

    async fn answer_one(&self, target: &Rc<Target>, rights: Rights, value: Value) -> Option<Value> {
        let request = match Request::from_value(value) {
            Ok(request) => request,
            Err((id, error)) => return Some(refusal(id, error)),
        };
        let outcome = match self.0.get(request.method.as_str()) {
            Some(_) if rights == Rights::Read && !request.method.contains("_get_") => {
                let message = format!(
                    "{}: this client may only read; add it to clients in [api.tls] of the target's file to let it change things",
                    request.method
                );
                Err(RpcError::new(code::ACCESS, message))
            }
            Some(handler) => handler(Rc::clone(target), request.params).await,
            None => {
                let message = format!(
                    "there is no method {:?}; rpc_get_methods lists all",
                    request.method
                );
                Err(RpcError::new(code::METHOD_NOT_FOUND, message))
            }
        };
        match &outcome {
            Ok(_) => tracing::debug!(method = %request.method, "API request done"),
            Err(error) => tracing::info!(method = %request.method, "API request refused: {error}"),
        }
        // A notification is carried out without a word.
        let id = request.id?;
        Some(to_value(Response::new(id, outcome)))
    }
}

/// An error as it is sent.
pub fn refusal(id: Value, error: RpcError) -> Value {
    to_value(Response::new(id, Err(error)))
}

fn to_value(response: Response) -> Value {
    // A response is made of values that are JSON already.
    serde_json::to_value(response).unwrap_or(Value::Null)
}

/// A change that was not made, in the API's codes.
impl From<LiveError> for RpcError {
    fn from(error: LiveError) -> Self {
        let code = match &error {
            LiveError::NoSubsystem(_) | LiveError::NoNamespace { .. } => code::NOT_FOUND,
            LiveError::SubsystemExists { .. } | LiveError::NamespaceExists { .. } => code::EXISTS,
            LiveError::NotOwner { .. } | LiveError::Discovery => code::NOT_PERMITTED,
            LiveError::Nsid(_) | LiveError::Shrink { .. } => code::INVALID,
            LiveError::Storage(error) => storage_code(&error.error),
            LiveError::Stopping => code::BUSY,
        };
        RpcError::new(code, error.to_string())
    }
}

/// The code of what is wrong with storage.
pub fn storage_code(error: &BackingError) -> i32 {
    match error {
        BackingError::Missing(_) | BackingError::NoFolder(_) | BackingError::NoDevice(_) => {
            code::NOT_FOUND
        }
        BackingError::InUse(_) => code::BUSY,
        BackingError::Open { errno, .. } | BackingError::System { errno, .. } => {
            -errno.raw_os_error()
        }
        BackingError::WrongKind { .. }
        | BackingError::TooSmall { .. }
        | BackingError::BlockSize(_)
        | BackingError::Alignment { .. } => code::INVALID,
        BackingError::Unsupported { .. } => code::NOT_SUPPORTED,
    }
}
