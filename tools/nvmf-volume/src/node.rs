//! Devices from the initiator's daemon, and who claims them.
//!
//! Several volumes may be namespaces of one subsystem, and so share one association. Each volume that is attached leaves a claim,
//! a file in the run folder, before anything is connected; the association ends with its last claim. After a crash the
//! claims are what may have been attached. They go with a reboot, as associations do.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nvmf_initiator::address::Address;
use nvmf_initiator::daemon::RunDir;
use nvmf_initiator::daemon::api::{
    AttachRequest, ConnectRequest, ControllerStatus, Failure, FailureKind, NamespaceSelector,
    Reply, Request, Selection,
};
use nvmf_initiator::daemon::client::{self, Absent};
use nvmf_initiator::host::HostIdentity;
use nvmf_initiator::options::{ConnectOptions, Target};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::error::Error;
use crate::file;
use crate::lock::{VolumeLock, file_name};

/// How long a detach is tried while something looks at the device, as udev does after each change of it.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
/// How often it is tried meanwhile: nobody tells when a device is closed.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// Where things are on this node.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// The run folder of the initiator's daemon.
    pub initiator_run_dir: PathBuf,
    /// The initiator, which is started where no daemon is there.
    pub initiator: PathBuf,
    /// For locks and claims; in a place that a reboot empties, and the same for all that share the daemon.
    pub run_dir: PathBuf,
}

impl Default for NodeOptions {
    fn default() -> Self {
        NodeOptions {
            initiator_run_dir: nvmf_initiator::daemon::RUN_DIR.into(),
            initiator: "nvmf-initiator".into(),
            run_dir: "/run/nvmf-volume".into(),
        }
    }
}

/// What to attach, and for whom.
#[derive(Debug, Clone)]
pub struct AttachSpec {
    /// The port.
    pub address: Address,
    /// The subsystem.
    pub subnqn: String,
    /// This host.
    pub host: HostIdentity,
    /// The namespace.
    pub namespace: NamespaceSelector,
    /// How to connect, where it is not connected yet.
    pub options: ConnectOptions,
    /// The form of the device: `auto`, `ublk`, `fuse` or `nbd`.
    pub block: String,
    /// Who claims it: a name that is used by no other volume and no other program, such as `docker/NAME`.
    pub owner: String,
    /// Bytes that it must have at least; waits until a volume that grew has them here.
    pub min_size_bytes: u64,
    /// How long all of it may take.
    pub limit: Duration,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its node in `/dev`.
    pub device: PathBuf,
    /// The stable name, where there is one.
    pub by_id: Option<PathBuf>,
    /// Its size.
    pub size_bytes: u64,
    /// Its block size.
    pub block_bytes: u32,
    /// Whether it can only be read.
    pub read_only: bool,
}

/// A volume that is attached, or is being attached or detached, or was when its manager died.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// See [`AttachSpec::owner`].
    pub owner: String,
    /// The port.
    pub address: Address,
    /// The subsystem.
    pub subnqn: String,
    /// The host.
    pub hostnqn: String,
}

/// A namespace as the daemon sees it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its device.
    pub device: Option<PathBuf>,
    /// Its size.
    pub size_bytes: u64,
    /// What is wrong with the association, in the daemon's words; `None` while it is live.
    pub fault: Option<String>,
}

/// What became of the association when a claim ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    /// It ended, and its devices are gone.
    Ended,
    /// It was not there.
    WasNot,
    /// Others claim it.
    Shared,
}

/// This node.
#[derive(Debug, Clone)]
pub struct Node {
    initiator: RunDir,
    program: PathBuf,
    run_dir: PathBuf,
}

impl Node {
    /// The node. Nothing is started or made yet.
    pub fn new(options: NodeOptions) -> Node {
        Node {
            initiator: RunDir::new(options.initiator_run_dir),
            program: options.initiator,
            run_dir: options.run_dir,
        }
    }

    /// Waits for the lock of a subsystem, which all operations on its volumes hold.
    pub fn lock(&self, subnqn: &str) -> Result<VolumeLock> {
        VolumeLock::take(&self.locks_dir(), subnqn)
    }

