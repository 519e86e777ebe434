//! A `kill -9` of the driver between any two of its side effects. The call is then made again, or given up for the one that undoes
//! it, as an orchestrator does; all must be as if nothing had been.

mod controller;
mod node;
mod targets;

use std::future::Future;

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::*;
use nvmf_rpc::types::GetVolumes;
use tonic::{Response, Status};

use crate::controller::{delete, publish};
use crate::rig::{NODE, Rig, mount_as, volume};
use crate::tracer::{Kill, Traced};

/// So often a call is made again at most: what was under way when the driver died may still be, at the target or the daemon.
const TRIES: u32 = 200;
/// How long after each other.
const TRY_EVERY: std::time::Duration = std::time::Duration::from_millis(50);
/// No call has so many side effects.
const MAX_POINTS: usize = 200;

/// A call and what is around it. Each round has its number, for names of its own.
trait Call {
    /// What is there before the call; the driver runs untraced.
    async fn before(&self, _rig: &Rig, _round: usize) {}
    /// The call.
    async fn call(&self, rig: &Rig, round: usize) -> Result<(), Status>;
    /// That all is as it must be after it; takes away what is there. After it, nothing may be left.
    async fn after(&self, rig: &Rig, round: usize);
}

async fn until_ok<F: Future<Output = Result<(), Status>>>(what: &str, call: impl Fn() -> F) {
    for tries in 1.. {
        match call().await {
            Ok(()) => return,
            Err(status) if tries == TRIES => panic!("{what} still fails: {status}"),
            Err(_) => tokio::time::sleep(TRY_EVERY).await,
        }
    }
}

/// Kills the driver at each point of a call in turn. `expected` are points that the call must have had, else nothing was tested.
async fn at_every_point(
    rig: &mut Rig,
    what: &str,
    kill: Kill,
    expected: &[&str],
    calls: &impl Call,
) {
    for round in 0..MAX_POINTS {
        calls.before(rig, round).await;
        rig.kill_driver();
        let site = rig.site.clone();
        let traced = Traced::start(rig.command(&site), &rig.socket(&site), kill, round);
        let result = calls.call(rig, round).await;
        let points = traced.end();
        rig.start_driver();
        let last = points.last().cloned().unwrap_or_default();
        let described = format!("{what}, killed at point {round} ({last})");
        // Also of one that was answered: the answer may be lost.
        until_ok(&described, || calls.call(rig, round)).await;
        calls.after(rig, round).await;
        assert_eq!(rig.left(), Vec::<String>::new(), "{described}");
        if points.len() <= round {
            result.unwrap_or_else(|status| panic!("{what} fails without being killed: {status}"));
            for wanted in expected {
                assert!(
                    points.iter().any(|point| point.contains(wanted)),
                    "{what}: no '{wanted}' in {points:#?}"
                );
            }
            eprintln!("{what}: killed at each of {round} points");
            return;
        }
        assert!(result.is_err(), "{described}: and yet it was answered");
    }
    panic!("{what}: more than {MAX_POINTS} points");
}

fn done<T>(result: Result<Response<T>, Status>) -> Result<(), Status> {
    result.map(drop)
}

/// The volumes of the pool, by name.
async fn volumes(rig: &Rig) -> Vec<nvmf_rpc::types::Volume> {
    rig.ask(&GetVolumes::default()).await
}

async fn delete_volume(rig: &Rig, volume_id: &str) {
    let mut client = rig.controller().await;
    client.delete_volume(delete(volume_id)).await.unwrap();
    assert_eq!(volumes(rig).await, []);
}

fn writer(fs: &str) -> VolumeCapability {
    mount_as(fs, Mode::SingleNodeMultiWriter)
}

fn name(round: usize) -> String {
    format!("v{round}")
}

fn id(round: usize) -> String {
    format!("fast/v{round}")
}

async fn create(rig: &Rig, round: usize) -> Result<(), Status> {
    let request = volume(&name(round), writer("ext4"), 16);
    done(rig.controller().await.create_volume(request).await)
}

async fn grant(rig: &Rig, round: usize) -> Result<(), Status> {
    let request = publish(&id(round), NODE, writer(""));
    done(
        rig.controller()
            .await
            .controller_publish_volume(request)
            .await,
    )
}

async fn revoke(rig: &Rig, round: usize) -> Result<(), Status> {
    let request = ControllerUnpublishVolumeRequest {
        volume_id: id(round),
        node_id: NODE.into(),
        ..Default::default()
    };
    done(
        rig.controller()
            .await
            .controller_unpublish_volume(request)
            .await,
    )
}

async fn granted(rig: &Rig) -> Vec<String> {
    volumes(rig).await.remove(0).hosts
}
