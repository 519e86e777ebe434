//! Secrets of calls: a certificate for the target's management API, and nothing else; none is shown.
//!
//! The driver shows that API who it is by the permissions of a socket, or by a certificate from a file that it was
//! started with. A call to the controller may bring another certificate, under the names that Kubernetes and cert-manager give to
//! the parts of one, and is then made as its holder. What is given beside it, or to a
//! node, which asks the target for nothing in such a call, is
//! refused instead of ignored: whoever gives a key expects it to be used. What a message prints for `Debug` never has a secret's
//! value in it, whoever prints it.

use std::collections::HashMap;
use std::fmt;

use nvmf_rpc::tls::ClientTexts;
use tonic::Status;

use crate::Result;
use crate::proto::*;

/// Secret: the authorities that the target's certificate may be signed by.
const CA: &str = "ca.crt";
/// Secret: the client's certificate, with the intermediate ones after it.
const CERTIFICATE: &str = "tls.crt";
/// Secret: its private key.
const KEY: &str = "tls.key";

/// The certificate in secrets: all three parts of one, or none and nothing else.
pub fn certificate(secrets: &HashMap<String, String>) -> Result<Option<ClientTexts>> {
    if secrets.is_empty() {
        return Ok(None);
    }
    let mut others = secrets.clone();
    let mut missing = Vec::new();
    let mut take = |name: &'static str| {
        others.remove(name).unwrap_or_else(|| {
            missing.push(name);
            String::new()
        })
    };
    let (ca, certificate, key) = (take(CA), take(CERTIFICATE), take(KEY));
    none(&others)?;
    if !missing.is_empty() {
        return Err(Status::invalid_argument(format!(
            "secrets: {} missing: a certificate for the target's management API is {CA}, {CERTIFICATE} and {KEY}",
            missing.join(", ")
        )));
    }
    Ok(Some(ClientTexts {
        ca,
        certificate,
        key,
        names: [CA, CERTIFICATE, KEY],
    }))
}

/// Refuses secrets, by their names.
pub fn none(secrets: &HashMap<String, String>) -> Result<()> {
    if secrets.is_empty() {
        return Ok(());
    }
    let mut names: Vec<_> = secrets.keys().map(String::as_str).collect();
    names.sort_unstable();
    Err(Status::invalid_argument(format!(
        "secrets: this driver has no use for {}: take the secret out of the StorageClass or volume",
        names.join(", ")
    )))
}

/// Secrets as they may be shown.
struct Redacted<'a>(&'a HashMap<String, String>);

impl fmt::Debug for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<_> = self.0.keys().collect();
        names.sort_unstable();
        f.debug_map()
            .entries(names.into_iter().map(|name| (name, "***")))
            .finish()
    }
}

/// `Debug` of messages with secrets; the build leaves it out for them.
macro_rules! redacted {
    ($($message:ident: $($field:ident)*;)*) => {$(
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message))
                    $(.field(stringify!($field), &self.$field))*
                    .field("secrets", &Redacted(&self.secrets))
                    .finish()
            }
        }

        #[cfg(test)]
        impl WithSecrets for $message {
            fn with(secrets: HashMap<String, String>) -> Self {
                $message { secrets, ..Default::default() }
            }
        }
    )*};
}

redacted! {
    CreateVolumeRequest: name capacity_range volume_capabilities parameters volume_content_source accessibility_requirements
        mutable_parameters;
    DeleteVolumeRequest: volume_id;
    ControllerPublishVolumeRequest: volume_id node_id volume_capability readonly volume_context;
    ControllerUnpublishVolumeRequest: volume_id node_id;
    ValidateVolumeCapabilitiesRequest: volume_id volume_context volume_capabilities parameters mutable_parameters;
    ControllerModifyVolumeRequest: volume_id mutable_parameters;
    ControllerExpandVolumeRequest: volume_id capacity_range volume_capability;
    CreateSnapshotRequest: source_volume_id name parameters;
    DeleteSnapshotRequest: snapshot_id;
    ListSnapshotsRequest: max_entries starting_token source_volume_id snapshot_id;
    GetSnapshotRequest: snapshot_id;
    CreateVolumeGroupSnapshotRequest: name source_volume_ids parameters;
    DeleteVolumeGroupSnapshotRequest: group_snapshot_id snapshot_ids;
    GetVolumeGroupSnapshotRequest: group_snapshot_id snapshot_ids;
    NodeStageVolumeRequest: volume_id publish_context staging_target_path volume_capability volume_context;
    NodePublishVolumeRequest: volume_id publish_context staging_target_path target_path volume_capability readonly
        volume_context;
    NodeExpandVolumeRequest: volume_id volume_path capacity_range staging_target_path volume_capability;
}

