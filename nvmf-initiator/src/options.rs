//! How a controller is connected: the kernel's fabrics options with the kernel's defaults.
//!
//! One type for the command line, `config.json`, URLs and the library. Times keep the unit that
//! nvme-cli gives them (seconds) so that a value means the same in both tools.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::address::{Address, AddressError, DISCOVERY_NQN, NvmeUrl, Transport, check_nqn};

/// Smallest I/O queue the Linux host asks for; smaller ones gain nothing.
pub const MIN_QUEUE_SIZE: u16 = 16;
/// Largest I/O queue: command slots are allocated at connect, so the bound is memory.
pub const MAX_QUEUE_SIZE: u16 = 1024;
/// More I/O queues than this is a mistake on any machine that this runs on.
pub const MAX_IO_QUEUES: u16 = 128;

/// What is wrong with an option. Options are called as the kernel calls them, unless [`OptionError::calling`] is told of other names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// The address or NQN.
    Address(AddressError),
    /// A key that no option has.
    UnknownKey(String),
    /// A value that does not parse.
    Value {
        /// The option's name.
        key: String,
        /// The text as given.
        value: String,
        /// What would have been right.
        expected: &'static str,
    },
    /// A value outside its bounds.
    Range {
        /// The option's name.
        key: &'static str,
        /// The number as given.
        value: i64,
        /// Smallest allowed.
        min: i64,
        /// Largest allowed.
        max: i64,
    },
    /// An option of NVMe/TCP that was given over RDMA, by its name.
    TcpOnly(&'static str),
    /// The same the other way round.
    RdmaOnly(&'static str),
    /// I/O that is to fail after the controller is gone for good.
    FastIoFail {
        /// The value of `fast_io_fail_tmo`.
        fast_io_fail_tmo_s: i32,
        /// The value of `ctrl_loss_tmo`.
        ctrl_loss_tmo_s: i32,
    },
}

impl From<AddressError> for OptionError {
    fn from(error: AddressError) -> Self {
        OptionError::Address(error)
    }
}

impl OptionError {
    /// The same with each option called as `name` says, such as by the flag that it was given by.
    pub fn calling(&self, name: impl Fn(&str) -> String) -> String {
        match self {
            OptionError::Address(error) => error.to_string(),
            OptionError::UnknownKey(key) => format!("unknown option '{key}' in the address"),
            OptionError::Value {
                key,
                value,
                expected,
            } => format!("option {}: '{value}' is not {expected}", name(key)),
            OptionError::Range {
                key,
                value,
                min,
                max,
            } => format!("option {}: {value} is outside {min} to {max}", name(key)),
            OptionError::TcpOnly(option) => {
                let remedy = match *option {
                    "host_iface" => {
                        format!("give the interface's address as {}", name("host_traddr"))
                    }
                    _ => "RDMA guards its packets itself".to_owned(),
                };
                format!(
                    "option {} belongs to NVMe/TCP; leave it out over RDMA: {remedy}",
                    name(option)
                )
            }
            OptionError::RdmaOnly(option) => format!(
                "option {} belongs to NVMe/RDMA; leave it out over TCP, where the target has no access to memory",
                name(option)
            ),
            OptionError::FastIoFail {
                fast_io_fail_tmo_s,
                ctrl_loss_tmo_s,
            } => format!(
                "{} {fast_io_fail_tmo_s} s is longer than {} {ctrl_loss_tmo_s} s and could never act; lower the first or raise the second",
                name("fast_io_fail_tmo"),
                name("ctrl_loss_tmo")
            ),
        }
    }
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.calling(str::to_owned))
    }
}

