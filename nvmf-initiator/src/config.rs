//! `/etc/nvme/config.json` (libnvme's form) and `/etc/nvme/discovery.conf` (nvme-cli's), read only.
//!
//! Keys that would change what a connection is, and that this initiator does not have (authentication,
//! TLS), are refused by name: silently connecting without them would be less safe than asked for.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::address::{Address, AddressError, DISCOVERY_NQN, Transport, parse_port};
use crate::options::{ConnectOptions, OptionError, Target};

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not of libnvme's form.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A port in the file asks for something that is not built.
    #[error(
        "{path}: subsystem {subnqn}: '{key}' is not built into this initiator; remove it to connect without it"
    )]
    NotBuilt {
        /// The file.
        path: PathBuf,
        /// The subsystem that it stands at.
        subnqn: String,
        /// The key.
        key: &'static str,
    },
    /// A value in the file is wrong.
    #[error("{path}: subsystem {subnqn}: {source}")]
    Option {
        /// The file.
        path: PathBuf,
        /// The subsystem that it stands at.
        subnqn: String,
        /// What is wrong.
        source: OptionError,
    },
}

/// One controller that `config.json` wants connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredTarget {
    /// Who connects, where the file says so.
    pub hostnqn: Option<String>,
    /// The id of who connects, where the file says so.
    pub hostid: Option<String>,
    /// What is connected.
    pub target: Target,
    /// Whether this is a discovery controller whose log `connect-all` follows.
    pub discovery: bool,
}

#[derive(Deserialize)]
struct Host {
    hostnqn: Option<String>,
    hostid: Option<String>,
    dhchap_key: Option<String>,
    #[serde(default)]
    subsystems: Vec<Subsystem>,
}

#[derive(Deserialize)]
struct Subsystem {
    nqn: String,
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Deserialize)]
struct Port {
    transport: String,
    traddr: Option<String>,
    trsvcid: Option<String>,
    host_traddr: Option<String>,
    host_iface: Option<String>,
    nr_io_queues: Option<u16>,
    queue_size: Option<u16>,
    keep_alive_tmo: Option<u32>,
    reconnect_delay: Option<u32>,
    ctrl_loss_tmo: Option<i32>,
    fast_io_fail_tmo: Option<i32>,
    tos: Option<i32>,
    hdr_digest: Option<bool>,
    data_digest: Option<bool>,
    duplicate_connect: Option<bool>,
    disable_sqflow: Option<bool>,
    memory_windows: Option<bool>,
    discovery: Option<bool>,
    dhchap_key: Option<String>,
    dhchap_ctrl_key: Option<String>,
    tls: Option<bool>,
}

/// Reads a `config.json`. `Ok(None)` where there is no such file.
pub fn read_config_json(path: &Path) -> Result<Option<Vec<ConfiguredTarget>>, ConfigError> {
    let Some(text) = read_optional(path)? else {
        return Ok(None);
    };
    let hosts: Vec<Host> = serde_json::from_str(&text).map_err(|source| ConfigError::Json {
        path: path.to_owned(),
        source,
    })?;
    let mut targets = Vec::new();
    for host in &hosts {
        for subsystem in &host.subsystems {
            let option = |source| ConfigError::Option {
                path: path.to_owned(),
                subnqn: subsystem.nqn.clone(),
                source,
            };
            for port in &subsystem.ports {
                let secrets = [
                    (
                        "dhchap_key",
                        is_key(&port.dhchap_key) || is_key(&host.dhchap_key),
                    ),
                    ("dhchap_ctrl_key", is_key(&port.dhchap_ctrl_key)),
                    ("tls", port.tls == Some(true)),
                ];
                if let Some((key, _)) = secrets.into_iter().find(|(_, given)| *given) {
                    return Err(ConfigError::NotBuilt {
                        path: path.to_owned(),
                        subnqn: subsystem.nqn.clone(),
                        key,
                    });
                }
                let target = port.target(&subsystem.nqn).map_err(option)?;
                let discovery = port.discovery.unwrap_or_else(|| target.is_discovery());
                targets.push(ConfiguredTarget {
                    hostnqn: host.hostnqn.clone(),
                    hostid: host.hostid.clone(),
                    target,
                    discovery,
                });
            }
        }
    }
    Ok(Some(targets))
}

