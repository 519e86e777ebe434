//! Requests and responses of JSON-RPC 2.0.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::{RpcError, code};

/// The one version.
pub const VERSION: &str = "2.0";

/// One request. Without an `id` it is a notification, which nobody answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The method's name.
    pub method: String,
    /// By name; empty when the request had none.
    pub params: Map<String, Value>,
    /// A string, a number or null; `None` for a notification.
    pub id: Option<Value>,
}

impl Request {
    /// Reads one request, or says why it is none; the error comes with the identifier to answer it with.
    pub fn from_value(value: Value) -> Result<Self, (Value, RpcError)> {
        let invalid = |id: &Value, message: &str| {
            let error = RpcError::new(code::INVALID_REQUEST, message);
            (id.clone(), error)
        };
        let Value::Object(mut fields) = value else {
            return Err(invalid(
                &Value::Null,
                "a request is an object with \"jsonrpc\", \"method\", \"params\" and \"id\"",
            ));
        };
        let id = fields.remove("id");
        let answer_to = match &id {
            Some(id @ (Value::String(_) | Value::Number(_) | Value::Null)) => id.clone(),
            Some(_) => {
                return Err(invalid(
                    &Value::Null,
                    "\"id\" is a string, a number or null",
                ));
            }
            None => Value::Null,
        };
        match fields.remove("jsonrpc") {
            Some(Value::String(version)) if version == VERSION => {}
            _ => return Err(invalid(&answer_to, "\"jsonrpc\" must be \"2.0\"")),
        }
        let Some(Value::String(method)) = fields.remove("method") else {
            return Err(invalid(
                &answer_to,
                "\"method\" is missing or no string; rpc_get_methods lists all",
            ));
        };
        let params = match fields.remove("params") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(params)) => params,
            Some(_) => {
                let error = RpcError::params("\"params\" is an object: parameters go by name");
                return Err((answer_to, error));
            }
        };
        Ok(Request { method, params, id })
    }

    /// The request as it is sent.
    pub fn to_value(&self) -> Value {
        let mut fields = Map::new();
        fields.insert("jsonrpc".into(), VERSION.into());
        fields.insert("method".into(), self.method.clone().into());
        if !self.params.is_empty() {
            fields.insert("params".into(), Value::Object(self.params.clone()));
        }
        if let Some(id) = &self.id {
            fields.insert("id".into(), id.clone());
        }
        Value::Object(fields)
    }
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// [`VERSION`].
    pub jsonrpc: String,
    /// The request's, null where it could not be read.
    pub id: Value,
    /// What the method returned, where it did what was asked.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pub result: Option<Value>,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RpcError>,
}

/// A `null` that is there is a result too.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Response {
    /// The answer to the request called `id`.
    pub fn new(id: Value, outcome: Result<Value, RpcError>) -> Self {
        let (result, error) = match outcome {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(error)),
        };
        Response {
            jsonrpc: VERSION.to_owned(),
            id,
            result,
            error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_go_there_and_back() {
        let value = json!({"jsonrpc": "2.0", "method": "m", "params": {"a": 1}, "id": "x"});
        let request = Request::from_value(value.clone()).unwrap();
        assert_eq!(
            (request.method.as_str(), &request.params["a"]),
            ("m", &json!(1))
        );
        assert_eq!(request.to_value(), value);
        let notification = json!({"jsonrpc": "2.0", "method": "m"});
        let request = Request::from_value(notification.clone()).unwrap();
        assert_eq!(
            (request.id.is_none(), request.to_value()),
            (true, notification)
        );
    }

    #[test]
    fn what_is_no_request_is_refused_with_its_identifier() {
        for (value, id, code) in [
            (json!([1]), Value::Null, code::INVALID_REQUEST),
            (
                json!({"method": "m", "id": 3}),
                json!(3),
                code::INVALID_REQUEST,
            ),
            (
                json!({"jsonrpc": "1.0", "method": "m", "id": 3}),
                json!(3),
                code::INVALID_REQUEST,
            ),
            (
                json!({"jsonrpc": "2.0", "id": 3}),
                json!(3),
                code::INVALID_REQUEST,
            ),
            (
                json!({"jsonrpc": "2.0", "method": 7, "id": "a"}),
                json!("a"),
                code::INVALID_REQUEST,
            ),
            (
                json!({"jsonrpc": "2.0", "method": "m", "id": {}}),
                Value::Null,
                code::INVALID_REQUEST,
            ),
            (
                json!({"jsonrpc": "2.0", "method": "m", "params": [1], "id": 3}),
                json!(3),
                code::INVALID_PARAMS,
            ),
        ] {
            let (answer_to, error) = Request::from_value(value.clone()).unwrap_err();
            assert_eq!((answer_to, error.code), (id, code), "{value}");
        }
    }

    #[test]
    fn a_null_result_is_a_result() {
        let text = "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":null}";
        let response: Response = serde_json::from_str(text).unwrap();
        assert_eq!(response.result, Some(Value::Null));
        let text = "{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":-2,\"message\":\"m\"}}";
        let response: Response = serde_json::from_str(text).unwrap();
        assert_eq!((response.result, response.error.unwrap().code), (None, -2));
    }
}