#[cfg(test)]
trait WithSecrets: fmt::Debug {
    fn with(secrets: HashMap<String, String>) -> Self;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown<T: WithSecrets>() -> String {
        let secrets = [("dhchapKey".to_owned(), "DHHC-1:00:hidden:".to_owned())];
        format!("{:?}", T::with(secrets.into()))
    }

    #[test]
    fn no_message_shows_a_secret() {
        for shown in [
            shown::<CreateVolumeRequest>(),
            shown::<DeleteVolumeRequest>(),
            shown::<ControllerPublishVolumeRequest>(),
            shown::<ControllerUnpublishVolumeRequest>(),
            shown::<ValidateVolumeCapabilitiesRequest>(),
            shown::<ControllerModifyVolumeRequest>(),
            shown::<ControllerExpandVolumeRequest>(),
            shown::<CreateSnapshotRequest>(),
            shown::<DeleteSnapshotRequest>(),
            shown::<ListSnapshotsRequest>(),
            shown::<GetSnapshotRequest>(),
            shown::<CreateVolumeGroupSnapshotRequest>(),
            shown::<DeleteVolumeGroupSnapshotRequest>(),
            shown::<GetVolumeGroupSnapshotRequest>(),
            shown::<NodeStageVolumeRequest>(),
            shown::<NodePublishVolumeRequest>(),
            shown::<NodeExpandVolumeRequest>(),
        ] {
            assert!(
                shown.contains("dhchapKey") && !shown.contains("hidden"),
                "{shown}"
            );
        }
    }

    /// A message with secrets that is added to the interface must be added here.
    #[test]
    fn all_messages_with_secrets_are_known() {
        let interface = include_str!("../proto/csi.proto");
        let build = include_str!("../build.rs");
        let mut message = "";
        let mut found = 0;
        for line in interface.lines() {
            if let Some(name) = line.strip_prefix("message ") {
                message = name.split(' ').next().unwrap();
            }
            if line.contains("map<string, string> secrets") {
                found += 1;
                assert!(build.contains(&format!("\"{message}\"")), "{message}");
            }
        }
        assert_eq!(found, 17);
    }

    #[test]
    fn what_is_given_is_refused_by_name_alone() {
        none(&HashMap::new()).unwrap();
        let status = none(&[("key".to_owned(), "hidden".to_owned())].into()).unwrap_err();
        assert!(status.message().contains("key") && !status.message().contains("hidden"));
    }

    #[test]
    fn a_certificate_is_whole_and_alone() {
        let given = |names: &[&str]| {
            let pairs = names.iter().map(|name| (name.to_string(), "hidden".into()));
            certificate(&pairs.collect())
        };
        assert_eq!(given(&[]).unwrap(), None);
        let all = given(&["ca.crt", "tls.crt", "tls.key"]).unwrap().unwrap();
        assert!(!format!("{all:?}").contains("hidden"));
        for (names, said) in [
            (&["tls.crt", "tls.key"][..], "ca.crt missing"),
            (&["ca.crt"], "tls.crt, tls.key missing"),
            (
                &["ca.crt", "tls.crt", "tls.key", "password"],
                "no use for password",
            ),
            (&["dhchapKey"], "no use for dhchapKey"),
        ] {
            let status = given(names).unwrap_err();
            assert!(status.message().contains(said), "{status}");
            assert!(!status.message().contains("hidden"), "{status}");
        }
    }
}
