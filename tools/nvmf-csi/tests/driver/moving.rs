//! A volume moves from one node to another: two networks of their own, each with its daemon, and a target in a third.
//!
//! The first node loses its network, or keeps it and writes on: either way, once ControllerUnpublish has returned, nothing that it
//! writes arrives any more.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::*;
use tonic::Code;

use crate::controller::publish;
use crate::pod::Pod;
use crate::rig::{Driver, NODE, OTHER_NODE, Rig, Site, block, mount_as, run, until, volume};
use crate::writer::{Writer, entries};

/// Where the target is for both nodes.
const TARGET: &str = "192.0.2.1";

/// Ends of the nodes' cables at the target.
const CABLES: [&str; 2] = ["node-a", "node-b"];

/// Three networks: the target's with a cable to each node's. They go with their owner.
struct Net {
    target: String,
    nodes: [String; 2],
}

impl Net {
    fn new(test: &str) -> Option<Net> {
        if !rustix::process::geteuid().is_root() {
            // The rig says what that means.
            let _ = Rig::new(test);
            return None;
        }
        let name = |what: &str| format!("csi{}{what}", std::process::id());
        let own = test.len();
        let net = Net {
            target: name(&format!("t{own}")),
            nodes: [name(&format!("a{own}")), name(&format!("b{own}"))],
        };
        let ip = |netns: &str, words: &str| {
            let words: Vec<_> = ["-n", netns].into_iter().chain(words.split(' ')).collect();
            run("ip", &words)
        };
        for netns in net.all() {
            run("ip", &["netns", "add", netns]);
            ip(netns, "link set lo up");
        }
        ip(&net.target, &format!("addr add {TARGET}/32 dev lo"));
        for (node, (subnet, cable)) in net
            .nodes
            .iter()
            .zip([("198.51.100", CABLES[0]), ("203.0.113", CABLES[1])])
        {
            ip(
                &net.target,
                &format!("link add name {cable} type veth peer name eth0 netns {node}"),
            );
            ip(&net.target, &format!("addr add {subnet}.1/24 dev {cable}"));
            ip(&net.target, &format!("link set {cable} up"));
            ip(node, &format!("addr add {subnet}.2/24 dev eth0"));
            ip(node, "link set eth0 up");
            ip(node, &format!("route add {TARGET}/32 via {subnet}.1"));
        }
        Some(net)
    }

    fn all(&self) -> [&str; 3] {
        [&self.target, &self.nodes[0], &self.nodes[1]]
    }

    /// Pulls or plugs the cable of the first node, at the target's end: the node itself notices nothing.
    fn cable(&self, state: &str) {
        run("ip", &["-n", &self.target, "link", "set", CABLES[0], state]);
        if state == "up" {
            run(
                "ip",
                &[
                    "-n",
                    &self.target,
                    "addr",
                    "replace",
                    "198.51.100.1/24",
                    "dev",
                    CABLES[0],
                ],
            );
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for netns in self.all() {
            let _ = std::process::Command::new("ip")
                .args(["netns", "del", netns])
                .status();
        }
    }
}

struct Cluster {
    // In the order of their ends: drivers, the rig with its target, the networks.
    controller: Driver,
    nodes: [Driver; 2],
    rig: Rig,
    net: Net,
}

const NODES: [&str; 2] = [NODE, OTHER_NODE];

impl Cluster {
    fn new(test: &str) -> Option<Cluster> {
        let net = Net::new(test)?;
        let rig = Rig::without_driver(test, &net.target, &format!("{TARGET}:0"))?;
        let controller = Site {
            name: "-c",
            mode: "controller",
            ..Site::all()
        };
        // A device is given up soon after its target is gone.
        let words = ["--reconnect-delay", "1", "--ctrl-loss-tmo", "5"];
        let node = |number: usize| Site {
            name: ["-a", "-b"][number],
            mode: "node",
            hostnqn: NODES[number],
            netns: net.nodes[number].clone(),
            arguments: words.map(str::to_owned).into(),
            log: "info",
        };
        Some(Cluster {
            controller: rig.start(&controller),
            nodes: [rig.start(&node(0)), rig.start(&node(1))],
            rig,
            net,
        })
    }

    fn path(&self, node: usize, what: &str) -> String {
        self.rig.path(&format!("{what}-{node}"))
    }

