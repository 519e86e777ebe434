//! Asking discovery services which subsystems there are.
//!
//! Everything that comes back is a peer's word: the number of records, of referrals and of their levels is bounded, and a
//! service is asked once however often others refer to it.

use std::collections::{HashSet, VecDeque};

use nvme_proto::wire::log::{
    AddressFamily, DiscoveryEntry, DiscoveryHeader, Eflags, LogId, RdmaSpecific, SubsystemType,
    TcpSecurity, TransportType, Treq,
};
use zerocopy::FromBytes;

use super::association::Association;
use super::error::ConnectError;
use crate::address::{Address, DISCOVERY_NQN, Transport};
use crate::host::HostIdentity;
use crate::options::Target;

/// Records of one log that are read. The Linux target and SPDK stay far below.
const MAX_RECORDS: u64 = 4096;
/// Services asked, the first included.
const MAX_SERVICES: usize = 32;
/// A log that changes while it is read is read again this often.
const MAX_TRIES: u32 = 10;
/// Records read with one command: 4 KiB, within the smallest MDTS.
const RECORDS_PER_READ: u64 = 4;

/// One record of a discovery log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryRecord {
    /// The fabric.
    pub trtype: TransportType,
    /// The family of its address.
    pub adrfam: AddressFamily,
    /// What is there.
    pub subtype: SubsystemType,
    /// What the transport requires.
    pub treq: Treq,
    /// The target's number for the port.
    pub portid: u16,
    /// Service: the port.
    pub trsvcid: String,
    /// The subsystem.
    pub subnqn: String,
    /// The address.
    pub traddr: String,
    /// Flags.
    pub eflags: Eflags,
    /// What only its fabric has.
    pub specific: Specific,
}

/// The transport specific part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specific {
    /// TCP: whether TLS is wanted.
    Tcp(TcpSecurity),
    /// RDMA: how queue pairs are connected.
    Rdma(RdmaSpecific),
    /// Of fabrics that this host does not speak.
    Unknown,
}

impl DiscoveryRecord {
    fn new(entry: &DiscoveryEntry) -> Self {
        DiscoveryRecord {
            trtype: entry.trtype,
            adrfam: entry.adrfam,
            subtype: entry.subtype,
            treq: entry.treq,
            portid: entry.portid.get(),
            trsvcid: entry.trsvcid.to_string(),
            subnqn: entry
                .nqn()
                .map_or_else(|_| String::new(), |nqn| nqn.as_str().to_owned()),
            traddr: entry.traddr.to_string(),
            eflags: entry.flags(),
            specific: match entry.trtype {
                TransportType::TCP => Specific::Tcp(entry.tcp_security()),
                TransportType::RDMA => Specific::Rdma(entry.rdma_specific()),
                _ => Specific::Unknown,
            },
        }
    }

    /// What to connect to, where this host can: over the transport on which the record was read, and without TLS. The source
    /// address and interface are those of that connection. A subsystem's ways over another transport are for who asks over that:
    /// this host has one way to a namespace.
    pub fn target(&self, asked: &Target) -> Option<Target> {
        let transport = match self.specific {
            Specific::Tcp(TcpSecurity::NONE) => Transport::Tcp,
            Specific::Rdma(_) => Transport::Rdma,
            Specific::Tcp(_) | Specific::Unknown => return None,
        };
        if transport != asked.address.transport || self.subnqn.is_empty() {
            return None;
        }
        let trsvcid = match self.trsvcid.as_str() {
            "" if self.subtype != SubsystemType::NVM => transport.discovery_port(),
            text => crate::address::parse_port(text).ok()?,
        };
        let address = Address {
            traddr: self.traddr.clone(),
            trsvcid,
            ..asked.address.clone()
        };
        Some(Target {
            address,
            subnqn: self.subnqn.clone(),
            options: asked.options.clone(),
        })
    }
}

