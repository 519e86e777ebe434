//! Targets with a pool on an XFS of their own each, a node, and the driver between them, each a process of its own.

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
use nvmf_initiator::daemon::RunDir;
use nvmf_initiator::daemon::api::Request;
use nvmf_initiator::daemon::client::{Absent, ask};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

pub const MIB: i64 = 1 << 20;
pub const NODE: &str = "nqn.2014-08.org.nvmexpress:uuid:2a5e7d5c-6a5b-4d0e-9b43-0d1f3a1c0001";
pub const OTHER_NODE: &str = "nqn.2014-08.org.nvmexpress:uuid:2a5e7d5c-6a5b-4d0e-9b43-0d1f3a1c0002";
/// How long a process may take to be ready, or to end; generous, since many tests run at once.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const POOL_MIB: u64 = 2048;
/// So much of each log is shown when a test fails.
const LOG_LINES: usize = 40;

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
pub fn program(name: &str) -> PathBuf {
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

/// A process that ends with its owner.
pub struct Process(Child);

impl Process {
    pub fn start(command: &mut Command, log: &Path) -> Process {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Process(
            command
                .spawn()
                .unwrap_or_else(|error| panic!("{command:?}: {error}")),
        )
    }

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

/// A place where a driver runs: what is its own there, the network included.
#[derive(Clone)]
pub struct Site {
    /// Ends the names of its files.
    pub name: &'static str,
    pub mode: &'static str,
    pub hostnqn: &'static str,
    /// The network namespace, by name; empty for that of the test.
    pub netns: String,
    pub arguments: Vec<String>,
    /// What it logs.
    pub log: &'static str,
}

impl Site {
    /// Controller and node in one.
    pub fn all() -> Site {
        Site {
            name: "",
            mode: "all",
            hostnqn: NODE,
            netns: String::new(),
            arguments: ["--topology", "example.org/zone=a"]
                .map(str::to_owned)
                .into(),
            log: "info",
        }
    }
}

/// A program in a network namespace.
pub fn within(netns: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    if netns.is_empty() {
        return Command::new(program);
    }
    // Of the network alone: `ip netns exec` would hide mounts from the test.
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/{netns}"))
        .arg("--")
        .arg(program);
    command
}

/// A driver that answers.
pub struct Driver {
    process: Process,
    socket: PathBuf,
}

impl Driver {
    pub async fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(channel(&self.socket).await)
    }

    pub async fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(channel(&self.socket).await)
    }
}

