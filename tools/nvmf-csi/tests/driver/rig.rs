//! A target with a pool on an XFS of its own, a node, and the driver between them, each a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use nvmf_csi::proto::controller_client::ControllerClient;
use nvmf_csi::proto::group_controller_client::GroupControllerClient;
use nvmf_csi::proto::identity_client::IdentityClient;
use nvmf_csi::proto::node_client::NodeClient;
use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use nvmf_csi::proto::*;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

pub const MIB: i64 = 1 << 20;
pub const NODE: &str = "nqn.2014-08.org.nvmexpress:uuid:2a5e7d5c-6a5b-4d0e-9b43-0d1f3a1c0001";
pub const OTHER_NODE: &str = "nqn.2014-08.org.nvmexpress:uuid:2a5e7d5c-6a5b-4d0e-9b43-0d1f3a1c0002";
const NODE_HOSTID: &str = "2a5e7d5c-6a5b-4d0e-9b43-0d1f3a1c0001";
/// How long a process may take to be ready, or to end; generous, since many tests run at once.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const POOL_MIB: u64 = 2048;

pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A program of this workspace, built beside the driver.
fn program(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_nvmf-csi")).with_file_name(name);
    assert!(
        path.exists(),
        "{} is missing: cargo build --workspace",
        path.display()
    );
    path
}

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        // A process outside tells nobody when it is there.
        std::thread::sleep(LOOK_EVERY);
    }
}

struct Process(Child);

impl Process {
    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

pub struct Rig {
    pub dir: TempDir,
    target: Process,
    driver: Option<Process>,
}

impl Rig {
    /// `None` where this process may not mount: except in CI, where that is a failure.
    pub fn new(test: &str) -> Option<Rig> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "{test} needs root and /dev/fuse"
            );
            eprintln!("{test}: not tested, needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
        std::fs::File::create(path("image"))
            .unwrap()
            .set_len(POOL_MIB << 20)
            .unwrap();
        run("mkfs.xfs", &["-q", "-f", "-m", "reflink=1", &path("image")]);
        std::fs::create_dir(path("pool")).unwrap();
        run("mount", &["-o", "loop", &path("image"), &path("pool")]);
        let config = format!(
            "listen = [\"tcp://127.0.0.1:0\"]\n[api]\nsocket = \"{}\"\nstate-dir = \"{}\"\n[pool.fast]\npath = \"{}\"\n\
             nqn-prefix = \"nqn.2024-01.org.example\"\novercommit = \"allow\"\n",
            path("rpc.sock"),
            path("state"),
            path("pool"),
        );
        std::fs::write(path("target.toml"), config).unwrap();
        let target = Command::new(program("nvmf-target"))
            .args([
                "--config",
                &path("target.toml"),
                "--ready-file",
                &path("ready"),
            ])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path("target.log")).unwrap())
            .spawn()
            .unwrap();
        let mut rig = Rig {
            dir,
            target: Process(target),
            driver: None,
        };
        until("the target", || {
            std::fs::metadata(path("ready")).is_ok_and(|ready| ready.len() > 0)
        });
        rig.start_driver();
        Some(rig)
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn start_driver(&mut self) {
        let driver = Command::new(env!("CARGO_BIN_EXE_nvmf-csi"))
            .args([
                "--endpoint",
                &format!("unix://{}", self.path("csi.sock")),
                "--mode",
                "all",
            ])
            .args([
                "--rpc",
                &self.path("rpc.sock"),
                "--run-dir",
                &self.path("node"),
            ])
            .args([
                "--hostnqn",
                NODE,
                "--hostid",
                NODE_HOSTID,
                "--block",
                "fuse",
            ])
            .args(["--topology", "example.org/zone=a"])
            .arg("--initiator")
            .arg(program("nvmf-initiator"))
            .args(["--initiator-run-dir", &self.path("initiator")])
            .stdout(Stdio::null())
            .stderr(
                std::fs::File::options()
                    .create(true)
                    .append(true)
                    .open(self.path("csi.log"))
                    .unwrap(),
            )
            .spawn()
            .unwrap();
        self.driver = Some(Process(driver));
        let socket = self.path("csi.sock");
        until("the driver", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
    }

    /// kill -9.
    pub fn kill_driver(&mut self) {
        self.driver = None;
    }

    async fn channel(&self) -> Channel {
        let socket = self.path("csi.sock");
        // The authority that Kubernetes' own clients send.
        let endpoint = Endpoint::from_static("http://localhost");
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                tokio::net::UnixStream::connect(socket)
                    .await
                    .map(TokioIo::new)
            }
        });
        endpoint.connect_with_connector(connect).await.unwrap()
    }

    pub async fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel().await)
    }

    pub async fn groups(&self) -> GroupControllerClient<Channel> {
        GroupControllerClient::new(self.channel().await)
    }

    pub async fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel().await)
    }

    pub async fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel().await)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.driver = None;
        // Whatever a failed test left: mounts of the node, then its devices, then the pool.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = self.path("");
        for at in mounts
            .lines()
            .rev()
            .filter_map(|line| line.split(' ').nth(4))
        {
            if at.starts_with(&below)
                && !at.ends_with("/pool")
                && !at.ends_with("/initiator")
                && !at.contains("/initiator/")
            {
                let _ = Command::new("umount").args(["-l", at]).status();
            }
        }
        let initiator = Path::new(env!("CARGO_BIN_EXE_nvmf-csi")).with_file_name("nvmf-initiator");
        let node = nvmf_volume::Node::new(nvmf_volume::NodeOptions {
            initiator_run_dir: self.dir.path().join("initiator"),
            run_dir: self.dir.path().join("node"),
            initiator: initiator.clone(),
        });
        for controller in node.attached().unwrap_or_default() {
            let _ = Command::new(&initiator)
                .args([
                    "--run-dir",
                    &self.path("initiator"),
                    "disconnect",
                    "--force",
                    "-n",
                    &controller.subnqn,
                ])
                .status();
        }
        self.target.end();
        // The rings of a process that was killed close its files a moment after its end.
        let end = Instant::now() + PATIENCE;
        let pool = self.path("pool");
        while !Command::new("umount")
            .args(["-q", &pool])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
        {
            if Instant::now() > end {
                eprintln!("{pool} stays mounted");
                break;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// The use of a volume as a file system; empty for the default one.
pub fn mount_as(fs_type: &str, mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: fs_type.into(),
            ..MountVolume::default()
        })),
    }
}

/// The use of a volume as a raw device.
pub fn block(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    }
}

/// A request for a volume of this name.
pub fn volume(name: &str, capability: VolumeCapability, size_mib: i64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange {
            required_bytes: size_mib * MIB,
            limit_bytes: 0,
        }),
        volume_capabilities: vec![capability],
        ..CreateVolumeRequest::default()
    }
}