    /// Has a namespace attached, however far earlier attempts came. Returns when its device can be used.
    pub fn attach(&self, _lock: &VolumeLock, spec: &AttachSpec) -> Result<Attached> {
        let claim = Claim {
            owner: spec.owner.clone(),
            address: spec.address.clone(),
            subnqn: spec.subnqn.clone(),
            hostnqn: spec.host.hostnqn.clone(),
        };
        self.write_claim(&claim)?;
        let request = Request::Attach(AttachRequest {
            connect: ConnectRequest {
                target: Target {
                    address: spec.address.clone(),
                    subnqn: spec.subnqn.clone(),
                    options: spec.options.clone(),
                },
                host: spec.host.clone(),
                block: spec.block.clone(),
            },
            namespace: spec.namespace,
            min_size_bytes: spec.min_size_bytes,
            timeout_ms: u32::try_from(spec.limit.as_millis()).unwrap_or(u32::MAX),
        });
        let reply = self.ask(request, Absent::StartProgram(&self.program))?;
        let Some(Reply::Connected(status)) = reply else {
            return Err(unexpected(reply));
        };
        let namespace = spec.namespace.find(&status.namespaces)?;
        let Some((namespace, device)) = namespace.and_then(|ns| Some((ns, ns.device.clone()?)))
        else {
            return Err(unexpected(Some(Reply::Connected(status))));
        };
        if !device.exists() {
            return Err(Error::Setting(format!(
                "the daemon made {}, which does not exist here: this program needs the node's own /dev",
                device.display()
            )));
        }
        Ok(Attached {
            device,
            by_id: namespace.by_id.clone(),
            size_bytes: namespace.size_bytes,
            block_bytes: namespace.block_bytes,
            read_only: namespace.read_only,
        })
    }

    /// Ends an owner's claim, and with the last claim the association. Refused while a device of it is in use.
    pub fn detach(&self, _lock: &VolumeLock, claim: &Claim) -> Result<Detached> {
        let same = |other: &Claim| {
            other.owner != claim.owner
                && (&other.address, &other.subnqn, &other.hostnqn)
                    == (&claim.address, &claim.subnqn, &claim.hostnqn)
        };
        let detached = match self.claims()?.iter().any(same) {
            true => Detached::Shared,
            false => self.disconnect(claim)?,
        };
        file::remove(&self.claim_path(claim))?;
        Ok(detached)
    }

    fn disconnect(&self, claim: &Claim) -> Result<Detached> {
        let deadline = Instant::now() + BUSY_LIMIT;
        loop {
            let what = Selection::Association {
                address: claim.address.clone(),
                subnqn: claim.subnqn.clone(),
                hostnqn: claim.hostnqn.clone(),
            };
            let request = Request::Disconnect { what, force: false };
            match self.ask(request, Absent::Accept) {
                Ok(Some(Reply::Disconnected(_))) => return Ok(Detached::Ended),
                Ok(None) => return Ok(Detached::WasNot),
                Err(Error::Initiator(Failure {
                    kind: FailureKind::NotFound,
                    ..
                })) => return Ok(Detached::WasNot),
                Err(Error::Initiator(Failure {
                    kind: FailureKind::Busy,
                    ..
                })) if Instant::now() < deadline => std::thread::sleep(TRY_EVERY),
                Ok(reply) => return Err(unexpected(reply)),
                Err(error) => return Err(error),
            }
        }
    }

