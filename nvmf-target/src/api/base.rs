//! Methods about the API itself, in SPDK's form.

use nvmf_rpc::RpcError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Methods, NoParams};

/// `rpc_get_methods`. Both switches are SPDK's: nothing here changes with the process's state, and no method has aliases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GetMethods {
    #[serde(default, rename = "current")]
    _current: bool,
    #[serde(default, rename = "include_aliases")]
    _include_aliases: bool,
}

/// The version in SPDK's form.
#[derive(Debug, Serialize)]
struct Version {
    version: String,
    fields: Value,
}

/// Adds the methods of this module; the last to be called, so that it knows all the others.
pub fn register(methods: &mut Methods) {
    methods.add_named("spdk_get_version", |_, _: NoParams| async { Ok(version()) });
    let mut names: Vec<&'static str> = methods.names().chain(["rpc_get_methods"]).collect();
    names.sort_unstable();
    methods.add_named("rpc_get_methods", move |_, _: GetMethods| {
        let names = names.clone();
        async { Ok::<_, RpcError>(names) }
    });
}

/// Whoever asks an SPDK target by this method gets our name and version: nobody shall take us for it.
fn version() -> Version {
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    Version {
        version: format!("nvmf-target v{}", env!("CARGO_PKG_VERSION")),
        fields: json!({
            "major": number(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": number(env!("CARGO_PKG_VERSION_MINOR")),
            "patch": number(env!("CARGO_PKG_VERSION_PATCH")),
            "suffix": env!("CARGO_PKG_VERSION_PRE"),
        }),
    }
}
