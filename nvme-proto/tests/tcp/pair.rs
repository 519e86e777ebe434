//! A host and a controller wired together in memory: every combination of what a connection can agree on moves data correctly.

use crate::support::{BLOCK_BYTES, LIMITS, PLAIN, Pair, pattern};
use nvme_proto::queue::QueueLimits;
use nvme_proto::tcp::{Pda, TcpParams};
use nvme_proto::wire::Status;

/// Writes and reads transfers of several sizes, as many at once as the queue takes, and checks all of it.
fn exercise(params: TcpParams, limits: QueueLimits, chunk: usize) {
    let mut pair = Pair::new(params, limits);
    let sizes = [1u32, 8, 16, 17, 256];
    let mut slba = 0;
    let mut expected = Vec::new();
    for (n, blocks) in sizes.iter().cycle().take(12).enumerate() {
        let data = pattern(n as u32, *blocks as usize * BLOCK_BYTES);
        while pair.host.write(slba, &data).is_err() {
            pair.run(chunk);
        }
        expected.push((slba, data));
        slba += blocks;
    }
    pair.run(chunk);
    assert_eq!(pair.host.done.len(), expected.len());
    for done in pair.host.done.drain(..) {
        assert_eq!(done.cqe.status(), Status::SUCCESS);
        assert_eq!(
            done.data_bytes as usize,
            done.data.len(),
            "all of the data were taken"
        );
    }
    for (slba, data) in &expected {
        while pair
            .host
            .read(*slba, (data.len() / BLOCK_BYTES) as u32)
            .is_err()
        {
            pair.run(chunk);
        }
    }
    pair.run(chunk);
    assert_eq!(pair.host.done.len(), expected.len());
    for (done, (slba, data)) in pair.host.done.drain(..).zip(&expected) {
        assert_eq!(
            (done.cqe.status(), done.digest_error),
            (Status::SUCCESS, false)
        );
        assert!(
            done.data == *data,
            "data at block {slba} with {params:?} {limits:?}"
        );
    }
    assert!(pair.host.conn.is_idle() && pair.target.conn.is_idle());
    assert!(pair.target.refused.is_empty());
}

#[test]
fn every_combination_moves_data() {
    for bits in 0..16 {
        for (pda, receive_pda) in [(0, 0), (1, 0), (31, 2), (0, 31)] {
            for in_capsule_bytes in [0, 4096, 8192] {
                let params = TcpParams {
                    header_digest: bits & 1 != 0,
                    data_digest: bits & 2 != 0,
                    pda: Pda::from_wire(pda).unwrap(),
                    receive_pda: Pda::from_wire(receive_pda).unwrap(),
                    max_h2c_data_bytes: 4096,
                    max_r2t: 1,
                };
                let flow_control = bits & 4 != 0;
                let success_flag = bits & 8 != 0;
                exercise(
                    params,
                    QueueLimits {
                        in_capsule_bytes,
                        flow_control,
                        success_flag,
                        ..LIMITS
                    },
                    8999,
                );
            }
        }
    }
}

#[test]
fn every_depth_window_and_number_of_r2ts_moves_data() {
    for depth in [2, 3, 16, 128, 1024] {
        for r2t_window_bytes in [0, 4096, 65536, 1 << 20] {
            for max_r2t in [1, 2, 16] {
                for max_h2c_data_bytes in [4096, 4100, 1 << 20] {
                    let params = TcpParams {
                        max_r2t,
                        max_h2c_data_bytes,
                        ..PLAIN
                    };
                    exercise(
                        params,
                        QueueLimits {
                            depth,
                            r2t_window_bytes,
                            ..LIMITS
                        },
                        usize::MAX,
                    );
                }
            }
        }
    }
}

#[test]
fn every_chunk_size_moves_data() {
    for chunk in (1..80).chain([127, 4095, 4097]) {
        let params = TcpParams {
            header_digest: true,
            data_digest: true,
            pda: Pda::MAX,
            ..PLAIN
        };
        exercise(params, LIMITS, chunk);
    }
}