    /// Publishes, stages and publishes: a pod starts.
    async fn up(&self, node: usize, pod: &Pod<'_>) {
        let request = publish(&pod.id, NODES[node], pod.capability.clone());
        let mut controller = self.controller.controller().await;
        let context = controller.controller_publish_volume(request).await.unwrap();
        let publish_context = context.into_inner().publish_context;
        let mut client = self.nodes[node].node().await;
        let stage = NodeStageVolumeRequest {
            staging_target_path: self.path(node, "staging"),
            publish_context: publish_context.clone(),
            ..pod.stage()
        };
        client.node_stage_volume(stage).await.unwrap();
        let publish = NodePublishVolumeRequest {
            staging_target_path: self.path(node, "staging"),
            target_path: self.path(node, "target"),
            publish_context,
            ..pod.publish("target")
        };
        client.node_publish_volume(publish).await.unwrap();
    }

    async fn leave(&self, node: usize, pod: &Pod<'_>) {
        let mut client = self.nodes[node].node().await;
        let unpublish = NodeUnpublishVolumeRequest {
            target_path: self.path(node, "target"),
            ..pod.unpublish("target")
        };
        client.node_unpublish_volume(unpublish).await.unwrap();
        let unstage = NodeUnstageVolumeRequest {
            staging_target_path: self.path(node, "staging"),
            ..pod.unstage()
        };
        client.node_unstage_volume(unstage).await.unwrap();
    }

    /// Returns when the node can write nothing any more.
    async fn fence(&self, node: usize, pod: &Pod<'_>) {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: pod.id.clone(),
            node_id: NODES[node].into(),
            ..Default::default()
        };
        let mut controller = self.controller.controller().await;
        controller
            .controller_unpublish_volume(request)
            .await
            .unwrap();
    }

    /// A volume, not yet published to anybody.
    async fn make(&self, capability: VolumeCapability, size_mib: i64) -> Pod<'_> {
        let mut controller = self.controller.controller().await;
        let request = volume("v", capability.clone(), size_mib);
        let made = controller
            .create_volume(request)
            .await
            .unwrap()
            .into_inner();
        let volume = made.volume.unwrap();
        Pod::known(&self.rig, &volume.volume_id, capability).await
    }

    /// The file behind the pool's only volume.
    fn backing(&self) -> PathBuf {
        let mut folders = vec![PathBuf::from(self.rig.path("pool"))];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                match entry.file_type().unwrap().is_dir() {
                    true => folders.push(entry.path()),
                    false if entry.metadata().unwrap().len() >= 16 << 20 => {
                        found.push(entry.path())
                    }
                    false => {}
                }
            }
        }
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    fn nothing_left(&self) {
        for name in ["-a", "-b"] {
            let site = Site {
                name,
                ..Site::all()
            };
            let node = self.rig.volumes_of(&site);
            assert_eq!(node.attached().unwrap().len(), 0);
            assert_eq!(node.claims().unwrap(), []);
        }
    }
}

/// What is in a file, all of it.
fn content(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_network_is_fenced_and_another_goes_on() {
    let Some(cluster) = Cluster::new("a_node_that_lost_its_network_is_fenced_and_another_goes_on")
    else {
        return;
    };
    let pod = cluster
        .make(mount_as("ext4", Mode::SingleNodeMultiWriter), 64)
        .await;
    cluster.up(0, &pod).await;
    let writer = Writer::start(&cluster.path(0, "target"));
    writer.goes_on(50);
    cluster.net.cable("down");
    // It is still published there: not before it is fenced may another node have it.
    let early = publish(&pod.id, OTHER_NODE, pod.capability.clone());
    let mut controller = cluster.controller.controller().await;
    let refused = controller
        .controller_publish_volume(early)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains(NODE), "{refused}");
    cluster.fence(0, &pod).await;
    cluster.up(1, &pod).await;
    let there = entries(&cluster.path(1, "target"));
    assert!(
        there >= writer.acknowledged() && there <= writer.begun(),
        "{there} of {} acknowledged",
        writer.acknowledged()
    );
    let own = format!("{}/second-node", cluster.path(1, "target"));
    std::fs::write(&own, "mine").unwrap();
    cluster.leave(1, &pod).await;
    cluster.fence(1, &pod).await;
    let before = content(&cluster.backing());
    // The first node comes back, with writes that it held.
    assert!(!writer.has_ended());
    cluster.net.cable("up");
    until("the end of the first node's writes", || writer.has_ended());
    writer.end().expect_err("what was not acknowledged fails");
    assert!(before == content(&cluster.backing()), "a late write landed");
    let stats = NodeGetVolumeStatsRequest {
        volume_id: pod.id.clone(),
        volume_path: cluster.path(0, "target"),
        staging_target_path: cluster.path(0, "staging"),
    };
    let mut node = cluster.nodes[0].node().await;
    let stats = node.node_get_volume_stats(stats).await.unwrap();
    let condition = stats.into_inner().volume_condition.unwrap();
    assert!(condition.abnormal && !condition.message.is_empty());
    cluster.leave(0, &pod).await;
    cluster.up(1, &pod).await;
    assert_eq!(entries(&cluster.path(1, "target")), there);
    assert_eq!(std::fs::read_to_string(&own).unwrap(), "mine");
    cluster.leave(1, &pod).await;
    cluster.nothing_left();
}