/// libnvme 1.3 reads the attribute of a controller that has no key, and writes what it says: none.
fn is_key(text: &Option<String>) -> bool {
    text.as_deref().is_some_and(|text| text != "none")
}

impl Port {
    fn target(&self, subnqn: &str) -> Result<Target, OptionError> {
        let transport: Transport = self.transport.parse()?;
        let default_port = if subnqn == DISCOVERY_NQN {
            transport.discovery_port()
        } else {
            transport.io_port()
        };
        let defaults = ConnectOptions::default();
        let host_traddr = self
            .host_traddr
            .as_deref()
            .map(|text| parse_ip("host_traddr", text))
            .transpose()?;
        let target = Target {
            address: Address {
                transport,
                traddr: self.traddr.clone().ok_or(AddressError::NoHost)?,
                trsvcid: self
                    .trsvcid
                    .as_deref()
                    .map_or(Ok(default_port), parse_port)?,
                host_traddr,
                host_iface: self.host_iface.clone(),
            },
            subnqn: subnqn.to_owned(),
            options: ConnectOptions {
                nr_io_queues: self.nr_io_queues,
                queue_size: self.queue_size.unwrap_or(defaults.queue_size),
                keep_alive_tmo: self.keep_alive_tmo.unwrap_or(defaults.keep_alive_tmo),
                reconnect_delay: self.reconnect_delay.unwrap_or(defaults.reconnect_delay),
                ctrl_loss_tmo: self.ctrl_loss_tmo.unwrap_or(defaults.ctrl_loss_tmo),
                fast_io_fail_tmo: self.fast_io_fail_tmo.unwrap_or(defaults.fast_io_fail_tmo),
                hdr_digest: self.hdr_digest.unwrap_or(false),
                data_digest: self.data_digest.unwrap_or(false),
                duplicate_connect: self.duplicate_connect.unwrap_or(false),
                disable_sqflow: self.disable_sqflow.unwrap_or(defaults.disable_sqflow),
                memory_windows: self.memory_windows.unwrap_or(defaults.memory_windows),
                // libnvme writes -1 for "the system's default".
                tos: match self.tos {
                    None | Some(-1) => None,
                    Some(tos) => Some(u8::try_from(tos).map_err(|_| OptionError::Range {
                        key: "tos",
                        value: tos.into(),
                        min: 0,
                        max: 255,
                    })?),
                },
                ..defaults
            },
        };
        target.validate()?;
        Ok(target)
    }
}

/// Parses an address of this host.
pub fn parse_ip(key: &str, text: &str) -> Result<std::net::IpAddr, OptionError> {
    text.parse().map_err(|_| OptionError::Value {
        key: key.to_owned(),
        value: text.to_owned(),
        expected: "an IP address of this host",
    })
}

/// The lines of a `discovery.conf`, each as the arguments of one `discover`; comments and blank lines are
/// left out. `Ok(None)` where there is no such file.
pub fn read_discovery_conf(path: &Path) -> Result<Option<Vec<Vec<String>>>, ConfigError> {
    let Some(text) = read_optional(path)? else {
        return Ok(None);
    };
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(Some(
        lines
            .map(|line| line.split_whitespace().map(str::to_owned).collect())
            .collect(),
    ))
}