/// The log of one discovery service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryLog {
    /// Where it was read.
    pub address: Address,
    /// Its generation.
    pub genctr: u64,
    /// Its records.
    pub records: Vec<DiscoveryRecord>,
}

/// What came of following discovery services.
#[derive(Debug)]
pub struct Discovered {
    /// The logs, that of the service asked for first.
    pub logs: Vec<DiscoveryLog>,
    /// Services that others refer to and that could not be asked.
    pub failed: Vec<(Address, ConnectError)>,
}

/// Reads the log of a discovery service.
pub async fn read_log(target: &Target, host: &HostIdentity) -> Result<DiscoveryLog, ConnectError> {
    // One that is not persistent needs no keep-alive.
    let association = Association::establish(target, host, 0).await?;
    if !association.is_discovery() {
        association.shut_down().await;
        let what = format!(
            "{} is no discovery service but a subsystem with namespaces",
            target.subnqn
        );
        return Err(ConnectError::Unusable(what));
    }
    let log = log_of(&association, target).await;
    association.shut_down().await;
    log
}

/// Reads the log of a discovery service and of those that it refers to.
pub async fn follow(target: &Target, host: &HostIdentity) -> Result<Discovered, ConnectError> {
    let mut discovered = Discovered {
        logs: vec![read_log(target, host).await?],
        failed: Vec::new(),
    };
    let mut asked: HashSet<(String, u16, String)> = HashSet::from([key(target)]);
    let mut waiting: VecDeque<Target> = referrals(&discovered.logs[0], target).collect();
    while let Some(referral) = waiting.pop_front() {
        if asked.len() >= MAX_SERVICES {
            tracing::warn!(
                limit = MAX_SERVICES,
                "more discovery services are referred to than are asked"
            );
            break;
        }
        if !asked.insert(key(&referral)) {
            continue;
        }
        match read_log(&referral, host).await {
            Ok(log) => {
                waiting.extend(referrals(&log, &referral));
                discovered.logs.push(log);
            }
            Err(error) => discovered.failed.push((referral.address, error)),
        }
    }
    Ok(discovered)
}

fn key(target: &Target) -> (String, u16, String) {
    (
        target.address.traddr.clone(),
        target.address.trsvcid,
        target.subnqn.clone(),
    )
}

fn referrals<'a>(log: &'a DiscoveryLog, asked: &'a Target) -> impl Iterator<Item = Target> + 'a {
    let referrals = log
        .records
        .iter()
        .filter(|record| record.subtype == SubsystemType::REFERRAL);
    referrals.filter_map(|record| {
        let mut target = record.target(asked)?;
        // Linux's target names the well-known NQN here, others the name of their own service.
        if target.subnqn.is_empty() {
            target.subnqn = DISCOVERY_NQN.to_owned();
        }
        Some(target)
    })
}