/// Blocks that each writer of the test below has for itself.
const BLOCKS: u64 = 64;
const BLOCK_BYTES: usize = 4096;
const WRITERS: u64 = 8;

/// Direct writes of growing numbers to blocks of its own, until one fails; the last number that was acknowledged for each block.
fn hammer(device: &str, first: u64, written: &AtomicU64) -> Vec<u64> {
    let file = File::options()
        .write(true)
        .custom_flags(nix::libc::O_DIRECT)
        .open(device)
        .unwrap();
    // Aligned by taking the part of a larger buffer that is.
    let mut buffer = vec![0; 2 * BLOCK_BYTES];
    let start = buffer.as_ptr().align_offset(BLOCK_BYTES);
    let mut acknowledged = vec![0; BLOCKS as usize];
    for number in 1_u64.. {
        let block = number % BLOCKS;
        let bytes = &mut buffer[start..start + BLOCK_BYTES];
        bytes.copy_from_slice(&number.to_le_bytes().repeat(BLOCK_BYTES / 8));
        if file
            .write_all_at(bytes, (first + block) * BLOCK_BYTES as u64)
            .is_err()
        {
            break;
        }
        acknowledged[block as usize] = number;
        written.fetch_add(1, Ordering::SeqCst);
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_lands_after_the_fence_of_a_node_that_writes_on() {
    let Some(cluster) = Cluster::new("nothing_lands_after_the_fence_of_a_node_that_writes_on")
    else {
        return;
    };
    let pod = cluster.make(block(Mode::SingleNodeWriter), 16).await;
    cluster.up(0, &pod).await;
    let device = cluster.path(0, "target");
    let written = Arc::new(AtomicU64::new(0));
    let last = Arc::new(Mutex::new(vec![0; (WRITERS * BLOCKS) as usize]));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (device, written, last) = (device.clone(), written.clone(), last.clone());
            std::thread::spawn(move || {
                let first = writer * BLOCKS;
                let acknowledged = hammer(&device, first, &written);
                let first = first as usize;
                last.lock().unwrap()[first..first + BLOCKS as usize].copy_from_slice(&acknowledged);
            })
        })
        .collect();
    until("writes", || written.load(Ordering::SeqCst) > 2000);
    cluster.fence(0, &pod).await;
    let at_return = content(&cluster.backing());
    // Its device fails, at the latest when the target is given up.
    for writer in writers {
        until("the end of a writer", || writer.is_finished());
        writer.join().unwrap();
    }
    assert!(
        at_return == content(&cluster.backing()),
        "a write landed after the fence"
    );
    // What was acknowledged is there, or what was written to the block after it.
    cluster.up(1, &pod).await;
    let seen = content(Path::new(&cluster.path(1, "target")));
    for (block, acknowledged) in last.lock().unwrap().iter().enumerate() {
        let bytes = &seen[block * BLOCK_BYTES..][..BLOCK_BYTES];
        let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert!(
            bytes == number.to_le_bytes().repeat(BLOCK_BYTES / 8),
            "a torn block"
        );
        assert!(
            (*acknowledged..=acknowledged + BLOCKS).contains(&number),
            "block {block} has {number}, and {acknowledged} was acknowledged"
        );
    }
    cluster.leave(1, &pod).await;
    cluster.leave(0, &pod).await;
    cluster.nothing_left();
}
