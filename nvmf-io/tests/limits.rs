//! What happens where the kernel or a limit forbids something. Each case runs in a child process, because limits and
//! system call filters are for ever.

use std::process::Command;

use nvmf_io::{BufPool, PoolConfig, Ring, RingConfig, RingError, Token, Wait, WriteFlags};
use rustix::process::{Resource, Rlimit, setrlimit};

const CASE: &str = "NVMF_IO_LIMITS_CASE";

/// Runs `case` in a child: this test program, told to run only the test `name`, which finds out that it is the child.
fn in_child(name: &str, case: impl FnOnce()) {
    if std::env::var_os(CASE).is_some() {
        return case();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CASE, name)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(
        text.contains("1 passed"),
        "the child ran something else: {text}"
    );
}

/// Makes `io_uring_setup` fail with `errno` from now on, as a container's filter does.
fn filter_io_uring(errno: i32) {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        step(LOAD_NUMBER, 0, 0, 0),
        step(JUMP_EQUAL, 0, 1, libc::SYS_io_uring_setup as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the first call takes integers; the second reads the filter and its program, which live across it.
    let result = unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const filter,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn forbidden_by_a_filter() {
    in_child("forbidden_by_a_filter", || {
        filter_io_uring(libc::EPERM);
        let error = Ring::new(&RingConfig::default()).unwrap_err();
        // Where an administrator has switched it off as well, that is said.
        assert!(
            matches!(error, RingError::Filtered | RingError::Disabled { .. }),
            "{error:?}"
        );
        let text = error.to_string();
        assert!(
            text.contains("seccomp") || text.contains("kernel.io_uring_disabled"),
            "{text}"
        );
    });
}

#[test]
fn missing_in_the_kernel() {
    in_child("missing_in_the_kernel", || {
        filter_io_uring(libc::ENOSYS);
        let error = Ring::new(&RingConfig::default()).unwrap_err();
        assert!(matches!(error, RingError::Missing), "{error:?}");
        assert!(error.to_string().contains("CONFIG_IO_URING"), "{error}");
        assert!(matches!(
            nvmf_io::BigRing::new(8).unwrap_err(),
            RingError::Missing
        ));
    });
}

#[test]
fn no_descriptor_left() {
    in_child("no_descriptor_left", || {
        let lowest_free = rustix::io::dup(std::io::stdin()).unwrap();
        let limit = std::os::fd::AsRawFd::as_raw_fd(&lowest_free) as u64;
        drop(lowest_free);
        let limit = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        setrlimit(Resource::Nofile, limit).unwrap();
        let error = Ring::new(&RingConfig::default()).unwrap_err();
        assert!(
            matches!(error, RingError::FileDescriptors { .. }),
            "{error:?}"
        );
        let text = error.to_string();
        assert!(
            text.contains("RLIMIT_NOFILE") && text.contains("LimitNOFILE"),
            "{text}"
        );
    });
}

#[test]
fn few_descriptors_mean_few_registered_files() {
    in_child("few_descriptors_mean_few_registered_files", || {
        let limit = Rlimit {
            current: Some(20),
            maximum: Some(64),
        };
        setrlimit(Resource::Nofile, limit).unwrap();
        let mut ring = Ring::new(&RingConfig::default()).unwrap();
        assert!(
            ring.features().registered_files,
            "the table is cut to the limit"
        );
        assert_eq!(nvmf_io::probe::raise_nofile_limit().unwrap(), 64);
        let pool = BufPool::new(&PoolConfig::default());
        let buf = pool.alloc(4096).unwrap();
        // More files than the table has room for.
        for _ in 0..40 {
            let file = ring.add_file(std::os::fd::OwnedFd::from(
                std::fs::File::open("/dev/zero").unwrap(),
            ));
            ring.read(file, 0, &buf, 0..4096, Token(0));
            ring.wait(Wait::Block).unwrap();
            assert_eq!(ring.next().unwrap().result, Ok(4096));
        }
    });
}

#[test]
fn little_locked_memory() {
    in_child("little_locked_memory", || {
        // Locked memory is unlimited for those with the capability.
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::IPC_LOCK);
        sets.permitted.remove(CapabilitySet::IPC_LOCK);
        set_capabilities(None, sets).unwrap();
        let limit = Rlimit {
            current: Some(64 << 10),
            maximum: Some(64 << 10),
        };
        setrlimit(Resource::Memlock, limit).unwrap();
        assert_eq!(nvmf_io::probe::memlock_limit_bytes(), 64 << 10);

        let mut ring = match Ring::new(&RingConfig::default()) {
            Ok(ring) => ring,
            // Kernels before 5.12 charge the ring itself.
            Err(error) => {
                assert!(matches!(error, RingError::MemoryLock { .. }), "{error:?}");
                assert!(error.to_string().contains("RLIMIT_MEMLOCK"), "{error}");
                return;
            }
        };
        let pool = BufPool::new(&PoolConfig::default());
        let file = ring.add_file(std::os::fd::OwnedFd::from(tempfile::tempfile().unwrap()));
        // Nothing can be registered; everything works.
        ring.register_pool(&pool);
        let buf = pool.alloc(64 << 10).unwrap();
        buf.fill(0..64 << 10, 3);
        for token in 0..3 {
            ring.write(
                file,
                token << 16,
                &buf,
                0..64 << 10,
                WriteFlags::default(),
                Token(token),
            );
            ring.wait(Wait::Block).unwrap();
            assert_eq!(ring.next().unwrap().result, Ok(64 << 10));
        }
        let other = pool.alloc(4096).unwrap();
        ring.read(file, 0, &other, 0..4096, Token(9));
        ring.wait(Wait::Block).unwrap();
        assert_eq!(ring.next().unwrap().result, Ok(4096));
        assert!(!other.is_zero(0..1));
    });
}

#[test]
fn configurations_that_make_no_ring() {
    let default = RingConfig::default;
    for config in [
        RingConfig {
            entries: 0,
            ..default()
        },
        RingConfig {
            entries: 64,
            completion_entries: 32,
            ..default()
        },
        RingConfig {
            rx_buffers: 3,
            ..default()
        },
        RingConfig {
            rx_buffer_bytes: 0,
            ..default()
        },
        RingConfig {
            rx_buffer_bytes: 1000,
            ..default()
        },
    ] {
        let error = Ring::new(&config).unwrap_err();
        assert!(
            matches!(error, RingError::Config(_)),
            "{config:?}: {error:?}"
        );
    }
}

#[test]
fn errors_name_cause_and_remedy() {
    let for_all = RingError::Disabled { setting: 2 }.to_string();
    assert!(
        for_all.contains("kernel.io_uring_disabled=2") && for_all.contains("sysctl -w"),
        "{for_all}"
    );
    let unprivileged = RingError::Disabled { setting: 1 }.to_string();
    assert!(
        unprivileged.contains("kernel.io_uring_group"),
        "{unprivileged}"
    );
    assert!(
        RingError::MemoryLock { limit_bytes: 65536 }
            .to_string()
            .contains("65536")
    );
}
