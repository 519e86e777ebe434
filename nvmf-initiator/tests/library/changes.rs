//! Namespaces that change while they are attached, and across a reconnect.

use std::sync::mpsc;

use bytes::Bytes;
use nvmf_initiator::control::Initiator;
use nvmf_initiator::core::controller::{Connected, ControllerEvent, ControllerSpec};
use nvmf_initiator::core::message::{ShardPort, ToShard};
use nvmf_initiator::core::scan::Which;
use nvmf_initiator::handle::{HandleError, Namespace};
use nvmf_initiator::options::NamespaceUrl;
use nvmf_initiator::polled::IoError;

use crate::handle::block_on;
use crate::target::{NQN, Target, eventually, session_config};

const UUID: &str = "0b0c9a52-6f0e-4a5c-9d2e-0d8f6b1c2a01";
const OTHER_UUID: &str = "0b0c9a52-6f0e-4a5c-9d2e-0d8f6b1c2a02";

/// A configuration with these namespaces on files: NSID, UUID, file, size in MiB.
pub fn config(namespaces: &[(u32, &str, &str, u64)]) -> String {
    let mut text = format!("[[subsystem]]\nnqn = \"{NQN}\"\nallow-any-host = true\n");
    for (nsid, uuid, file, mib) in namespaces {
        text += &format!(
            "[[subsystem.namespace]]\nnsid = {nsid}\nuuid = \"{uuid}\"\nkind = \"file\"\npath = \"{{}}/{file}\"\nsize = \"{mib}M\"\n"
        );
    }
    text
}

fn connect(target: &Target, nsid: u32, options: &str) -> Namespace {
    Namespace::connect_blocking(&target.url(nsid, options), session_config()).unwrap()
}

fn read(disk: &Namespace, slba: u64) -> Result<Bytes, HandleError> {
    block_on(disk.read(slba, 1))
}

#[test]
fn a_resize_is_followed() {
    let target = Target::with_file(&config(&[(1, UUID, "a", 1)]));
    let disk = connect(&target, 1, "");
    let before = disk.info().blocks;
    assert_eq!(
        read(&disk, before),
        Err(HandleError::Io(IoError::OutOfRange))
    );
    target.reload(&config(&[(1, UUID, "a", 3)]));
    eventually("the new size", || disk.info().blocks == 3 * before);
    // What the handle tells holds: the thread behind it knew first.
    block_on(disk.write(3 * before - 1, Bytes::from(vec![9; 512]), false)).unwrap();
    assert_eq!(read(&disk, 3 * before - 1).unwrap(), vec![9; 512]);
    block_on(disk.close());
}

#[test]
fn io_on_a_removed_namespace_fails_and_its_neighbour_lives() {
    let both = [(1, UUID, "a", 1), (2, OTHER_UUID, "b", 1)];
    let target = Target::with_file(&config(&both));
    let (first, second) = (connect(&target, 1, ""), connect(&target, 2, ""));
    block_on(second.write(0, Bytes::from(vec![2; 512]), false)).unwrap();
    target.reload(&config(&both[1..]));
    eventually("the end of namespace 1", || {
        read(&first, 0) == Err(HandleError::Io(IoError::Removed))
    });
    assert_eq!(read(&second, 0).unwrap(), vec![2; 512]);
    // When it comes back it is for a new connection to use.
    target.reload(&config(&both));
    eventually("namespace 1 again", || {
        Namespace::connect_blocking(&target.url(1, ""), session_config()).is_ok()
    });
    assert_eq!(read(&first, 0), Err(HandleError::Io(IoError::Removed)));
}

#[test]
fn another_namespace_in_its_place_is_never_served() {
    let mut target = Target::with_file(&config(&[(1, UUID, "a", 1)]));
    let disk = connect(&target, 1, "&reconnect_delay=1");
    block_on(disk.write(0, Bytes::from(vec![1; 512]), true)).unwrap();
    target.kill();
    let changed = Err(HandleError::Io(IoError::IdentityChanged));
    std::thread::scope(|scope| {
        // Begun while there is nobody to answer: held over the restart.
        let held_read = scope.spawn(|| read(&disk, 0));
        let held_write = scope.spawn(|| block_on(disk.write(0, Bytes::from(vec![6; 512]), false)));
        target.rewrite(&config(&[(1, OTHER_UUID, "b", 1)]));
        target.restart();
        assert_eq!(held_read.join().unwrap(), changed.clone());
        assert_eq!(held_write.join().unwrap(), changed.clone().map(drop));
    });
    assert_eq!(read(&disk, 0), changed);
    // Neither of them touched the other.
    let other = connect(&target, 1, "");
    assert_eq!(read(&other, 0).unwrap(), vec![0; 512]);
    // With the right one back it still stays as it is: whoever uses it has seen errors and has to begin anew.
    target.kill();
    target.rewrite(&config(&[(1, UUID, "a", 1)]));
    target.restart();
    let back = connect(&target, 1, "");
    assert_eq!(read(&back, 0).unwrap(), vec![1; 512]);
    assert_eq!(read(&disk, 0), changed);
}

#[test]
fn a_namespace_that_appears_is_opened_on_every_shard_and_told() {
    const SHARDS: usize = 2;
    let both = [(1, UUID, "a", 1), (2, OTHER_UUID, "b", 3)];
    let target = Target::with_file(&config(&both[..1]));
    let mut url: NamespaceUrl = target.url(1, "").parse().unwrap();
    url.target.options.nr_io_queues = Some(SHARDS as u16);
    let (sender, posted) = mpsc::channel();
    let port = |shard| {
        let sender = sender.clone();
        ShardPort::new(move |message| sender.send((shard, message)).is_ok())
    };
    let initiator = Initiator::start().unwrap();
    let spec = ControllerSpec {
        target: url.target,
        host: session_config().host.unwrap(),
        shards: (0..SHARDS).map(port).collect(),
        which: Which::All,
    };
    let Connected {
        handle,
        namespaces,
        mut events,
        ..
    } = initiator.connect(spec).unwrap();
    let nsids: Vec<_> = namespaces.iter().map(|(_, info)| info.nsid.0).collect();
    assert_eq!(nsids, [1]);
    target.reload(&config(&both));
    let mut added = None;
    eventually("the new namespace", || {
        match events.try_recv() {
            Ok(ControllerEvent::Added { head, info }) => added = Some((head, info)),
            Ok(other) => panic!("{other:?}"),
            Err(_) => {}
        }
        added.is_some()
    });
    let (key, info) = added.unwrap();
    assert_eq!((info.nsid.0, info.blocks), (2, (3 << 20) / 512));
    let opened = posted
        .try_iter()
        .filter_map(|(shard, message)| match message {
            ToShard::OpenHead { head, .. } if head == key => Some(shard),
            _ => None,
        });
    // Before it was told: whoever hears of it can use it.
    assert_eq!(opened.collect::<Vec<_>>(), [0, 1]);
    // The one that was there is not told again.
    assert!(events.try_recv().is_err());
    drop(handle);
}
