//! From a volume's listeners to the address that a host connects to.

use crate::types::Volume;

/// Why a volume has no address for hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// No listener of the target speaks TCP.
    #[error(
        "volume {volume}: the target listens nowhere over TCP: add a listener to its configuration"
    )]
    NoTcp {
        /// The volume.
        volume: String,
    },
    /// The listener takes every address of its machine, and none of them is known here.
    #[error(
        "volume {volume}: the target listens on all of its addresses ({traddr}) and does not say one that leads to it: \
         give one with --traddr ADDRESS"
    )]
    AnyAddress {
        /// The volume.
        volume: String,
        /// What it listens on.
        traddr: String,
    },
    /// The listener's port is none.
    #[error("volume {volume}: the target's port '{trsvcid}' is no number of a port")]
    Port {
        /// The volume.
        volume: String,
        /// What the target said.
        trsvcid: String,
    },
}

impl Volume {
    /// Address and port that hosts connect to: those of the first TCP listener, or `traddr`, which the administrator gave,
    /// with its port.
    pub fn reach<'a>(&'a self, traddr: Option<&'a str>) -> Result<(&'a str, u16), Unreachable> {
        let volume = || self.name.clone();
        let mut listeners = self.listeners.iter();
        let listener = listeners
            .find(|listener| listener.trtype.eq_ignore_ascii_case("tcp"))
            .ok_or_else(|| Unreachable::NoTcp { volume: volume() })?;
        let port = listener.trsvcid.parse().map_err(|_| Unreachable::Port {
            volume: volume(),
            trsvcid: listener.trsvcid.clone(),
        })?;
        match (traddr, listener.traddr.as_str()) {
            (Some(traddr), _) => Ok((traddr, port)),
            (None, "0.0.0.0" | "::") => Err(Unreachable::AnyAddress {
                volume: volume(),
                traddr: listener.traddr.clone(),
            }),
            (None, own) => Ok((own, port)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(listeners: &[(&str, &str, &str)]) -> Volume {
        let listeners: Vec<_> = listeners
            .iter()
            .map(|(trtype, traddr, trsvcid)| {
                serde_json::json!({
                    "trtype": trtype, "adrfam": "IPv4", "traddr": traddr, "trsvcid": trsvcid,
                })
            })
            .collect();
        serde_json::from_value(serde_json::json!({
            "pool": "p", "name": "v", "id": "i", "size_bytes": 1, "allocated_bytes": 0, "block_size": 4096, "nqn": "n", "nsid": 1,
            "uuid": "", "nguid": "", "read_only": false, "hosts": [], "connected_hosts": [], "source": null, "created": "",
            "listeners": listeners,
        }))
        .unwrap()
    }

    #[test]
    fn the_address_is_a_tcp_listener_or_what_was_given() {
        let both = volume(&[("RDMA", "192.0.2.1", "4421"), ("TCP", "192.0.2.1", "4420")]);
        assert_eq!(both.reach(None), Ok(("192.0.2.1", 4420)));
        assert_eq!(both.reach(Some("store")), Ok(("store", 4420)));
        for any in ["0.0.0.0", "::"] {
            let any = volume(&[("TCP", any, "4420")]);
            let refused = any.reach(None).unwrap_err();
            assert!(refused.to_string().contains("--traddr"), "{refused}");
            assert_eq!(any.reach(Some("store")), Ok(("store", 4420)));
        }
        let none = volume(&[("RDMA", "192.0.2.1", "4421")]);
        assert!(matches!(none.reach(None), Err(Unreachable::NoTcp { .. })));
        let odd = volume(&[("TCP", "192.0.2.1", "x")]);
        assert!(matches!(odd.reach(None), Err(Unreachable::Port { .. })));
    }
}