/// Options of one association, named as the kernel names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectOptions {
    /// I/O queues to ask for; `None` is one for each shard.
    pub nr_io_queues: Option<u16>,
    /// Entries of each I/O queue.
    pub queue_size: u16,
    /// Keep-alive time-out in seconds; 0 turns keep-alive off.
    pub keep_alive_tmo: u32,
    /// Seconds between two attempts to reconnect.
    pub reconnect_delay: u32,
    /// Seconds after which a lost controller is given up; -1 never.
    pub ctrl_loss_tmo: i32,
    /// Seconds after which held I/O of a lost controller fails; -1 never before `ctrl_loss_tmo`.
    pub fast_io_fail_tmo: i32,
    /// Ask for a CRC32C over each PDU header.
    pub hdr_digest: bool,
    /// Ask for a CRC32C over each PDU's data.
    pub data_digest: bool,
    /// Allow a second association from this host through the same port to the same subsystem.
    pub duplicate_connect: bool,
    /// Turn SQ flow control off where the controller agrees, so that a read needs no response
    /// capsule of its own. The host never has more commands open than the queue holds either way.
    pub disable_sqflow: bool,
    /// RDMA: give the target no key to the buffers but that of a memory window over a command's own, for as long as the command is open.
    pub memory_windows: bool,
    /// Type of service byte of the connections; `None` leaves the system's default.
    pub tos: Option<u8>,
    /// A command that has no answer after this many milliseconds is aborted; without an answer for as long again it ends the
    /// association.
    pub io_timeout_ms: u32,
    /// Bound on each step of a connection attempt: the connection itself, Connect, each admin command.
    pub connect_timeout_ms: u32,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        ConnectOptions {
            nr_io_queues: None,
            queue_size: 128,
            keep_alive_tmo: 5,
            reconnect_delay: 10,
            ctrl_loss_tmo: 600,
            fast_io_fail_tmo: -1,
            hdr_digest: false,
            data_digest: false,
            duplicate_connect: false,
            disable_sqflow: true,
            memory_windows: false,
            tos: None,
            io_timeout_ms: 30_000,
            connect_timeout_ms: 10_000,
        }
    }
}

impl ConnectOptions {
    /// Checks bounds and combinations.
    pub fn validate(&self) -> Result<(), OptionError> {
        let range = |key, value: i64, min: i64, max: i64| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(OptionError::Range {
                    key,
                    value,
                    min,
                    max,
                })
            }
        };
        if let Some(queues) = self.nr_io_queues {
            range("nr_io_queues", queues.into(), 1, MAX_IO_QUEUES.into())?;
        }
        range(
            "queue_size",
            self.queue_size.into(),
            MIN_QUEUE_SIZE.into(),
            MAX_QUEUE_SIZE.into(),
        )?;
        range(
            "reconnect_delay",
            self.reconnect_delay.into(),
            1,
            i32::MAX.into(),
        )?;
        range(
            "ctrl_loss_tmo",
            self.ctrl_loss_tmo.into(),
            -1,
            i32::MAX.into(),
        )?;
        range(
            "fast_io_fail_tmo",
            self.fast_io_fail_tmo.into(),
            -1,
            i32::MAX.into(),
        )?;
        // KATO is a 32-bit number of milliseconds on the wire.
        range(
            "keep_alive_tmo",
            self.keep_alive_tmo.into(),
            0,
            i64::from(u32::MAX / 1000),
        )?;
        range(
            "io_timeout_ms",
            self.io_timeout_ms.into(),
            1,
            i32::MAX.into(),
        )?;
        range(
            "connect_timeout_ms",
            self.connect_timeout_ms.into(),
            1,
            i32::MAX.into(),
        )?;
        if self.ctrl_loss_tmo >= 0 && self.fast_io_fail_tmo > self.ctrl_loss_tmo {
            return Err(OptionError::FastIoFail {
                fast_io_fail_tmo_s: self.fast_io_fail_tmo,
                ctrl_loss_tmo_s: self.ctrl_loss_tmo,
            });
        }
        Ok(())
    }

    /// The keep-alive time-out as Connect carries it.
    pub fn kato_ms(&self) -> u32 {
        self.keep_alive_tmo.saturating_mul(1000)
    }

    /// The bound on one step of a connection attempt.
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms.into())
    }

    /// Sets one option by its fabrics name, as a URL's query does.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), OptionError> {
        match key {
            "nr_io_queues" => self.nr_io_queues = Some(number(key, value)?),
            "queue_size" => self.queue_size = number(key, value)?,
            "keep_alive_tmo" => self.keep_alive_tmo = number(key, value)?,
            "reconnect_delay" => self.reconnect_delay = number(key, value)?,
            "ctrl_loss_tmo" => self.ctrl_loss_tmo = number(key, value)?,
            "fast_io_fail_tmo" => self.fast_io_fail_tmo = number(key, value)?,
            "hdr_digest" => self.hdr_digest = switch(key, value)?,
            "data_digest" => self.data_digest = switch(key, value)?,
            "duplicate_connect" => self.duplicate_connect = switch(key, value)?,
            "disable_sqflow" => self.disable_sqflow = switch(key, value)?,
            "memory_windows" => self.memory_windows = switch(key, value)?,
            "tos" => self.tos = Some(number(key, value)?),
            "io_timeout_ms" => self.io_timeout_ms = number(key, value)?,
            "connect_timeout_ms" => self.connect_timeout_ms = number(key, value)?,
            other => return Err(OptionError::UnknownKey(other.to_owned())),
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, OptionError> {
    value.parse().map_err(|_| OptionError::Value {
        key: key.to_owned(),
        value: value.to_owned(),
        expected: "a number in range",
    })
}

fn switch(key: &str, value: &str) -> Result<bool, OptionError> {
    match value {
        "" | "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(OptionError::Value {
            key: key.to_owned(),
            value: value.to_owned(),
            expected: "true or false",
        }),
    }
}