async fn channel(socket: &Path) -> Channel {
    // The authority that Kubernetes' own clients send.
    let endpoint = Endpoint::from_static("http://localhost");
    let socket = socket.to_owned();
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

/// A target with a pool. Its files are called by its name.
struct Storage {
    name: String,
    process: Process,
}

impl Storage {
    fn file(dir: &Path, what: &str, name: &str) -> String {
        let file = match name {
            "" => what.to_owned(),
            name => format!("{what}-{name}"),
        };
        dir.join(file).to_str().unwrap().to_owned()
    }

    /// Makes the pool and serves it.
    fn make(
        dir: &Path,
        name: &str,
        pool_mib: u64,
        netns: &str,
        listen: &str,
        lines: &str,
    ) -> Storage {
        let path = |what: &str| Storage::file(dir, what, name);
        let image = std::fs::File::create(path("image")).unwrap();
        image.set_len(pool_mib << 20).unwrap();
        run("mkfs.xfs", &["-q", "-f", "-m", "reflink=1", &path("image")]);
        std::fs::create_dir(path("pool")).unwrap();
        run("mount", &["-o", "loop", &path("image"), &path("pool")]);
        let config = format!(
            "listen = [\"tcp://{listen}\"]\n[api]\nsocket = \"{}\"\nstate-dir = \"{}\"\n{lines}[pool.fast]\npath = \"{}\"\n\
             nqn-prefix = \"nqn.2024-01.org.example\"\novercommit = \"allow\"\n",
            path("rpc.sock"),
            path("state"),
            path("pool"),
        );
        std::fs::write(path("target.toml"), config).unwrap();
        Storage {
            process: Storage::start(dir, name, netns),
            name: name.to_owned(),
        }
    }

    fn start(dir: &Path, name: &str, netns: &str) -> Process {
        let path = |what: &str| Storage::file(dir, what, name);
        let _ = std::fs::remove_file(path("ready"));
        let mut command = within(netns, program("nvmf-target"));
        command.args(["--config", &path("target.toml")]);
        command.args(["--ready-file", &path("ready")]);
        let log = match name {
            "" => "target.log".to_owned(),
            name => format!("target-{name}.log"),
        };
        let process = Process::start(&mut command, &dir.join(log));
        until("the target", || {
            std::fs::metadata(path("ready")).is_ok_and(|ready| ready.len() > 0)
        });
        process
    }
}

pub struct Rig {
    pub dir: TempDir,
    /// How the driver runs that [`Rig::start_driver`] starts.
    pub site: Site,
    targets: Vec<Storage>,
    driver: Option<Driver>,
}

impl Rig {
    /// With controller and node in one driver. `None` where this process may not mount: except in CI, where that is a failure.
    pub fn new(test: &str) -> Option<Rig> {
        let mut rig = Rig::without_driver(test, "", "127.0.0.1:0")?;
        rig.start_driver();
        Some(rig)
    }

    /// With a target in a network namespace, and no driver yet.
    pub fn without_driver(test: &str, netns: &str, listen: &str) -> Option<Rig> {
        Rig::with_api(test, netns, listen, "")
    }

    /// The same, with more lines after `[api]` of the target's configuration.
    pub fn with_api(test: &str, netns: &str, listen: &str, lines: &str) -> Option<Rig> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "{test} needs root and /dev/fuse"
            );
            eprintln!("{test}: not tested, needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let target = Storage::make(dir.path(), "", POOL_MIB, netns, listen, lines);
        Some(Rig {
            dir,
            site: Site::all(),
            targets: vec![target],
            driver: None,
        })
    }

    /// Adds a target with a larger pool, that the driver knows by this name when it is started next.
    pub fn add_target(&mut self, name: &str) {
        let dir = self.dir.path();
        let target = Storage::make(dir, name, 2 * POOL_MIB, "", "127.0.0.1:0", "");
        if self.targets.len() == 1 {
            let first = format!("--rpc={}", self.path("rpc.sock"));
            self.site.arguments.push(first);
        }
        let socket = Storage::file(self.dir.path(), "rpc.sock", name);
        self.site.arguments.push(format!("--rpc={name}={socket}"));
        self.targets.push(target);
    }

    /// kill -9 of a target; the first one has no name.
    pub fn kill_target(&mut self, name: &str) {
        let target = self.targets.iter_mut().find(|t| t.name == name);
        target.unwrap().process.end();
    }

    /// Starts one that was killed.
    pub fn restart_target(&mut self, name: &str) {
        let process = Storage::start(self.dir.path(), name, "");
        let target = self.targets.iter_mut().find(|t| t.name == name);
        target.unwrap().process = process;
    }

    /// Takes so much of a target's pool away, and gives what was taken before back.
    pub fn take_room(&self, name: &str, mib: u64) {
        let filler = format!("{}/filler", Storage::file(self.dir.path(), "pool", name));
        let file = std::fs::File::create(filler).unwrap();
        if mib > 0 {
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&file, flags, 0, mib << 20).unwrap();
        }
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// A driver's command line.
    pub fn command(&self, site: &Site) -> Command {
        let own = |what: &str| self.path(&format!("{what}{}", site.name));
        let hostid = site.hostnqn.rsplit(':').next().unwrap();
        let mut command = within(&site.netns, env!("CARGO_BIN_EXE_nvmf-csi"));
        command.env("RUST_LOG", site.log);
        command.arg("--endpoint");
        command.arg(format!("unix://{}", self.socket(site).display()));
        command.args(["--mode", site.mode]);
        let is_remote = |word: &String| word.starts_with("--rpc");
        if site.mode != "node" && !site.arguments.iter().any(is_remote) {
            command.args(["--rpc", &self.path("rpc.sock")]);
        }
        command.args(["--run-dir", &own("node")]);
        command.args(["--hostnqn", site.hostnqn, "--hostid", hostid]);
        command.args(["--block", "fuse", "--initiator"]);
        command.arg(program("nvmf-initiator"));
        command.args(["--initiator-run-dir", &own("initiator")]);
        command.args(&site.arguments);
        command
    }

    pub fn socket(&self, site: &Site) -> PathBuf {
        self.dir.path().join(format!("csi{}.sock", site.name))
    }

    /// Starts a driver, and waits until it answers.
    pub fn start(&self, site: &Site) -> Driver {
        let log = self.dir.path().join(format!("csi{}.log", site.name));
        let driver = Driver {
            process: Process::start(&mut self.command(site), &log),
            socket: self.socket(site),
        };
        wait_for(&driver.socket);
        driver
    }

    pub fn start_driver(&mut self) {
        self.driver = None;
        self.driver = Some(self.start(&self.site));
    }

    /// The driver's process.
    pub fn driver_process(&self) -> u32 {
        self.driver.as_ref().unwrap().process.0.id()
    }

    /// kill -9.
    pub fn kill_driver(&mut self) {
        self.driver = None;
    }

    /// Whether the driver runs that [`Rig::start_driver`] starts.
    pub fn has_driver(&self) -> bool {
        self.driver.is_some()
    }

    async fn channel(&self) -> Channel {
        channel(&self.socket(&Site::all())).await
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

    /// The target, as its administrator sees it.
    pub async fn ask<M: nvmf_rpc::Method>(&self, params: &M) -> M::Result {
        self.ask_target("", params).await
    }

    /// The same of one that was added.
    pub async fn ask_target<M: nvmf_rpc::Method>(&self, name: &str, params: &M) -> M::Result {
        let socket = PathBuf::from(Storage::file(self.dir.path(), "rpc.sock", name));
        nvmf_rpc::Client::new(socket).request(params).await.unwrap()
    }

    /// What the node's library sees.
    pub fn volumes_of(&self, site: &Site) -> nvmf_volume::Node {
        let own = |what: &str| self.dir.path().join(format!("{what}{}", site.name));
        nvmf_volume::Node::new(nvmf_volume::NodeOptions {
            initiator_run_dir: own("initiator"),
            run_dir: own("node"),
            initiator: program("nvmf-initiator"),
        })
    }

    /// Ends the initiator's daemon, which has nothing attached.
    pub fn stop_daemon(&self) {
        let daemon = RunDir::new(self.path("initiator"));
        until("the end of the daemon", || {
            matches!(ask(&daemon, Request::Stop, Absent::Accept), Ok(None))
        });
    }

    /// Where something is mounted below `path`, in the order of mounting.
    pub fn mounts_below(&self, path: &str) -> Vec<String> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|at| at.starts_with(path))
            .map(str::to_owned)
            .collect()
    }

    /// Everything that a node could leave behind.
    pub fn left(&self) -> Vec<String> {
        let node = self.volumes_of(&Site::all());
        let mut left: Vec<_> = self.mounts_below(&self.path(""));
        left.retain(|at| !is_rigs_own(at));
        left.extend(node.claims().unwrap().into_iter().map(|claim| claim.owner));
        left.extend(node.attached().unwrap().into_iter().map(|c| c.subnqn));
        for folder in ["node/claims", "node/csi", "node/locks"] {
            let files = std::fs::read_dir(self.path(folder)).into_iter().flatten();
            left.extend(files.map(|file| file.unwrap().path().display().to_string()));
        }
        left
    }
}

