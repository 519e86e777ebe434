//! The choice between targets: whoever dies after it, and whatever the next try would choose, there is one volume.

use std::sync::atomic::{AtomicU64, Ordering};

use nvmf_rpc::types::GetVolumes;
use tonic::Status;

use super::{Call, at_every_point, done, name, writer};
use crate::controller::delete;
use crate::rig::{Rig, volume};
use crate::tracer::Kill;

/// More than the larger pool has before the smaller one.
const TAKEN_MIB: u64 = 3 << 10;

/// A volume without a place, while each try finds most room on the other target.
#[derive(Default)]
struct Create {
    tries: AtomicU64,
}

impl Create {
    /// Where the volumes of this name are.
    async fn ids(rig: &Rig, round: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for (target, before) in [("", ""), ("east", "east/")] {
            let volumes = rig.ask_target(target, &GetVolumes::default()).await;
            let volumes = volumes.into_iter().filter(|v| v.name == name(round));
            ids.extend(volumes.map(|v| format!("{before}{}/{}", v.pool, v.name)));
        }
        ids
    }
}

impl Call for Create {
    async fn call(&self, rig: &Rig, round: usize) -> Result<(), Status> {
        let tries = self.tries.fetch_add(1, Ordering::Relaxed);
        rig.take_room("east", tries % 2 * TAKEN_MIB);
        let request = volume(&name(round), writer("ext4"), 16);
        let answer = rig.controller().await.create_volume(request).await;
        if let Ok(answer) = &answer {
            let made = answer.get_ref().volume.clone().unwrap().volume_id;
            assert_eq!(Create::ids(rig, round).await, [made]);
        }
        done(answer)
    }

    async fn after(&self, rig: &Rig, round: usize) {
        let ids = Create::ids(rig, round).await;
        assert_eq!(ids.len(), 1, "{ids:?}");
        let mut client = rig.controller().await;
        client.delete_volume(delete(&ids[0])).await.unwrap();
        assert!(Create::ids(rig, round).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_while_a_target_is_chosen() {
    let test = "killed_anywhere_while_a_target_is_chosen";
    let Some(mut rig) = Rig::without_driver(test, "", "127.0.0.1:0") else {
        return;
    };
    rig.add_target("east");
    rig.start_driver();
    let asks = ["connect", "send a request", "sent a request"];
    let create = Create::default();
    at_every_point(&mut rig, "CreateVolume", Kill::Driver, &asks, &create).await;
}
