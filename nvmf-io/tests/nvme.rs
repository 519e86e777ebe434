//! NVMe passthrough on an emulated controller: `NVMF_SCRATCH_NG=/dev/ng0n1`, whose content is overwritten.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nvmf_io::sys::nvme::{self, NvmeCommand};
use nvmf_io::{BigRing, BufPool, CommandDone, Interest, PoolConfig, Ring, RingConfig, Token, Wait};

const IDENTIFY: u8 = 0x06;
const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;

fn next(ring: &mut Ring, big: &mut BigRing) -> CommandDone {
    loop {
        if let Some(done) = big.next() {
            return done;
        }
        big.wait(Wait::Poll).unwrap();
        if let Some(done) = big.next() {
            return done;
        }
        ring.wait(Wait::Block).unwrap();
        while let Some(wake) = ring.next() {
            assert!(wake.more, "{wake:?}");
        }
    }
}

#[test]
fn identify_write_read_flush() {
    let Some(path) = std::env::var_os("NVMF_SCRATCH_NG") else {
        return eprintln!("not run: NVMF_SCRATCH_NG names no device");
    };
    let device: Arc<OwnedFd> = Arc::new(File::open(path).unwrap().into());
    let nsid = nvme::namespace_id(device.as_fd()).unwrap();
    assert!(nsid > 0);
    let mut data = vec![0; 4096];
    let identify = |cns: u32, nsid: u32| NvmeCommand {
        opcode: IDENTIFY,
        nsid,
        cdw10_15: [cns, 0, 0, 0, 0, 0],
        ..NvmeCommand::default()
    };
    let outcome = nvme::admin(device.as_fd(), &identify(1, 0), &mut data).unwrap();
    assert_eq!(outcome.status, 0);
    assert!(
        data[4..24].iter().any(|&byte| byte != b' '),
        "a serial number"
    );
    let outcome = nvme::admin(device.as_fd(), &identify(0, nsid), &mut data).unwrap();
    assert_eq!(outcome.status, 0);
    let blocks = u64::from_le_bytes(data[..8].try_into().unwrap());
    let format = usize::from(data[26] & 0xf);
    let block_bytes = 1u32 << data[128 + 4 * format + 2];
    assert!(blocks > 1000, "{blocks}");
    // What the controller refuses is a status, not an error.
    let outcome = nvme::admin(device.as_fd(), &identify(0, nsid + 1000), &mut data).unwrap();
    assert_ne!(outcome.status, 0);

    let mut ring = Ring::new(&RingConfig {
        rx_buffers: 0,
        ..RingConfig::default()
    })
    .unwrap();
    let mut big = BigRing::new(64).unwrap();
    ring.poll_multishot(&big, Interest::Readable, Token(1));
    let pool = BufPool::new(&PoolConfig::default());
    let rw = |opcode, lba: u32, blocks: u32| NvmeCommand {
        opcode,
        nsid,
        cdw10_15: [lba, 0, blocks - 1, 0, 0, 0],
        ..NvmeCommand::default()
    };
    let count = 100;
    for n in 0..count {
        let buf = pool.alloc(block_bytes * 4).unwrap();
        buf.fill(0..block_bytes * 4, n as u8);
        big.nvme(
            &device,
            &rw(WRITE, n * 4, 4),
            Some((&buf, 0..block_bytes * 4)),
            Token(n.into()),
        );
    }
    for _ in 0..count {
        assert_eq!(next(&mut ring, &mut big).result, Ok(0));
    }
    let flush = NvmeCommand {
        opcode: FLUSH,
        nsid,
        ..NvmeCommand::default()
    };
    big.nvme(&device, &flush, None, Token(0));
    assert_eq!(next(&mut ring, &mut big).result, Ok(0));
    let back = pool.alloc(block_bytes * 4).unwrap();
    for n in 0..count {
        // Not at the start of the buffer.
        back.fill(0..block_bytes * 4, 0xff);
        let range = block_bytes..block_bytes * 2;
        big.nvme(
            &device,
            &rw(READ, n * 4 + 3, 1),
            Some((&back, range)),
            Token(n.into()),
        );
        let done = next(&mut ring, &mut big);
        assert_eq!((done.token, done.result), (Token(n.into()), Ok(0)));
        let bytes = back.bytes().unwrap();
        let (block, size) = (block_bytes as usize, n as u8);
        assert!(bytes[block..2 * block].iter().all(|&byte| byte == size));
        assert!(
            bytes[..block]
                .iter()
                .chain(&bytes[2 * block..])
                .all(|&byte| byte == 0xff)
        );
    }
    // LBA out of range, 00/80h: a status.
    big.nvme(
        &device,
        &rw(READ, u32::MAX, 1),
        Some((&back, 0..block_bytes)),
        Token(0),
    );
    let status = next(&mut ring, &mut big).result.unwrap();
    assert_eq!(status & 0x7ff, 0x080, "{status:#x}");
    assert_eq!(big.in_flight(), 0);
    assert!(back.is_unique());
}
