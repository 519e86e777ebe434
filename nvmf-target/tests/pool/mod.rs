//! Pools as hosts and clients of the management API meet them: on XFS made for each test, with a real target and real connections.

mod access;
mod copies;
mod full;
mod many;
mod volumes;

use nvmf_rpc::types::{AddHost, CreateSnapshot, CreateVolume, Method, Snapshot, Source, Volume};

use crate::api::client::{SOCKET, STATE};
use crate::common::host::TestHost;
use crate::common::mount::Mount;
use crate::process::Target;
use crate::session::{HOST, Options, Session};

pub const MIB: u64 = 1 << 20;
pub const POOL: &str = "p";

/// A target with a pool, and the file system of that.
pub struct Rig {
    pub target: Target,
    pub mount: Mount,
    more: String,
}

impl Rig {
    /// With a pool on XFS; `None` when this process may not mount.
    pub fn xfs(test: &str, more: &str) -> Option<Self> {
        Mount::xfs(test, 512 * MIB).map(|mount| Self::on(mount, more))
    }

    /// With a pool on `mount`, and more keys for it.
    pub fn on(mount: Mount, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let target = Self::start(dir, &mount, more);
        let more = more.to_owned();
        Rig {
            target,
            mount,
            more,
        }
    }

    fn start(dir: tempfile::TempDir, mount: &Mount, more: &str) -> Target {
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let text = format!(
            "[api]\nsocket = \"{}\"\nstate-dir = \"{}\"\n\
             [pool.{POOL}]\npath = \"{}\"\nnqn-prefix = \"nqn.2025-01.org.example\"\n{more}\n",
            path(SOCKET),
            path(STATE),
            mount.root().display(),
        );
        Target::with_file_in(dir, &text)
    }

    /// Kills the target, and starts another one on what it left.
    pub fn kill_and_restart(&mut self) {
        self.target.signal(rustix::process::Signal::KILL);
        self.target.wait_exit();
        let dir = std::mem::replace(&mut self.target.dir, tempfile::tempdir().unwrap());
        self.target = Self::start(dir, &self.mount, &self.more);
    }

    /// A call that must succeed.
    pub fn ask<M: Method>(&self, params: M) -> M::Result {
        let value = serde_json::to_value(params).unwrap();
        serde_json::from_value(self.target.call(M::NAME, value)).unwrap()
    }

    /// The code of a call that must be refused.
    pub fn refused<M: Method>(&self, params: M) -> i32 {
        let value = serde_json::to_value(params).unwrap();
        self.target.refusal(M::NAME, value).code
    }

    /// A volume that the first host may use.
    pub fn volume(&self, name: &str, size_bytes: u64) -> Volume {
        self.ask(CreateVolume {
            size_bytes: Some(size_bytes),
            hosts: vec![HOST.to_owned()],
            ..volume(name)
        })
    }

    pub fn snapshot(&self, volume: &str, name: &str) -> Snapshot {
        self.ask(CreateSnapshot {
            pool: POOL.into(),
            volume: volume.into(),
            name: name.into(),
            ..CreateSnapshot::default()
        })
    }

    pub fn make_clone(&self, name: &str, source: Source) -> Volume {
        self.ask(CreateVolume {
            source: Some(source),
            hosts: vec![HOST.to_owned()],
            ..volume(name)
        })
    }

    pub fn grant(&self, name: &str, host: &str) -> Volume {
        self.ask(AddHost {
            pool: POOL.into(),
            name: name.into(),
            host: host.into(),
        })
    }

    /// The first host's association with the volume.
    pub fn session(&self, volume: &Volume) -> Session {
        Session::bring_up(self.target.address(), Options::new(&volume.nqn))
    }

    /// Connects the first host with an I/O queue.
    pub fn connect(&self, volume: &Volume) -> (Session, TestHost) {
        let session = self.session(volume);
        let mut queue = session.io_queue(1);
        queue.block_bytes = volume.block_size.into();
        queue.nsid = nvme_proto::wire::Nsid(volume.nsid);
        (session, queue)
    }
}

/// Parameters for a volume of this name.
pub fn volume(name: &str) -> CreateVolume {
    CreateVolume {
        pool: POOL.into(),
        name: name.into(),
        ..CreateVolume::default()
    }
}
