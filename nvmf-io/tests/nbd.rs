//! The kernel's nbd driver, where there is one (in the guests): attaching, dying, reconnecting, detaching.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nvmf_io::net::is_closed_by_peer;
use nvmf_io::sys::block;
use nvmf_io::sys::nbd::{NbdConfig, NbdNetlink, ServerFlags};

const NAME: &str = "nvmf-io test";
const SIZE_BYTES: u64 = 8 << 20;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;

/// Serves `disk` until the connection ends or is asked to end; `limit` requests at most, then it dies without a word.
fn serve(mut socket: UnixStream, disk: Arc<Mutex<Vec<u8>>>, limit: usize) -> JoinHandle<usize> {
    std::thread::spawn(move || {
        for served in 0..limit {
            let mut request = [0; 28];
            if socket.read_exact(&mut request).is_err() {
                return served;
            }
            let number = |at: usize, len: usize| {
                request[at..at + len]
                    .iter()
                    .fold(0u64, |sum, &byte| sum << 8 | u64::from(byte))
            };
            assert_eq!(number(0, 4), 0x2560_9513, "magic");
            let kind = number(6, 2) as u16;
            let (start, len) = (number(16, 8) as usize, number(24, 4) as usize);
            let mut disk = disk.lock().unwrap();
            let mut reply = vec![0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0];
            reply.extend_from_slice(&request[8..16]);
            match kind {
                READ => reply.extend_from_slice(&disk[start..start + len]),
                WRITE => socket.read_exact(&mut disk[start..start + len]).unwrap(),
                FLUSH => {}
                DISCONNECT => return served,
                other => panic!("request {other}"),
            }
            socket.write_all(&reply).unwrap();
        }
        limit
    })
}

#[test]
fn by_netlink_and_over_the_death_of_the_server() {
    let Ok(mut netlink) = NbdNetlink::open() else {
        return eprintln!("not run: this kernel has no nbd driver");
    };
    if !rustix::process::geteuid().is_root() {
        return eprintln!("not run: needs root");
    }
    let disk = Arc::new(Mutex::new(vec![0; SIZE_BYTES as usize]));
    disk.lock().unwrap()[4096..8192].fill(7);
    let config = NbdConfig {
        size_bytes: SIZE_BYTES,
        block_bytes: 4096,
        flags: ServerFlags::HAS_FLAGS | ServerFlags::SEND_FLUSH,
        dead_connection_timeout: Duration::from_secs(60),
        backend_identifier: NAME.into(),
    };
    let (kernel, ours) = UnixStream::pair().unwrap();
    // Dies after a while, in the middle of things.
    let first = serve(ours, disk.clone(), 40);
    let index = netlink.connect(&config, kernel.as_fd()).unwrap();
    drop(kernel);
    let device = File::options()
        .read(true)
        .write(true)
        .open(format!("/dev/nbd{index}"))
        .unwrap();
    assert_eq!(block::size_bytes(device.as_fd()).unwrap(), SIZE_BYTES);
    assert_eq!(block::logical_block_bytes(device.as_fd()).unwrap(), 4096);
    let mut content = [0; 8192];
    device.read_exact_at(&mut content, 4096).unwrap();
    assert!(
        content[..4096].iter().all(|&byte| byte == 7)
            && content[4096..].iter().all(|&byte| byte == 0)
    );
    block::flush_page_cache(device.as_fd()).unwrap();

    let reader = std::thread::spawn(move || {
        let mut sum = 0u64;
        let mut block = [0; 4096];
        for at in (0..SIZE_BYTES).step_by(64 << 10) {
            device.read_exact_at(&mut block, at).unwrap();
            device.write_all_at(&[at as u8 | 1; 4096], at).unwrap();
            sum += u64::from(block[0]);
        }
        device.sync_all().unwrap();
        (device, sum)
    });
    assert_eq!(first.join().unwrap(), 40, "the server died");
    // I/O is held until a new one comes.
    let second = loop {
        let (kernel, ours) = UnixStream::pair().unwrap();
        netlink.reconnect(index, NAME, kernel.as_fd()).unwrap();
        drop(kernel);
        // The driver takes no connection before it has noticed that the old one is dead.
        if !is_closed_by_peer(&ours) {
            break serve(ours, disk.clone(), usize::MAX);
        }
    };
    let (device, sum) = reader.join().unwrap();
    assert_eq!(sum, 0);
    {
        let disk = disk.lock().unwrap();
        assert!(
            (0..SIZE_BYTES as usize)
                .step_by(64 << 10)
                .all(|at| disk[at] == at as u8 | 1)
        );
    }
    // A device of somebody else is not taken over.
    let (kernel, _ours) = UnixStream::pair().unwrap();
    let taken = netlink.reconnect(index, "another", kernel.as_fd());
    assert!(taken.is_err());
    assert!(netlink.resize(index, "another", 2 * SIZE_BYTES).is_err());
    netlink.resize(index, NAME, 2 * SIZE_BYTES).unwrap();
    assert_eq!(block::size_bytes(device.as_fd()).unwrap(), 2 * SIZE_BYTES);
    drop(device);
    netlink.disconnect(index).unwrap();
    assert!(second.join().unwrap() > 0);
    let gone = File::open(format!("/dev/nbd{index}")).unwrap();
    assert_eq!(block::size_bytes(gone.as_fd()).unwrap(), 0);
}