async fn log_of(association: &Association, target: &Target) -> Result<DiscoveryLog, ConnectError> {
    let page = |len: u64, offset: u64| async move {
        let read = association
            .log_page(LogId::DISCOVERY, len as u32, offset)
            .await;
        read.map_err(|source| ConnectError::Admin {
            command: "Get Log Page (discovery)",
            source,
        })
    };
    let header = || async {
        let data = page(DiscoveryHeader::SIZE as u64, 0).await?;
        Ok::<_, ConnectError>(
            DiscoveryHeader::read_from_bytes(&data).expect("1024 bytes, as asked for"),
        )
    };
    for _ in 0..MAX_TRIES {
        let head = header().await?;
        if head.recfmt.get() != 0 {
            let what = format!(
                "its discovery log has record format {}, this host knows 0",
                head.recfmt.get()
            );
            return Err(ConnectError::Unusable(what));
        }
        let count = head.numrec.get();
        if count > MAX_RECORDS {
            let what =
                format!("its discovery log has {count} records, this host reads {MAX_RECORDS}");
            return Err(ConnectError::Unusable(what));
        }
        let mut records = Vec::with_capacity(count as usize);
        while (records.len() as u64) < count {
            let at = records.len() as u64;
            let entries = RECORDS_PER_READ.min(count - at);
            let entry_bytes = DiscoveryEntry::SIZE as u64;
            let data = page(
                entries * entry_bytes,
                DiscoveryHeader::SIZE as u64 + at * entry_bytes,
            )
            .await?;
            let entries = data.chunks_exact(DiscoveryEntry::SIZE);
            records.extend(entries.map(|entry| {
                DiscoveryRecord::new(
                    DiscoveryEntry::ref_from_bytes(entry).expect("1024 bytes in each chunk"),
                )
            }));
        }
        let after = header().await?;
        if after.genctr == head.genctr && after.numrec == head.numrec {
            return Ok(DiscoveryLog {
                address: target.address.clone(),
                genctr: head.genctr.get(),
                records,
            });
        }
    }
    Err(ConnectError::Unusable(format!(
        "its discovery log changed {MAX_TRIES} times while it was read; try again"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(traddr: &str, trsvcid: &str) -> DiscoveryRecord {
        DiscoveryRecord {
            trtype: TransportType::TCP,
            adrfam: AddressFamily::IPV4,
            subtype: SubsystemType::NVM,
            treq: Treq::new(Treq::SECURE_NOT_SPECIFIED, true),
            portid: 1,
            trsvcid: trsvcid.into(),
            subnqn: "n".into(),
            traddr: traddr.into(),
            eflags: Eflags::empty(),
            specific: Specific::Tcp(TcpSecurity::NONE),
        }
    }

    #[test]
    fn records_become_targets_where_this_host_can_connect() {
        let mut asked: Target = Target {
            address: Address::tcp("192.0.2.1", 8009),
            subnqn: DISCOVERY_NQN.into(),
            options: Default::default(),
        };
        asked.address.host_iface = Some("eth0".into());
        let target = record("192.0.2.2", "4420").target(&asked).unwrap();
        assert_eq!(
            (target.address.traddr.as_str(), target.address.trsvcid),
            ("192.0.2.2", 4420)
        );
        assert_eq!(target.address.host_iface.as_deref(), Some("eth0"));
        assert_eq!(target.subnqn, "n");
        assert_eq!(record("192.0.2.2", "").target(&asked), None);
        let referral = DiscoveryRecord {
            subtype: SubsystemType::REFERRAL,
            ..record("192.0.2.2", "")
        };
        assert_eq!(
            referral.target(&asked).unwrap().address.trsvcid,
            Transport::Tcp.discovery_port()
        );
        let tls = DiscoveryRecord {
            specific: Specific::Tcp(TcpSecurity::TLS_1_3),
            ..record("192.0.2.2", "4420")
        };
        assert_eq!(tls.target(&asked), None);
        let rdma = |subtype, trsvcid| DiscoveryRecord {
            trtype: TransportType::RDMA,
            subtype,
            // TSAS begins with a byte that would mean TLS over TCP.
            specific: Specific::Rdma(RdmaSpecific {
                qptype: 1,
                prtype: 1,
                cms: 1,
                pkey: 0,
            }),
            ..record("192.0.2.2", trsvcid)
        };
        let (nvm, referral) = (SubsystemType::NVM, SubsystemType::REFERRAL);
        assert_eq!(rdma(nvm, "4420").target(&asked), None);
        asked.address = Address::rdma("192.0.2.1", 4420);
        let target = rdma(nvm, "4421").target(&asked).unwrap();
        assert_eq!(target.address, Address::rdma("192.0.2.2", 4421));
        let target = rdma(referral, "").target(&asked).unwrap();
        assert_eq!(target.address, Address::rdma("192.0.2.2", 4420));
        assert_eq!(record("192.0.2.2", "4420").target(&asked), None);
    }
}
