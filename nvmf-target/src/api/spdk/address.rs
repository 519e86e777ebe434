//! Transport addresses in SPDK's words.

use std::net::{IpAddr, SocketAddr};

use nvmf_rpc::RpcError;
use nvmf_rpc::types::ListenAddress;
use serde::Deserialize;

use crate::config::{Address, Carrier};

/// `listen_address` as clients give it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GivenAddress {
    trtype: String,
    adrfam: Option<String>,
    traddr: String,
    trsvcid: Option<String>,
}

impl GivenAddress {
    /// The address, complete and in the one form that it is kept in.
    pub fn complete(self) -> Result<ListenAddress, RpcError> {
        let address = ListenAddress {
            trtype: self.trtype,
            adrfam: self.adrfam.unwrap_or_else(|| "".to_owned()),
            traddr: self.traddr,
            trsvcid: self.trsvcid.unwrap_or_default(),
        };
        Ok(describe(parse(&address)?))
    }
}

/// An address that can be listened on.
pub fn parse(address: &ListenAddress) -> Result<Address, RpcError> {
    let carrier = carrier(&address.trtype)?;
    let ip: IpAddr = address.traddr.parse().map_err(|_| {
        RpcError::invalid(format!(
            "traddr {:?} is no IP address; write such as 10.0.0.5, fd00::5 or 0.0.0.0",
            address.traddr
        ))
    })?;
    let family = family(ip);
    if !address.adrfam.is_empty() && !address.adrfam.eq_ignore_ascii_case(family) {
        return Err(RpcError::invalid(format!(
            "adrfam is {:?}, but {ip} is an {family} address",
            address.adrfam
        )));
    }
    match address.trsvcid.parse::<u16>() {
        Ok(port) if port != 0 => Ok(Address {
            carrier,
            socket: SocketAddr::new(ip, port),
        }),
        _ => Err(RpcError::invalid(format!(
            "trsvcid {:?} is no port; write one such as \"4420\"",
            address.trsvcid
        ))),
    }
}

/// An address as results have it.
pub fn describe(address: Address) -> ListenAddress {
    let socket = address.socket;
    ListenAddress {
        trtype: trtype(address.carrier).to_owned(),
        adrfam: family(socket.ip()).to_owned(),
        traddr: socket.ip().to_string(),
        trsvcid: socket.port().to_string(),
    }
}

/// A transport by its name, in either case.
pub fn carrier(trtype: &str) -> Result<Carrier, RpcError> {
    let known = [Carrier::Tcp, Carrier::Rdma].into_iter();
    let mut named = known.filter(|carrier| self::trtype(*carrier).eq_ignore_ascii_case(trtype));
    let unknown = || RpcError::invalid(format!("trtype {trtype:?} is unknown; write TCP or RDMA"));
    named.next().ok_or_else(unknown)
}

/// A transport's name.
pub fn trtype(carrier: Carrier) -> &'static str {
    match carrier {
        Carrier::Tcp => "TCP",
        Carrier::Rdma => "RDMA",
    }
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvmf_rpc::error::code;
    use serde_json::{Value, json};

    fn given(value: Value) -> Result<ListenAddress, i32> {
        let given: GivenAddress = serde_json::from_value(value).unwrap();
        given.complete().map_err(|error| error.code)
    }

    #[test]
    fn addresses_have_one_form() {
        let short = given(json!({"trtype": "tcp", "traddr": "10.0.0.5", "trsvcid": "4420"}));
        let long = given(json!({
            "trtype": "TCP", "adrfam": "ipv4", "traddr": "10.0.0.5", "trsvcid": "04420",
        }));
        assert_eq!(short, long);
        let rdma = given(json!({"trtype": "rdma", "traddr": "10.0.0.5", "trsvcid": "4420"}));
        assert_eq!(rdma.unwrap().trtype, "RDMA");
        let v6 = given(json!({"trtype": "TCP", "traddr": "FD00:0::5", "trsvcid": "1"})).unwrap();
        assert_eq!(
            (v6.adrfam.as_str(), v6.traddr.as_str()),
            ("IPv6", "fd00::5")
        );
    }

    #[test]
    fn what_cannot_be_listened_on_is_refused() {
        for (wrong, code) in [
            (
                json!({"trtype": "FC", "traddr": "10.0.0.5", "trsvcid": "1"}),
                code::INVALID,
            ),
            (
                json!({"trtype": "TCP", "traddr": "storage1", "trsvcid": "1"}),
                code::INVALID,
            ),
            (
                json!({"trtype": "TCP", "traddr": "10.0.0.5"}),
                code::INVALID,
            ),
            (
                json!({"trtype": "TCP", "traddr": "10.0.0.5", "trsvcid": "0"}),
                code::INVALID,
            ),
            (
                json!({"trtype": "TCP", "traddr": "10.0.0.5", "trsvcid": "70000"}),
                code::INVALID,
            ),
            (
                json!({"trtype": "TCP", "adrfam": "IPv6", "traddr": "10.0.0.5", "trsvcid": "1"}),
                code::INVALID,
            ),
        ] {
            assert_eq!(given(wrong.clone()), Err(code), "{wrong}");
        }
    }
}
