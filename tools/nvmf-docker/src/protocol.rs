//! The requests and answers of Docker's volume plugin protocol, as dockerd sends and reads them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// All requests: each has some of these.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Request {
    /// The volume.
    #[serde(default)]
    pub name: String,
    /// Of Create; `null` for anonymous volumes.
    #[serde(default)]
    pub opts: Option<BTreeMap<String, String>>,
    /// Of Mount and Unmount: for whom.
    #[serde(default, rename = "ID")]
    pub id: String,
    /// Of our own Grow: the size as users write it.
    #[serde(default)]
    pub size: String,
}

/// All answers: each has some of these.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Response {
    /// What went wrong; empty if nothing did.
    pub err: String,
    /// To Activate: what this plugin is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub implements: Option<Vec<&'static str>>,
    /// To Capabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// To Mount and Path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mountpoint: Option<String>,
    /// To Get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
    /// To List.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<Volume>>,
}

/// What the plugin is capable of.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Capabilities {
    /// `local`: a volume is known to the node that created it.
    pub scope: &'static str,
}

/// A volume.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Where it is mounted; empty if it is not.
    pub mountpoint: String,
    /// When it was created, RFC 3339.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub created_at: String,
    /// What `docker volume inspect` shows besides.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub status: serde_json::Map<String, serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_dockerd_writes_them() {
        let anonymous: Request = serde_json::from_str(r#"{"Name":"a1","Opts":null}"#).unwrap();
        assert_eq!(anonymous.opts, None);
        let mount: Request = serde_json::from_str(r#"{"Name":"v","ID":"1f"}"#).unwrap();
        assert_eq!((mount.name.as_str(), mount.id.as_str()), ("v", "1f"));
    }

    #[test]
    fn answers_have_only_what_belongs_to_them() {
        let response = Response {
            mountpoint: Some("/m".into()),
            ..Response::default()
        };
        assert_eq!(
            serde_json::to_string(&response).unwrap(),
            r#"{"Err":"","Mountpoint":"/m"}"#
        );
    }
}