fn read_optional(path: &Path) -> Result<Option<String>, ConfigError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConfigError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Vec<ConfiguredTarget>, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        read_config_json(&path).map(Option::unwrap)
    }

    /// As `nvme connect --dump-config` of nvme-cli 2.3 writes it.
    const LIBNVME: &str = r#"[
      { "hostnqn": "nqn.2014-08.org.nvmexpress:uuid:6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "hostid": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "subsystems": [
          { "nqn": "nqn.2026-01.io.example:a",
            "ports": [ { "transport": "tcp", "traddr": "192.0.2.1", "trsvcid": "4421", "host_traddr": "192.0.2.9",
                         "nr_io_queues": 4, "ctrl_loss_tmo": -1, "hdr_digest": true, "tos": -1 },
                       { "transport": "tcp", "traddr": "192.0.2.2", "dhchap_key": "none" } ] },
          { "nqn": "nqn.2014-08.org.nvmexpress.discovery",
            "ports": [ { "transport": "tcp", "traddr": "192.0.2.1" } ] } ] } ]"#;

    #[test]
    fn libnvme_form() {
        let targets = read(LIBNVME).unwrap();
        assert_eq!(targets.len(), 3);
        let first = &targets[0].target;
        assert_eq!(
            (first.address.trsvcid, first.options.nr_io_queues),
            (4421, Some(4))
        );
        assert_eq!(
            (
                first.options.ctrl_loss_tmo,
                first.options.hdr_digest,
                first.options.tos
            ),
            (-1, true, None)
        );
        assert_eq!(
            first.address.host_traddr,
            Some("192.0.2.9".parse().unwrap())
        );
        assert_eq!(targets[1].target.address.trsvcid, Transport::Tcp.io_port());
        assert!(targets[2].discovery);
        assert_eq!(
            targets[2].target.address.trsvcid,
            Transport::Tcp.discovery_port()
        );
        assert_eq!(
            targets[2].hostid.as_deref(),
            Some("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
        );
    }

    #[test]
    fn refusals_name_the_place() {
        let port = |port: &str| {
            read(&format!(
                r#"[{{"subsystems":[{{"nqn":"n","ports":[{{{port}}}]}}]}}]"#
            ))
        };
        let error =
            port(r#""transport":"tcp","traddr":"h","dhchap_key":"DHHC-1:00:x:""#).unwrap_err();
        assert!(
            matches!(
                error,
                ConfigError::NotBuilt {
                    key: "dhchap_key",
                    ..
                }
            ),
            "{error}"
        );
        let error = port(r#""transport":"tcp","traddr":"h","tls":true"#).unwrap_err();
        assert!(
            matches!(error, ConfigError::NotBuilt { key: "tls", .. }),
            "{error}"
        );
        let rdma = port(r#""transport":"rdma","traddr":"h""#).unwrap();
        assert_eq!(
            rdma[0].target.address,
            Address::rdma("h", Transport::Rdma.io_port())
        );
        assert!(!rdma[0].target.options.memory_windows);
        let windows = port(r#""transport":"rdma","traddr":"h","memory_windows":true"#).unwrap();
        assert!(windows[0].target.options.memory_windows);
        let error = port(r#""transport":"tcp","traddr":"h","memory_windows":true"#).unwrap_err();
        assert!(error.to_string().contains("memory_windows"), "{error}");
        let error = port(r#""transport":"rdma","traddr":"h","hdr_digest":true"#).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("subsystem n: option hdr_digest belongs to NVMe/TCP"),
            "{error}"
        );
        let error = port(r#""transport":"fc","traddr":"h""#).unwrap_err();
        assert!(
            error.to_string().contains("subsystem n: transport 'fc'"),
            "{error}"
        );
        assert!(matches!(
            port(r#""transport":"tcp""#),
            Err(ConfigError::Option { .. })
        ));
        assert!(matches!(
            port(r#""transport":"tcp","traddr":"h","tos":256"#),
            Err(ConfigError::Option { .. })
        ));
        assert!(matches!(read("{"), Err(ConfigError::Json { .. })));
        assert!(
            read_config_json(Path::new("/nonexistent/config.json"))
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn discovery_conf_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("discovery.conf");
        std::fs::write(
            &path,
            "# comment\n\n--transport=tcp --traddr=192.0.2.1\n -t tcp  -a b -s 8009\n",
        )
        .unwrap();
        let lines = read_discovery_conf(&path).unwrap().unwrap();
        assert_eq!(lines[0], ["--transport=tcp", "--traddr=192.0.2.1"]);
        assert_eq!(lines[1], ["-t", "tcp", "-a", "b", "-s", "8009"]);
    }
}