    /// All claims: what is attached by whom, or was when its manager died.
    pub fn claims(&self) -> Result<Vec<Claim>> {
        let folder = self.claims_dir();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::system("read", &folder)(error)),
        };
        let mut claims = Vec::new();
        for entry in entries {
            let path = entry.map_err(Error::system("read", &folder))?.path();
            if path.extension().is_none_or(|extension| extension != CLAIM) {
                continue;
            }
            // One may go meanwhile.
            claims.extend(file::read(&path)?);
        }
        Ok(claims)
    }

    /// What the daemon has attached, for whomever.
    pub fn attached(&self) -> Result<Vec<ControllerStatus>> {
        match self.ask(Request::List, Absent::Accept)? {
            Some(Reply::List(controllers)) => Ok(controllers),
            None => Ok(Vec::new()),
            reply => Err(unexpected(reply)),
        }
    }

    /// How a claimed namespace is; `None` where the daemon does not have it. Nothing is changed.
    pub fn look(&self, claim: &Claim, namespace: NamespaceSelector) -> Result<Option<Seen>> {
        let address = claim.address.to_string();
        let is_it = |controller: &&ControllerStatus| {
            (&controller.address, &controller.subnqn, &controller.hostnqn)
                == (&address, &claim.subnqn, &claim.hostnqn)
        };
        let controllers = self.attached()?;
        let Some(controller) = controllers.iter().find(is_it) else {
            return Ok(None);
        };
        let namespace = namespace.find(&controller.namespaces)?;
        Ok(namespace.map(|namespace| Seen {
            device: namespace.device.clone(),
            size_bytes: namespace.size_bytes,
            fault: (!controller.is_live()).then(|| controller.state.clone()),
        }))
    }

    /// Removes what managers that died left of their locks.
    pub fn sweep(&self) -> Result<()> {
        VolumeLock::sweep(&self.locks_dir())
    }

    fn ask(&self, request: Request, absent: Absent<'_>) -> Result<Option<Reply>> {
        Ok(client::ask(&self.initiator, request, absent)?)
    }

    fn locks_dir(&self) -> PathBuf {
        self.run_dir.join("locks")
    }

    fn claims_dir(&self) -> PathBuf {
        self.run_dir.join("claims")
    }

    fn claim_path(&self, claim: &Claim) -> PathBuf {
        self.claims_dir()
            .join(format!("{}.{CLAIM}", file_name(&claim.owner)))
    }

    fn write_claim(&self, claim: &Claim) -> Result<()> {
        file::replace(&self.claim_path(claim), claim)
    }
}

/// The extension of a claim's file.
const CLAIM: &str = "claim";

fn unexpected(reply: Option<Reply>) -> Error {
    Error::Initiator(
        FailureKind::Other.because(format!("the daemon answered something else: {reply:?}")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(folder: &tempfile::TempDir) -> Node {
        Node::new(NodeOptions {
            initiator_run_dir: folder.path().join("initiator"),
            initiator: "/nowhere/nvmf-initiator".into(),
            run_dir: folder.path().join("run"),
        })
    }

    fn claim(owner: &str) -> Claim {
        Claim {
            owner: owner.into(),
            address: Address::tcp("192.0.2.1", 4420),
            subnqn: "nqn.2024-01.org.example:v".into(),
            hostnqn: "nqn.2024-01.org.example:h".into(),
        }
    }

    #[test]
    fn claims_are_kept_until_their_owner_detaches() {
        let folder = tempfile::tempdir().unwrap();
        let node = node(&folder);
        assert_eq!(node.claims().unwrap(), []);
        let (one, two) = (claim("docker/a"), claim("docker/b"));
        node.write_claim(&one).unwrap();
        node.write_claim(&one).unwrap();
        node.write_claim(&two).unwrap();
        // Half a claim, of a manager that died while it wrote.
        fs::write(node.claims_dir().join("x.new"), "{").unwrap();
        let mut claims = node.claims().unwrap();
        claims.sort_by(|a, b| a.owner.cmp(&b.owner));
        assert_eq!(claims, [one.clone(), two.clone()]);
        let lock = node.lock(&one.subnqn).unwrap();
        assert_eq!(node.detach(&lock, &one).unwrap(), Detached::Shared);
        // No daemon is there, so nothing can be attached.
        assert_eq!(node.detach(&lock, &two).unwrap(), Detached::WasNot);
        assert_eq!(node.detach(&lock, &two).unwrap(), Detached::WasNot);
        assert_eq!(node.claims().unwrap(), []);
        assert_eq!(node.attached().unwrap(), []);
    }

    #[test]
    fn a_missing_initiator_is_named_and_the_claim_stays() {
        let folder = tempfile::tempdir().unwrap();
        let node = node(&folder);
        let claim = claim("docker/a");
        let spec = AttachSpec {
            address: claim.address.clone(),
            subnqn: claim.subnqn.clone(),
            host: HostIdentity {
                hostnqn: claim.hostnqn.clone(),
                hostid: uuid::Uuid::nil(),
            },
            namespace: NamespaceSelector::Only,
            options: ConnectOptions::default(),
            block: "auto".into(),
            owner: claim.owner.clone(),
            min_size_bytes: 0,
            limit: Duration::from_secs(1),
        };
        let lock = node.lock(&claim.subnqn).unwrap();
        let error = node.attach(&lock, &spec).unwrap_err().to_string();
        assert!(error.contains("/nowhere/nvmf-initiator"), "{error}");
        assert_eq!(node.claims().unwrap(), [claim]);
    }
}