/// One controller to connect: where, what, as whom, how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The port.
    pub address: Address,
    /// The subsystem.
    pub subnqn: String,
    /// How.
    #[serde(default)]
    pub options: ConnectOptions,
}

impl Target {
    /// Checks the NQN and the options.
    pub fn validate(&self) -> Result<(), OptionError> {
        check_nqn(&self.subnqn)?;
        self.options.validate()?;
        match self.address.transport {
            Transport::Tcp if self.options.memory_windows => {
                Err(OptionError::RdmaOnly("memory_windows"))
            }
            Transport::Tcp => Ok(()),
            Transport::Rdma => self.validate_rdma(),
        }
    }

    fn validate_rdma(&self) -> Result<(), OptionError> {
        let given = [
            ("hdr_digest", self.options.hdr_digest),
            ("data_digest", self.options.data_digest),
            ("host_iface", self.address.host_iface.is_some()),
        ];
        match given.into_iter().find(|(_, is_given)| *is_given) {
            Some((option, _)) => Err(OptionError::TcpOnly(option)),
            None => Ok(()),
        }
    }

    /// Whether this is a discovery service by its well-known name.
    pub fn is_discovery(&self) -> bool {
        self.subnqn == DISCOVERY_NQN
    }
}

/// A namespace by URL: the target, the namespace, and who asks where the URL says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceUrl {
    /// The controller to connect.
    pub target: Target,
    /// The namespace (`nsid=`, 1 unless given).
    pub nsid: u32,
    /// `hostnqn=`, where given.
    pub hostnqn: Option<String>,
    /// `hostid=`, where given.
    pub hostid: Option<String>,
}

impl NamespaceUrl {
    /// From a URL; `nqn` is the subsystem where the URL names none.
    pub fn new(url: NvmeUrl, nqn: Option<String>) -> Result<Self, OptionError> {
        let mut options = ConnectOptions::default();
        let (mut nsid, mut hostnqn, mut hostid) = (1, None, None);
        for (key, value) in &url.query {
            match key.as_str() {
                "nsid" => nsid = number(key, value)?,
                "hostnqn" => {
                    check_nqn(value)?;
                    hostnqn = Some(value.clone());
                }
                "hostid" => hostid = Some(value.clone()),
                _ => options.set(key, value)?,
            }
        }
        if nsid == 0 || nsid == u32::MAX {
            return Err(OptionError::Range {
                key: "nsid",
                value: nsid.into(),
                min: 1,
                max: 0xffff_fffe,
            });
        }
        let subnqn = url.nqn.or(nqn).ok_or(AddressError::NoNqn)?;
        let target = Target {
            address: url.address,
            subnqn,
            options,
        };
        target.validate()?;
        Ok(NamespaceUrl {
            target,
            nsid,
            hostnqn,
            hostid,
        })
    }
}

