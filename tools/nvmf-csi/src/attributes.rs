//! Where a volume is, in the words of volume and publish contexts. They are those of csi-driver-nvmf, so that its volumes can
//! be used as they are.

use std::collections::HashMap;

use nvmf_rpc::types::Volume;
use nvmf_volume::{Address, HostIdentity, NamespaceSelector};
use serde::{Deserialize, Serialize};
use tonic::Status;
use uuid::Uuid;

use crate::Result;

/// The target's address.
pub const TR_ADDR: &str = "targetTrAddr";
/// The target's port.
pub const TR_PORT: &str = "targetTrPort";
/// The transport.
pub const TR_TYPE: &str = "targetTrType";
/// The subsystem.
pub const NQN: &str = "nqn";
/// The namespace's UUID.
pub const DEVICE_UUID: &str = "deviceUUID";
/// The namespace's NGUID or EUI64, in hexadecimal digits.
pub const DEVICE_EUI: &str = "deviceEUI";
/// The namespace's number.
pub const DEVICE_ID: &str = "deviceID";
/// As whom to connect, where it is not the node itself.
pub const HOST_NQN: &str = "hostNqn";
/// The same for the host identifier.
pub const HOST_ID: &str = "hostId";
/// Words for mkfs.
pub const MKFS_OPTIONS: &str = "mkfsOptions";
/// What carries a volume of a pool.
pub const TRANSPORT: &str = "transport";
/// The file system where a capability names none.
pub const FS_TYPE: &str = "fsType";

/// A context of the interface.
pub type Context = HashMap<String, String>;

/// The port of NVMe/TCP that IANA gives for I/O.
const DEFAULT_PORT: u16 = 4420;

/// Where a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// The port.
    pub address: Address,
    /// The subsystem.
    pub subnqn: String,
    /// UUID of the namespace.
    pub uuid: Option<Uuid>,
    /// NGUID of it.
    pub nguid: Option<Uuid>,
    /// EUI64 of it.
    pub eui64: Option<u64>,
    /// Its number.
    pub nsid: Option<u32>,
    /// HOSTNQN, where it is not the node's.
    pub hostnqn: Option<String>,
    /// HOSTID, the same.
    pub hostid: Option<Uuid>,
}

/// Whether a volume's context says where it is: one that somebody else made.
pub fn is_static(context: &Context) -> bool {
    context.contains_key(TR_ADDR)
}

/// What nodes are told of a volume of a pool.
pub fn publish(volume: &Volume, traddr: Option<&str>) -> Result<Context> {
    let reached = volume
        .reach(traddr)
        .map_err(|error| Status::failed_precondition(error.to_string()))?;
    Ok(Context::from([
        (TR_ADDR.to_owned(), reached.traddr.to_owned()),
        (TR_PORT.to_owned(), reached.port.to_string()),
        (TR_TYPE.to_owned(), reached.transport.name().to_owned()),
        (NQN.to_owned(), volume.nqn.clone()),
        (DEVICE_UUID.to_owned(), volume.uuid.clone()),
    ]))
}

impl Location {
    /// Reads the contexts of a call; what the controller published goes before what the volume says.
    pub fn read(volume: &Context, published: &Context) -> Result<Location> {
        let get = |name: &str| {
            let value = published.get(name).or_else(|| volume.get(name));
            value.map(|value| value.trim()).filter(|v| !v.is_empty())
        };
        let invalid = |name: &str, why: &str| Status::invalid_argument(format!("{name}: {why}"));
        let need = |name: &str| {
            get(name).ok_or_else(|| {
                invalid(
                    name,
                    "missing: neither publish_context nor volume_context says where the volume is",
                )
            })
        };
        let address = match get(TR_TYPE).unwrap_or("tcp").to_ascii_lowercase().as_str() {
            "tcp" => Address::tcp,
            "rdma" => Address::rdma,
            _ => return Err(invalid(TR_TYPE, "only tcp and rdma are supported")),
        };
        let port = match get(TR_PORT) {
            None => DEFAULT_PORT,
            Some(port) => port
                .parse()
                .map_err(|_| invalid(TR_PORT, "it is no number of a port"))?,
        };
        let uuid = |name: &str| -> Result<Option<Uuid>> {
            let parse = |text: &str| {
                let text = text.strip_prefix("uuid.").unwrap_or(text);
                Uuid::parse_str(text).map_err(|_| invalid(name, "it is no UUID"))
            };
            get(name).map(parse).transpose()
        };
        let (mut nguid, mut eui64, mut nsid) = (None, None, None);
        if let Some(text) = get(DEVICE_EUI) {
            let digits = text.strip_prefix("eui.").unwrap_or(text);
            let bad = || invalid(DEVICE_EUI, "it is not 16 or 32 hexadecimal digits");
            match digits.len() {
                16 => eui64 = Some(u64::from_str_radix(digits, 16).map_err(|_| bad())?),
                32 => nguid = Some(Uuid::try_parse(digits).map_err(|_| bad())?),
                _ => return Err(bad()),
            }
        }
        if let Some(text) = get(DEVICE_ID) {
            let bad = "it is no number of a namespace; say deviceUUID or deviceEUI instead";
            nsid = Some(text.parse().map_err(|_| invalid(DEVICE_ID, bad))?);
        }
        Ok(Location {
            address: address(need(TR_ADDR)?, port),
            subnqn: need(NQN)?.to_owned(),
            uuid: uuid(DEVICE_UUID)?,
            nguid,
            eui64,
            nsid,
            hostnqn: get(HOST_NQN).map(str::to_owned),
            hostid: uuid(HOST_ID)?,
        })
    }

