//! One association: the admin queue, the controller brought up, and its I/O queues.

use std::time::{Duration, Instant};

use nvme_proto::wire::event::keep_alive_sqe;
use nvme_proto::wire::fabrics::{InvalidParameter, PropertySqe};
use nvme_proto::wire::feature::{AsyncEventConfig, FeatureId, NumberOfQueues, SetFeatures};
use nvme_proto::wire::identify::flags::{Ctratt, Oaes, Oncs, Vwc};
use nvme_proto::wire::identify::{
    Cns, IDENTIFY_DATA_BYTES, IdentifyCommand, IdentifyController, NvmIdentifyController,
};
use nvme_proto::wire::log::{GetLogPage, LogId};
use nvme_proto::wire::property::{Cap, Cc, Csts, Property};
use nvme_proto::wire::{Cntlid, Nsid, Qid, Sqe};
use tokio::time::sleep;
use zerocopy::FromBytes;

use super::admin::{AdminData, AdminQueue, AdminReply};
use super::error::{AdminError, ConnectError};
use super::link::{Link, QueueSpec};
use super::namespace::CommandBounds;
use crate::host::HostIdentity;
use crate::options::Target;

/// Entries of the admin queue, as the Linux host has it.
const ADMIN_ENTRIES: u16 = 32;
/// How often CSTS is read while the controller gets ready or shuts down.
const CSTS_POLL: Duration = Duration::from_millis(20);
/// CAP.TO and CRTO count in this unit.
const READY_UNIT_MS: u64 = 500;
/// How long an orderly shutdown may take before the connection is simply closed.
pub(crate) const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);
/// Memory pages as this host uses them; CAP.MPSMIN above 0 is refused.
const PAGE_BYTES: u32 = 4096;
/// The largest buffer of a pool: one command never moves more.
pub(crate) const MAX_TRANSFER_BYTES: u64 = 2 << 20;

/// A controller that is connected and enabled.
pub(crate) struct Association {
    pub admin: AdminQueue,
    pub cntlid: Cntlid,
    pub cap: Cap,
    pub identify: Box<IdentifyController>,
    /// Keep-alive time-out in use; 0 where there is none.
    pub kato_ms: u32,
}

impl Association {
    /// Connects the admin queue, enables the controller and identifies it.
    pub async fn establish(
        target: &Target,
        host: &HostIdentity,
        kato_ms: u32,
    ) -> Result<Self, ConnectError> {
        let spec = QueueSpec {
            target,
            host,
            qid: Qid::ADMIN,
            entries: ADMIN_ENTRIES,
            cntlid: Cntlid::DYNAMIC,
            in_capsule_bytes: 0,
            kato_ms,
        };
        let link = Link::connect(&spec).await?;
        let cntlid = link.cntlid;
        let admin = AdminQueue::new(link, target.options.connect_timeout());
        let cap = Cap(property(&admin, Property::CAP).await?);
        if cap.mpsmin() > 0 {
            return Err(ConnectError::Unusable(format!(
                "its smallest memory page is {} bytes, this host's is 4096",
                4096u64 << cap.mpsmin()
            )));
        }
        let mut association = Association {
            admin,
            cntlid,
            cap,
            identify: Box::new(IdentifyController::zeroed()),
            kato_ms,
        };
        association.enable().await?;
        association.identify = association.identify_controller().await?;
        association.check()?;
        association.configure_events().await?;
        Ok(association)
    }