impl std::str::FromStr for NamespaceUrl {
    type Err = OptionError;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        NamespaceUrl::new(url.parse()?, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_sets_options() {
        let url: NamespaceUrl = "nvme+tcp://h:1/n?nsid=7&queue_size=64&hdr_digest&data_digest=0&ctrl_loss_tmo=-1&hostid=x"
            .parse()
            .unwrap();
        assert_eq!(url.nsid, 7);
        assert_eq!(url.hostid.as_deref(), Some("x"));
        let options = &url.target.options;
        assert_eq!(
            (options.queue_size, options.hdr_digest, options.data_digest),
            (64, true, false)
        );
        assert_eq!(options.ctrl_loss_tmo, -1);
    }

    #[test]
    fn url_refuses_what_it_does_not_know() {
        let parse = |text: &str| text.parse::<NamespaceUrl>().unwrap_err();
        assert_eq!(
            parse("nvme+tcp://h:1/n?nisd=7"),
            OptionError::UnknownKey("nisd".into())
        );
        assert!(matches!(
            parse("nvme+tcp://h:1/n?nsid=0"),
            OptionError::Range { key: "nsid", .. }
        ));
        assert!(matches!(
            parse("nvme+tcp://h:1/n?queue_size=8"),
            OptionError::Range {
                key: "queue_size",
                ..
            }
        ));
        assert!(matches!(
            parse("nvme+tcp://h:1/n?hdr_digest=maybe"),
            OptionError::Value { .. }
        ));
        assert!(matches!(
            parse("nvme+tcp://h:1/"),
            OptionError::Address(AddressError::NoNqn)
        ));
    }

    #[test]
    fn memory_windows_belong_to_rdma() {
        let parse = |url: &str| url.parse::<NamespaceUrl>();
        let windows = |url: &str| parse(url).unwrap().target.options.memory_windows;
        assert!(windows("nvme+rdma://h/n?memory_windows=1"));
        assert!(!windows("nvme+rdma://h/n?memory_windows=0"));
        assert!(!windows("nvme+rdma://h/n"));
        let error = parse("nvme+tcp://h/n?memory_windows").unwrap_err();
        assert!(
            matches!(error, OptionError::RdmaOnly("memory_windows")),
            "{error}"
        );
        assert!(parse("nvme+tcp://h/n?memory_windows=0").is_ok());
    }

    #[test]
    fn what_belongs_to_tcp_is_refused_over_rdma() {
        let parse = |query: &str| format!("nvme+rdma://h/n?{query}").parse::<NamespaceUrl>();
        assert!(parse("queue_size=64&disable_sqflow=0&tos=8").is_ok());
        for option in ["hdr_digest", "data_digest"] {
            let error = parse(option).unwrap_err();
            assert_eq!(error, OptionError::TcpOnly(option));
        }
        let mut target = parse("").unwrap().target;
        target.address.host_iface = Some("eth0".into());
        let error = target.validate().unwrap_err().to_string();
        assert!(
            error.contains("host_iface") && error.contains("host_traddr"),
            "{error}"
        );
    }

    #[test]
    fn defaults_are_valid_and_the_combinations_are_checked() {
        ConnectOptions::default().validate().unwrap();
        let options = ConnectOptions {
            fast_io_fail_tmo: 20,
            ctrl_loss_tmo: 10,
            ..Default::default()
        };
        assert!(matches!(
            options.validate(),
            Err(OptionError::FastIoFail { .. })
        ));
        // With no limit on the loss any fast failure is before it.
        ConnectOptions {
            fast_io_fail_tmo: 20,
            ctrl_loss_tmo: -1,
            ..Default::default()
        }
        .validate()
        .unwrap();
        let options = ConnectOptions {
            reconnect_delay: 0,
            ..Default::default()
        };
        assert!(matches!(
            options.validate(),
            Err(OptionError::Range {
                key: "reconnect_delay",
                ..
            })
        ));
        let options = ConnectOptions {
            keep_alive_tmo: 4_294_968,
            ..Default::default()
        };
        assert!(matches!(
            options.validate(),
            Err(OptionError::Range {
                key: "keep_alive_tmo",
                ..
            })
        ));
    }
}
