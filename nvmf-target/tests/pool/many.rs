//! Many volumes at once, and nothing left of them.

use nvmf_rpc::types::{DeleteVolume, GetPools, GetVolumes};

use super::*;

/// Volumes at a time; twenty times as many rounds in `make soak`.
const VOLUMES: usize = 20;

fn round(rig: &Rig, round: usize) {
    let address = rig.target.address();
    std::thread::scope(|scope| {
        for index in 0..VOLUMES {
            let client = rig.target.rpc();
            scope.spawn(move || {
                let params = CreateVolume {
                    size_bytes: Some(4 * MIB),
                    hosts: vec![HOST.to_owned()],
                    ..volume(&format!("v{round}-{index}"))
                };
                let params = serde_json::to_value(params).unwrap();
                let made = client.call(CreateVolume::NAME, params).unwrap();
                let made: Volume = serde_json::from_value(made).unwrap();
                let session = Session::bring_up(address, Options::new(&made.nqn));
                let mut queue = session.io_queue(1);
                queue.block_bytes = made.block_size.into();
                let data = vec![index as u8 + 1; 16384];
                assert!(queue.write(0, data.clone()).is_success());
                assert_eq!(queue.read(0, 16384).unwrap(), data);
            });
        }
    });
    assert_eq!(rig.ask(GetVolumes::default()).len(), VOLUMES);
    std::thread::scope(|scope| {
        for index in 0..VOLUMES {
            let client = rig.target.rpc();
            scope.spawn(move || {
                let params = DeleteVolume {
                    pool: POOL.into(),
                    name: format!("v{round}-{index}"),
                    force: true,
                };
                let params = serde_json::to_value(params).unwrap();
                client.call(DeleteVolume::NAME, params).unwrap();
            });
        }
    });
    assert!(rig.ask(GetVolumes::default()).is_empty());
}

#[test]
fn twenty_volumes_in_parallel_leave_nothing() {
    let Some(rig) = Rig::xfs("many volumes", "") else {
        return;
    };
    let repetitions = std::env::var("NVMF_SOAK").ok().and_then(|n| n.parse().ok());
    // Once before counting: threads and rings take their files then.
    round(&rig, 0);
    let before = rig.target.open_files();
    for index in 1..=2 * repetitions.unwrap_or(1) {
        round(&rig, index);
    }
    // Sockets of the last clients close a moment after they have gone.
    let deadline = std::time::Instant::now() + crate::common::host::PATIENCE;
    while rig.target.open_files() > before {
        assert!(
            std::time::Instant::now() < deadline,
            "{} files open, {before} before",
            rig.target.open_files()
        );
        std::thread::yield_now();
    }
    let pool = rig.ask(GetPools::default()).remove(0);
    assert_eq!(
        (pool.volumes, pool.provisioned_bytes, pool.allocated_bytes),
        (0, 0, 0)
    );
    for folder in ["volumes", "snapshots"] {
        let left = std::fs::read_dir(rig.mount.path(folder)).unwrap().count();
        assert_eq!(left, 0, "{folder}");
    }
}