    async fn enable(&self) -> Result<(), ConnectError> {
        let css = if self.cap.css() & Cap::CSS_IOCSS != 0 {
            Cc::CSS_IOCSS
        } else {
            Cc::CSS_NVM
        };
        let cc = Cc::default()
            .with_css(css)
            .with_iosqes(Cc::IOSQES)
            .with_iocqes(Cc::IOCQES)
            .with_en(true);
        self.set_property(Property::CC, cc.0).await?;
        // TO of 0 would mean "at once"; nobody is that precise.
        let after_ms = self.cap.to().max(1) * READY_UNIT_MS;
        let deadline = Instant::now() + Duration::from_millis(after_ms);
        loop {
            let csts = self.csts().await?;
            if csts.cfs() {
                return Err(ConnectError::Fatal(csts.0));
            }
            if csts.rdy() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(ConnectError::NotReady {
                    after_ms,
                    csts: csts.0,
                });
            }
            sleep(CSTS_POLL).await;
        }
    }

    /// Whether this is a discovery controller: by its own word, or (before version 1.4) by having no I/O queues.
    pub fn is_discovery(&self) -> bool {
        let kind = self.identify.cntrltype;
        kind == IdentifyController::CNTRLTYPE_DISCOVERY
            || (kind == 0 && self.identify.ioccsz.get() == 0)
    }

    fn check(&self) -> Result<(), ConnectError> {
        let (id, css) = (&*self.identify, self.cap.css());
        let unusable = |what: String| Err(ConnectError::Unusable(what));
        if self.is_discovery() {
            return Ok(());
        }
        if css & (Cap::CSS_NVM | Cap::CSS_IOCSS) == 0 {
            return unusable(format!("it has no I/O command set (CAP.CSS {css:02x}h)"));
        }
        if id.ioccsz.get() < 4 {
            let bytes = id.ioccsz.get() * 16;
            return unusable(format!(
                "its I/O command capsules of {bytes} bytes do not hold a command"
            ));
        }
        if id.icdoff.get() != 0 {
            return unusable(format!(
                "it wants in-capsule data at an offset (ICDOFF {})",
                id.icdoff.get()
            ));
        }
        Ok(())
    }

    /// Asks for the notices that this host acts on, where the controller has any.
    async fn configure_events(&self) -> Result<(), ConnectError> {
        let offered = Oaes::from_bits_retain(self.identify.oaes.get());
        let mut wanted = AsyncEventConfig::empty();
        wanted.set(
            AsyncEventConfig::NAMESPACE_ATTRIBUTE,
            offered.contains(Oaes::NAMESPACE_ATTRIBUTE),
        );
        wanted.set(
            AsyncEventConfig::DISCOVERY_LOG_CHANGE,
            offered.contains(Oaes::DISCOVERY_LOG_CHANGE),
        );
        if wanted.is_empty() {
            return Ok(());
        }
        let sqe = SetFeatures::new(FeatureId::ASYNC_EVENT_CONFIGURATION, wanted.bits()).to_sqe();
        self.command("Set Features (asynchronous events)", sqe, AdminData::None)
            .await
            .map(drop)
    }

    /// Asks for `wanted` I/O queues; how many are granted.
    pub async fn set_number_of_queues(&self, wanted: u16) -> Result<u16, ConnectError> {
        let feature = SetFeatures::new(FeatureId::NUMBER_OF_QUEUES, NumberOfQueues::both(wanted).0);
        let reply = self
            .command(
                "Set Features (number of queues)",
                feature.to_sqe(),
                AdminData::None,
            )
            .await?;
        let granted = NumberOfQueues(reply.cqe.dw0.get()).pairs();
        Ok(granted.min(u32::from(wanted)) as u16)
    }

    /// Connects one I/O queue.
    pub async fn connect_io_queue(
        &self,
        target: &Target,
        host: &HostIdentity,
        qid: Qid,
    ) -> Result<Link, ConnectError> {
        let most = u32::from(self.cap.mqes() as u16) + 1;
        let spec = QueueSpec {
            target,
            host,
            qid,
            entries: u32::from(target.options.queue_size).min(most) as u16,
            cntlid: self.cntlid,
            in_capsule_bytes: self.identify.in_capsule_bytes(),
            kato_ms: 0,
        };
        match Link::connect(&spec).await {
            // There is no such controller any more, which the target says with Do Not Retry. That holds for this association, and the next one
            // has another controller.
            Err(ConnectError::Refused {
                parameter: Some(InvalidParameter::CNTLID),
                ..
            }) => Err(ConnectError::Admin {
                command: "Connect (I/O queue)",
                source: AdminError::Ended("the target has ended the association".to_owned()),
            }),
            result => result,
        }
    }

    /// Bounds of one command, from Identify Controller and its NVM part.
    pub async fn command_bounds(&self) -> Result<CommandBounds, ConnectError> {
        let oncs = Oncs::from_bits_retain(self.identify.oncs.get());
        let mdts_bytes = self.identify.mdts_bytes(PAGE_BYTES);
        // An older controller has no such structure, and then no such limits.
        let nvm = match self.identify_raw(Cns::CSI_CONTROLLER, Nsid::NONE).await {
            Ok(data) => NvmIdentifyController::read_from_bytes(&data).ok(),
            Err(AdminError::Status(_)) => None,
            Err(source) => {
                return Err(ConnectError::Admin {
                    command: "Identify (NVM command set)",
                    source,
                });
            }
        };
        let (wzsl, dmrsl) = nvm.map_or((0, 0), |nvm| (nvm.wzsl, nvm.dmrsl.get()));
        let write_zeroes_bytes = match wzsl {
            // Without a limit of its own Write Zeroes is bound by MDTS, as the Linux host takes it.
            0 => mdts_bytes.unwrap_or(u64::MAX),
            shift => u64::from(PAGE_BYTES)
                .checked_shl(shift.into())
                .unwrap_or(u64::MAX),
        };
        Ok(CommandBounds {
            transfer_bytes: mdts_bytes
                .map_or(MAX_TRANSFER_BYTES, |bytes| bytes.min(MAX_TRANSFER_BYTES)),
            write_zeroes_bytes: if oncs.contains(Oncs::WRITE_ZEROES) {
                write_zeroes_bytes
            } else {
                0
            },
            discard_blocks: match dmrsl {
                _ if !oncs.contains(Oncs::DATASET_MANAGEMENT) => 0,
                0 => u32::MAX,
                limit => limit,
            },
            compare: oncs.contains(Oncs::COMPARE),
        })
    }

    /// Whether completed writes may sit in a volatile cache.
    pub fn has_volatile_cache(&self) -> bool {
        Vwc::from_bits_retain(self.identify.vwc).contains(Vwc::PRESENT)
    }

    /// Whether any command counts as a sign of life.
    pub fn has_traffic_based_keep_alive(&self) -> bool {
        Ctratt::from_bits_retain(self.identify.ctratt.get()).contains(Ctratt::TBKAS)
    }

    async fn identify_controller(&self) -> Result<Box<IdentifyController>, ConnectError> {
        let data = self
            .identify_raw(Cns::CONTROLLER, Nsid::NONE)
            .await
            .map_err(|source| ConnectError::Admin {
                command: "Identify Controller",
                source,
            })?;
        Ok(Box::new(
            IdentifyController::read_from_bytes(&data).expect("4096 bytes, as asked for"),
        ))
    }

    /// One of the 4096-byte structures of Identify.
    pub async fn identify_raw(&self, cns: Cns, nsid: Nsid) -> Result<Vec<u8>, AdminError> {
        let sqe = IdentifyCommand::new(cns, nsid).to_sqe();
        Ok(self
            .admin
            .command(sqe, AdminData::In(IDENTIFY_DATA_BYTES as u32))
            .await?
            .data)
    }

    /// A piece of a log page.
    pub async fn log_page(
        &self,
        lid: LogId,
        len_bytes: u32,
        offset_bytes: u64,
    ) -> Result<Vec<u8>, AdminError> {
        let command = GetLogPage::new(lid, len_bytes, offset_bytes);
        Ok(self
            .admin
            .command(command.to_sqe(), AdminData::In(len_bytes))
            .await?
            .data)
    }

    /// One Keep Alive.
    pub async fn keep_alive(&self) -> Result<(), AdminError> {
        self.admin
            .command(keep_alive_sqe(), AdminData::None)
            .await
            .map(drop)
    }

    /// How often to think of Keep Alive; zero for never. Where traffic can stand in for it, twice as often as otherwise: traffic
    /// right after one look lets the next one pass, and the one after that must still come well within the time-out.
    pub fn keep_alive_period(&self) -> Duration {
        let looks = if self.has_traffic_based_keep_alive() {
            4
        } else {
            2
        };
        Duration::from_millis(u64::from(self.kato_ms) / looks)
    }

    /// How long a controller may be silent while it owes the answer to a Keep Alive: the time-out, as with Linux's host. The command
    /// goes out half of it after the controller was last heard, at most.
    pub fn keep_alive_limit(&self) -> Duration {
        Duration::from_millis(self.kato_ms.into())
    }

    /// Does what may take long without a word on the admin queue, and says there meanwhile that this host is alive.
    pub async fn kept_alive<T>(
        &self,
        work: impl Future<Output = Result<T, ConnectError>>,
    ) -> Result<T, ConnectError> {
        let every = self.keep_alive_period();
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = sleep(every), if !every.is_zero() => {
                    self.command("Keep Alive", keep_alive_sqe(), AdminData::None).await?;
                }
            }
        }
    }

    async fn csts(&self) -> Result<Csts, ConnectError> {
        Ok(Csts(property(&self.admin, Property::CSTS).await? as u32))
    }

    async fn set_property(&self, which: Property, value: u32) -> Result<(), ConnectError> {
        let sqe = PropertySqe::set(which, value).into_sqe();
        self.command("Property Set", sqe, AdminData::None)
            .await
            .map(drop)
    }

    async fn command(
        &self,
        command: &'static str,
        sqe: Sqe,
        data: AdminData,
    ) -> Result<AdminReply, ConnectError> {
        self.admin
            .command(sqe, data)
            .await
            .map_err(|source| ConnectError::Admin { command, source })
    }

    /// Shuts the controller down in order (CC.SHN), then closes the admin connection.
    pub async fn shut_down(self) {
        let order = async {
            let cc = Cc(property(&self.admin, Property::CC).await? as u32);
            self.set_property(Property::CC, cc.with_shn(Cc::SHN_NORMAL).0)
                .await?;
            while self.csts().await?.shst() != Csts::SHST_COMPLETE {
                sleep(CSTS_POLL).await;
            }
            Ok::<_, ConnectError>(())
        };
        match tokio::time::timeout(SHUTDOWN_LIMIT, order).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "no orderly shutdown of the controller"),
            Err(_) => tracing::debug!("the controller did not shut down in time"),
        }
        self.admin.close().await;
    }
}

async fn property(admin: &AdminQueue, which: Property) -> Result<u64, ConnectError> {
    match admin
        .command(PropertySqe::get(which).into_sqe(), AdminData::None)
        .await
    {
        Ok(reply) => Ok(reply.cqe.result()),
        Err(source) => Err(ConnectError::Admin {
            command: "Property Get",
            source,
        }),
    }
}
