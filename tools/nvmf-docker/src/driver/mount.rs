//! Mounting volumes for containers, and taking them away again.
//!
//! | step of Mount | undone by | a crash after it leaves |
//! |---|---|---|
//! | the claim is written down | release | a claim, which [`Driver::tidy`] ends |
//! | this host is granted access | release | a grant, the same |
//! | attached, formatted, mounted | release | a mount without a reference, the same |
//! | the reference is written down | Unmount | what was asked for, but for the answer |

use std::path::{Path, PathBuf};
use std::time::Duration;

use nvmf_rpc::types::Volume;
use nvmf_volume::mountinfo::{self, mount_at};
use nvmf_volume::stage::remove_lost_and_found;
use nvmf_volume::{
    AttachSpec, Attached, Claim, FsKind, FsSpec, NamespaceSelector, VolumeLock, stage, unstage,
};

use super::Driver;
use crate::error::Error;
use crate::pool;
use crate::state::Record;

/// How long an attach may take; a Mount as a whole must be done before dockerd gives it up after 120 seconds.
const ATTACH_LIMIT: Duration = Duration::from_secs(60);

impl Driver {
    /// Has the volume mounted, for `id`; where.
    pub fn mount(&self, name: &str, id: &str) -> Result<PathBuf, Error> {
        let _lock = self.lock(name)?;
        let mut record = self.known(name)?;
        let at = self.mountpoint(name);
        if mount_at(&at)?.is_none() || record.claim.is_none() {
            self.mount_first(name, &mut record, &at)?;
        }
        let epoch = self.store.epoch();
        record.references.add(epoch, id);
        self.put(name, &record)?;
        tracing::info!(name, id, references = record.references.count(), "mounted");
        Ok(at)
    }

    /// Ends one use by `id`; the last one's end unmounts and detaches.
    pub fn unmount(&self, name: &str, id: &str) -> Result<(), Error> {
        let _lock = self.lock(name)?;
        let mut record = self.known(name)?;
        match record.references.remove(self.store.epoch(), id) {
            true => self.put(name, &record)?,
            // Counted already, or by a plugin whose state was lost.
            false => tracing::warn!(name, id, "unmount of what is not mounted"),
        }
        self.drop_doubtful(name, &mut record)?;
        tracing::info!(
            name,
            id,
            references = record.references.count(),
            "unmounted"
        );
        match record.references.is_empty() {
            true => self.release(name, &mut record),
            false => Ok(()),
        }
    }

    fn mount_first(&self, name: &str, record: &mut Record, at: &Path) -> Result<(), Error> {
        let volume = self.target.volume(&record.pool, name)?;
        let volume = volume.ok_or_else(|| {
            Error::Request(format!(
                "volume {name} is gone from pool {}: somebody removed it on the target; `docker volume rm` forgets it here",
                record.pool
            ))
        })?;
        record.learn(&volume);
        record.claim = Some(Claim {
            owner: owner(name),
            address: pool::address(&volume, self.settings.traddr.as_deref())?,
            subnqn: volume.nqn.clone(),
            hostnqn: self.settings.host.hostnqn.clone(),
        });
        self.put(name, record)?;
        let mounted = self.grant(name, record).and_then(|()| {
            let lock = self.node.lock(&volume.nqn)?;
            let attached = self.attach(&lock, name, record, &volume)?;
            let spec = FsSpec {
                mkfs_options: record.mkfs_options.clone(),
                read_only: record.read_only,
                ..FsSpec::new(record.fs)
            };
            let staged = stage(&lock, &attached, &spec, at)?;
            if staged.mounted && !record.read_only && record.fs == FsKind::Ext4 {
                remove_lost_and_found(at)?;
            }
            Ok(())
        });
        if let Err(error) = mounted {
            if let Err(error) = self.release(name, record) {
                tracing::warn!(name, %error, "left behind after a mount that failed; it is tried again");
            }
            return Err(error);
        }
        Ok(())
    }

    /// Has this host granted access, and no other one on which a file system could be mounted that is mounted here.
    fn grant(&self, name: &str, record: &Record) -> Result<(), Error> {
        let own = &self.settings.host.hostnqn;
        let volume = self.target.add_host(&record.pool, name, own)?;
        if volume.read_only {
            return Ok(());
        }
        // Both of two nodes that come at the same time see each other, and neither goes on.
        let hosts: Vec<_> = volume
            .hosts
            .into_iter()
            .filter(|host| host != own)
            .collect();
        match hosts.is_empty() {
            true => Ok(()),
            false => Err(Error::Elsewhere {
                name: name.to_owned(),
                hosts,
            }),
        }
    }

    pub(super) fn attach(
        &self,
        lock: &VolumeLock,
        name: &str,
        record: &Record,
        volume: &Volume,
    ) -> Result<Attached, Error> {
        let address = match &record.claim {
            // What is attached stays where it is, also when the target listens elsewhere by now.
            Some(claim) => claim.address.clone(),
            None => pool::address(volume, self.settings.traddr.as_deref())?,
        };
        let spec = AttachSpec {
            address,
            subnqn: volume.nqn.clone(),
            host: self.settings.host.clone(),
            namespace: NamespaceSelector::Nsid(volume.nsid),
            options: self.settings.connect.clone(),
            block: self.settings.block.clone(),
            owner: owner(name),
            min_size_bytes: volume.size_bytes,
            limit: ATTACH_LIMIT,
        };
        Ok(self.node.attach(lock, &spec)?)
    }

    /// Unmounts, detaches and gives the grant back; each if it is so.
    pub(super) fn release(&self, name: &str, record: &mut Record) -> Result<(), Error> {
        let Some(claim) = record.claim.clone() else {
            return Ok(());
        };
        let lock = self.node.lock(&claim.subnqn)?;
        unstage(&lock, &self.mountpoint(name))?;
        self.node.detach(&lock, &claim)?;
        drop(lock);
        if let Err(error) = self.target.remove_host(&record.pool, name, &claim.hostnqn) {
            // It is unmounted, which is what matters here; the grant is given back when the target is there again.
            tracing::warn!(name, %error, "the grant of this host stays for now");
            return Ok(());
        }
        record.claim = None;
        self.put(name, record)
    }

    /// Forgets what dockerds that were killed referred to, unless a container still uses the volume.
    pub(super) fn drop_doubtful(&self, name: &str, record: &mut Record) -> Result<(), Error> {
        if !record.references.are_doubtful(self.store.epoch()) {
            return Ok(());
        }
        if let Some(mount) = mount_at(&self.mountpoint(name))?
            && !mountinfo::users_elsewhere(mount.device).is_empty()
        {
            return Ok(());
        }
        tracing::info!(
            name,
            references = record.references.count(),
            "of a dockerd that is gone: forgotten"
        );
        record.references.clear();
        self.put(name, record)
    }
}

/// As whom the plugin claims a volume on this node.
fn owner(name: &str) -> String {
    format!("docker/{name}")
}
