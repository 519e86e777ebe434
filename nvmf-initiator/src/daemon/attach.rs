//! Having a namespace attached: what a volume manager asks for, who may have died at any point of an earlier attempt.
//!
//! It asks for a state and not for a step, so that asking again is always right: what is connected stays connected, what is
//! being connected is waited for, and a controller that was given up is connected anew when nobody uses its devices.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::api::{
    AttachRequest, ControllerStatus, Failure, FailureKind, NamespaceStatus, Reply, Selection,
};
use super::attachment::AssociationKey;
use super::node::Node;

impl Node {
    /// Returns when this association is not being connected.
    pub(super) async fn settled(&self, association: &AssociationKey<'_>) {
        loop {
            // Before the look, so that no change after it is missed.
            let changed = self.shared.changed.notified();
            if !self.is_connecting(association) {
                return;
            }
            changed.await;
        }
    }

    /// See [`super::api::Request::Attach`].
    pub(super) async fn attach(&self, request: AttachRequest) -> Result<Reply, Failure> {
        let association = AssociationKey::of(&request.connect);
        let deadline = Instant::now() + Duration::from_millis(request.timeout_ms.into());
        loop {
            let changed = self.shared.changed.notified();
            let waits_for = match self.attached(&association) {
                Some(attachment) => {
                    let status = attachment.status();
                    if status.is_given_up() {
                        // Refused while somebody uses a device of it: whose I/O failed must see that it did.
                        let what = Selection::Device(status.name.clone());
                        self.disconnect(&what, false).await.map_err(|failure| {
                            let FailureKind::Busy = failure.kind else {
                                return failure;
                            };
                            FailureKind::Busy.because(format!(
                                "{} was given up ({}) and its device is still in use: {failure}; end that use, then \
                                 attach again",
                                status.subnqn, status.state
                            ))
                        })?;
                        continue;
                    }
                    match usable(&request, &status)? {
                        None => return Ok(Reply::Connected(status)),
                        Some(waits_for) => waits_for,
                    }
                }
                None if self.is_connecting(&association) => "it is being connected".to_owned(),
                None => {
                    // Its own limit of time is the option `connect_timeout_ms`.
                    self.connect(request.connect.clone()).await?;
                    continue;
                }
            };
            if timeout_at(deadline, changed).await.is_err() {
                return Err(FailureKind::Unreachable.because(format!(
                    "{} at {} is not ready after {} ms: {waits_for}",
                    association.subnqn, association.address, request.timeout_ms
                )));
            }
        }
    }
}

/// What must still be waited for, if anything.
fn usable(request: &AttachRequest, status: &ControllerStatus) -> Result<Option<String>, Failure> {
    if !status.is_live() {
        return Ok(Some(status.state.clone()));
    }
    let Some(namespace) = request.namespace.find(&status.namespaces)? else {
        return Ok(Some(format!("it has no {} yet", request.namespace)));
    };
    let NamespaceStatus {
        nsid,
        size_bytes,
        device,
        problem,
        ..
    } = namespace;
    if let Some(problem) = problem {
        return Err(FailureKind::System.because(format!("namespace {nsid}: {problem}")));
    }
    if *size_bytes < request.min_size_bytes {
        return Ok(Some(format!(
            "namespace {nsid} has {size_bytes} bytes, and {} are waited for",
            request.min_size_bytes
        )));
    }
    Ok(device
        .is_none()
        .then(|| format!("namespace {nsid} has no device yet")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;
    use crate::core::namespace::NamespaceIdentity;
    use crate::daemon::api::{ConnectRequest, LIVE, NamespaceSelector};
    use crate::host::HostIdentity;
    use crate::options::Target;
    use uuid::Uuid;

    fn namespace(nsid: u32) -> NamespaceStatus {
        NamespaceStatus {
            nsid,
            identity: NamespaceIdentity {
                uuid: Some(Uuid::from_u128(nsid.into())),
                ..Default::default()
            },
            size_bytes: 100,
            block_bytes: 1,
            read_only: false,
            block: "fuse".into(),
            device: Some("/dev/x".into()),
            uri: None,
            by_id: None,
            problem: None,
        }
    }

    fn waits_for(
        namespace: NamespaceSelector,
        state: &str,
        namespaces: &[NamespaceStatus],
    ) -> Result<Option<String>, Failure> {
        let request = AttachRequest {
            connect: ConnectRequest {
                target: Target {
                    address: Address::tcp("h", 1),
                    subnqn: "n".into(),
                    options: Default::default(),
                },
                host: HostIdentity {
                    hostnqn: "h".into(),
                    hostid: Uuid::nil(),
                },
                block: "auto".into(),
            },
            namespace,
            min_size_bytes: 50,
            timeout_ms: 1,
        };
        let status = ControllerStatus {
            name: "nvmf0".into(),
            subnqn: "n".into(),
            address: "tcp://h:1".into(),
            hostnqn: "h".into(),
            state: state.into(),
            cntlid: 1,
            serial: String::new(),
            model: String::new(),
            firmware: String::new(),
            queues: 1,
            namespaces: namespaces.to_vec(),
        };
        usable(&request, &status)
    }

    #[test]
    fn an_attachment_is_usable_when_live_and_large_enough_with_a_device() {
        let (one, two) = (namespace(1), namespace(2));
        let nsid = NamespaceSelector::Nsid(2);
        let both = [one.clone(), two.clone()];
        assert_eq!(waits_for(nsid, LIVE, &both).unwrap(), None);
        let uuid = NamespaceSelector::Uuid(Uuid::from_u128(2));
        assert_eq!(waits_for(uuid, LIVE, &both).unwrap(), None);
        let why = waits_for(nsid, "lost: cut", &both).unwrap().unwrap();
        assert_eq!(why, "lost: cut");
        let why = waits_for(nsid, LIVE, &[one]).unwrap().unwrap();
        assert!(why.contains("no namespace 2"), "{why}");
        let small = NamespaceStatus {
            size_bytes: 49,
            ..two.clone()
        };
        let why = waits_for(nsid, LIVE, &[small]).unwrap().unwrap();
        assert!(why.contains("49 bytes"), "{why}");
        let without = NamespaceStatus {
            device: None,
            ..two.clone()
        };
        let why = waits_for(nsid, LIVE, &[without]).unwrap().unwrap();
        assert!(why.contains("no device"), "{why}");
        let broken = NamespaceStatus {
            problem: Some("no loop device".into()),
            ..two
        };
        let failure = waits_for(nsid, LIVE, &[broken]).unwrap_err();
        assert_eq!(failure.kind, FailureKind::System);
    }

    #[test]
    fn the_only_namespace_must_be_the_only_one() {
        let both = [namespace(1), namespace(2)];
        assert_eq!(
            waits_for(NamespaceSelector::Only, LIVE, &both[..1]).unwrap(),
            None
        );
        let failure = waits_for(NamespaceSelector::Only, LIVE, &both).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Usage);
    }
}