/// Mounts that are the rig's, and the daemons', which stay for as long as these.
fn is_rigs_own(at: &str) -> bool {
    let last = at.rsplit('/').next().unwrap_or_default();
    last == "pool" || last.starts_with("pool-") || at.contains("/initiator")
}

/// Waits until a driver answers.
pub fn wait_for(socket: &Path) {
    until("the driver", || {
        std::os::unix::net::UnixStream::connect(socket).is_ok()
    });
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.driver = None;
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.dir.path())
                .into_iter()
                .flatten()
                .flatten()
            {
                let path = entry.path();
                if path.extension().is_some_and(|extension| extension == "log") {
                    let text = std::fs::read_to_string(&path).unwrap_or_default();
                    let lines: Vec<_> = text.lines().rev().take(LOG_LINES).collect();
                    eprintln!("--- the end of {}", path.display());
                    lines.iter().rev().for_each(|line| eprintln!("{line}"));
                }
            }
        }
        // Whatever a failed test left: mounts of the nodes, then their devices, then the pool.
        for at in self.mounts_below(&self.path("")).iter().rev() {
            if !is_rigs_own(at) {
                let _ = Command::new("umount").args(["-l", at]).status();
            }
        }
        for name in ["", "-a", "-b"] {
            let site = Site {
                name,
                ..Site::all()
            };
            for controller in self.volumes_of(&site).attached().unwrap_or_default() {
                let _ = Command::new(program("nvmf-initiator"))
                    .args(["--run-dir", &self.path(&format!("initiator{name}"))])
                    .args(["disconnect", "--force", "-n", &controller.subnqn])
                    .status();
            }
        }
        for target in &mut self.targets {
            target.process.end();
        }
        for target in &self.targets {
            unmount(&Storage::file(self.dir.path(), "pool", &target.name));
        }
    }
}

/// Unmounts a pool: the rings of a process that was killed close its files a moment after its end.
fn unmount(pool: &str) {
    let end = Instant::now() + PATIENCE;
    while !Command::new("umount")
        .args(["-q", pool])
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