    /// Which namespace.
    pub fn selector(&self) -> NamespaceSelector {
        match (self.uuid, self.nguid, self.eui64, self.nsid) {
            (Some(uuid), ..) => NamespaceSelector::Uuid(uuid),
            (_, Some(nguid), ..) => NamespaceSelector::Nguid(nguid),
            (_, _, Some(eui64), _) => NamespaceSelector::Eui64(eui64),
            (.., Some(nsid)) => NamespaceSelector::Nsid(nsid),
            _ => NamespaceSelector::Only,
        }
    }

    /// As whom to connect: the node, where the volume does not say otherwise.
    pub fn host(&self, node: &HostIdentity) -> HostIdentity {
        HostIdentity {
            hostnqn: self.hostnqn.clone().unwrap_or_else(|| node.hostnqn.clone()),
            hostid: self.hostid.unwrap_or(node.hostid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(pairs: &[(&str, &str)]) -> Context {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    const PLACE: [(&str, &str); 2] = [(TR_ADDR, "192.0.2.1"), (NQN, "nqn.2024-01.org.example:v")];

    #[test]
    fn namespaces_are_found_by_what_is_given() {
        let selector = |name: &str, value: &str| {
            let volume = context(&[PLACE[0], PLACE[1], (name, value)]);
            Location::read(&volume, &Context::new()).map(|location| location.selector())
        };
        let uuid = "0f8fad5b-d9cb-469f-a165-70867728950e";
        let parsed = Uuid::parse_str(uuid).unwrap();
        assert_eq!(
            selector(DEVICE_UUID, uuid).unwrap(),
            NamespaceSelector::Uuid(parsed)
        );
        assert_eq!(
            selector(DEVICE_EUI, &format!("eui.{}", parsed.simple())).unwrap(),
            NamespaceSelector::Nguid(parsed)
        );
        assert_eq!(
            selector(DEVICE_EUI, "00000000000000ff").unwrap(),
            NamespaceSelector::Eui64(255)
        );
        assert_eq!(
            selector(DEVICE_ID, "7").unwrap(),
            NamespaceSelector::Nsid(7)
        );
        assert_eq!(selector("other", "").unwrap(), NamespaceSelector::Only);
        for (name, value) in [
            (DEVICE_UUID, "x"),
            (DEVICE_EUI, "12"),
            (DEVICE_EUI, "eui.zz"),
            (DEVICE_ID, "SN_MODEL"),
            (TR_PORT, "70000"),
            (TR_TYPE, "fc"),
        ] {
            assert!(selector(name, value).is_err(), "{name}={value}");
        }
    }

    #[test]
    fn what_was_published_goes_first() {
        let volume = context(&[PLACE[0], PLACE[1], (TR_PORT, "4420")]);
        let published = context(&[(TR_ADDR, "192.0.2.9"), (TR_PORT, "5000")]);
        let location = Location::read(&volume, &published).unwrap();
        assert_eq!(location.address, Address::tcp("192.0.2.9", 5000));
        let by_rdma = context(&[PLACE[0], PLACE[1], (TR_TYPE, "RDMA"), (TR_PORT, "4420")]);
        let location = Location::read(&by_rdma, &published).unwrap();
        assert_eq!(location.address, Address::rdma("192.0.2.9", 5000));
        for missing in PLACE {
            let rest: Vec<_> = PLACE.into_iter().filter(|pair| *pair != missing).collect();
            assert!(Location::read(&context(&rest), &Context::new()).is_err());
        }
    }
}
