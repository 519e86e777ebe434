//! Kills a driver between any two things that it does which others can see, without a hook in it.
//!
//! The driver runs under ptrace. Each system call by which it changes something outside of itself is a *point*: files and folders
//! made, written, renamed, removed; mounts; programs started; connections to the target and the daemon, and what is sent there
//! (before it is sent, and right after, while the other side is at work). The driver is killed when it comes to the N-th one, which
//! is then not done; with N from 0 on until it comes to none any more, every state that a death can leave has been.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::rig::wait_for;

/// Whom a kill takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kill {
    /// The driver alone, as `kill -9` does. Programs that it started go on.
    Driver,
    /// The driver with the programs that it started, as the end of a container does. What those write are points, too.
    Container,
}

/// A driver that runs until it is killed.
pub struct Traced {
    driver: Pid,
    tracer: Option<JoinHandle<Vec<String>>>,
}

impl Traced {
    /// Starts the driver, and has it killed at a point, counted from 0, from when it serves on `socket`. `command`'s output goes
    /// nowhere.
    pub fn start(command: Command, socket: &Path, kill: Kill, at: usize) -> Traced {
        let (tell, told) = mpsc::channel();
        let socket = socket.to_owned();
        // One thread starts, traces and waits: the kernel knows it as parent and tracer, and other tests' waits see nothing of it.
        let tracer = std::thread::spawn(move || {
            let mut command = command;
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            #[expect(clippy::zombie_processes, reason = "waited for by `trace`")]
            let child = command.spawn().unwrap();
            let driver = Pid::from_raw(child.id().cast_signed());
            wait_for(&socket);
            let mut tracer = Tracer {
                driver,
                kill,
                at,
                points: Vec::new(),
                threads: HashSet::new(),
                inside: HashSet::new(),
                sockets: HashSet::new(),
                sends: HashMap::new(),
                children: HashSet::new(),
            };
            tracer.seize();
            tell.send(driver).unwrap();
            tracer.trace();
            tracer.points
        });
        Traced {
            driver: told.recv().expect("the driver starts and can be traced"),
            tracer: Some(tracer),
        }
    }

    /// Kills the driver where it is, if it lives, and tells what it did: the last one not, if it was killed there.
    pub fn end(mut self) -> Vec<String> {
        self.stop()
    }

    fn stop(&mut self) -> Vec<String> {
        let Some(tracer) = self.tracer.take() else {
            return Vec::new();
        };
        // It is not waited for before the tracer's thread has ended, unless it is dead: the number is nobody else's so soon.
        if !tracer.is_finished() {
            let _ = kill(self.driver, Signal::SIGKILL);
        }
        tracer.join().unwrap_or_default()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Tracer {
    driver: Pid,
    kill: Kill,
    at: usize,
    points: Vec<String>,
    /// The driver's threads, as far as they were seen.
    threads: HashSet<Pid>,
    /// Threads that are in a system call.
    inside: HashSet<Pid>,
    /// Descriptors that the driver connected.
    sockets: HashSet<u64>,
    /// Threads that are sending, and what.
    sends: HashMap<Pid, String>,
    /// Programs that it started.
    children: HashSet<Pid>,
}

impl Tracer {
    fn seize(&mut self) {
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK;
        let mut seized = HashSet::new();
        // Threads that come meanwhile come from one that is traced already, or are seen by another look.
        loop {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.driver)).unwrap();
            let tasks = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
            let fresh: Vec<i32> = tasks.filter(|task| !seized.contains(task)).collect();
            if fresh.is_empty() {
                return;
            }
            for task in fresh {
                seized.insert(task);
                let task = Pid::from_raw(task);
                // EPERM: it is traced already.
                if ptrace::seize(task, options).is_ok() {
                    ptrace::interrupt(task).unwrap();
                }
            }
        }
    }

    fn trace(&mut self) {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let (task, signal) = match waitpid(Pid::from_raw(-1), Some(flags)) {
                Ok(WaitStatus::PtraceSyscall(task)) => {
                    self.system_call(task);
                    (task, None)
                }
                Ok(WaitStatus::PtraceEvent(task, _, event)) => {
                    if self.event(task, event) {
                        continue;
                    }
                    (task, None)
                }
                Ok(WaitStatus::Stopped(task, signal)) => (task, Some(signal)),
                Ok(_) | Err(Errno::EINTR) => continue,
                // Nobody is left.
                Err(_) => return,
            };
            // It may be dead by now.
            let _ = ptrace::syscall(task, signal);
        }
    }

    /// Whether the task is no matter of ours any more.
    fn event(&mut self, task: Pid, event: i32) -> bool {
        let is_drivers = !self.children.contains(&task);
        if event == Event::PTRACE_EVENT_FORK as i32 || event == Event::PTRACE_EVENT_VFORK as i32 {
            if let Ok(child) = ptrace::getevent(task) {
                self.children.insert(Pid::from_raw(child as i32));
            }
            if is_drivers {
                self.point("start a program".to_owned());
            }
        } else if event == Event::PTRACE_EVENT_STOP as i32
            && self.kill == Kill::Driver
            && self.is_other_process(task)
        {
            let _ = ptrace::detach(task, None);
            return true;
        }
        false
    }

    fn is_other_process(&mut self, task: Pid) -> bool {
        if self.threads.contains(&task) {
            return false;
        }
        let status = fs::read_to_string(format!("/proc/{task}/status")).unwrap_or_default();
        let group = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
        let is_thread = group.is_some_and(|group| group.trim() == self.driver.to_string());
        if is_thread {
            self.threads.insert(task);
        }
        !is_thread
    }

    fn system_call(&mut self, task: Pid) {
        if !self.inside.insert(task) {
            self.inside.remove(&task);
            if let Some(sent) = self.sends.remove(&task) {
                self.point(format!("sent {sent}"));
            }
            return;
        }
        let Ok(registers) = ptrace::getregs(task) else {
            return;
        };
        let [first, second, third] = [registers.rdi, registers.rsi, registers.rdx];
        let number = i64::try_from(registers.orig_rax).unwrap_or(-1);
        let is_child = self.is_other_process(task);
        let path = |address| path(task, address);
        let point = match number {
            nix::libc::SYS_openat if third & CREATE != 0 => format!("create {}", path(second)),
            nix::libc::SYS_mkdir => format!("mkdir {}", path(first)),
            nix::libc::SYS_rename => format!("rename to {}", path(second)),
            nix::libc::SYS_unlink => format!("unlink {}", path(first)),
            nix::libc::SYS_rmdir => format!("rmdir {}", path(first)),
            nix::libc::SYS_unlinkat | nix::libc::SYS_mkdirat => {
                format!("unlinkat or mkdirat {}", path(second))
            }
            nix::libc::SYS_renameat | nix::libc::SYS_renameat2 => {
                format!("rename {}", path(second))
            }
            nix::libc::SYS_mount => format!("mount on {}", path(second)),
            nix::libc::SYS_umount2 => format!("unmount {}", path(first)),
            nix::libc::SYS_move_mount | nix::libc::SYS_mount_setattr => "change mounts".to_owned(),
            nix::libc::SYS_fsync | nix::libc::SYS_fdatasync | nix::libc::SYS_ftruncate => {
                format!("sync or truncate {}", file(task, first))
            }
            nix::libc::SYS_connect if !is_child => {
                self.sockets.insert(first);
                "connect".to_owned()
            }
            nix::libc::SYS_close => {
                if !is_child {
                    self.sockets.remove(&first);
                }
                return;
            }
            nix::libc::SYS_write
            | nix::libc::SYS_writev
            | nix::libc::SYS_pwrite64
            | nix::libc::SYS_sendto
            | nix::libc::SYS_sendmsg => {
                if !is_child && self.sockets.contains(&first) {
                    let sent = "a request".to_owned();
                    self.sends.insert(task, sent.clone());
                    format!("send {sent}")
                } else {
                    let file = file(task, first);
                    // Sockets of callers, pipes and the like.
                    if !file.starts_with('/') || file == "/dev/null" {
                        return;
                    }
                    format!("write {file}")
                }
            }
            _ => return,
        };
        self.point(match is_child {
            true => format!("child: {point}"),
            false => point,
        });
    }

    fn point(&mut self, point: String) {
        let number = self.points.len();
        if number > self.at {
            // Others of its threads may come here while it dies.
            return;
        }
        self.points.push(point);
        if number == self.at {
            let _ = kill(self.driver, Signal::SIGKILL);
            if self.kill == Kill::Container {
                for child in &self.children {
                    let _ = kill(*child, Signal::SIGKILL);
                }
            }
        }
    }
}

/// `O_CREAT`, as registers have it.
const CREATE: u64 = nix::libc::O_CREAT as u64;

/// The longest path that the kernel takes.
const MAX_PATH_BYTES: usize = 4096;

/// A path in the memory of a process.
fn path(task: Pid, address: u64) -> String {
    let mut bytes = vec![0; MAX_PATH_BYTES];
    let memory = fs::File::open(format!("/proc/{task}/mem"));
    let read = memory.and_then(|memory| memory.read_at(&mut bytes, address));
    bytes.truncate(read.unwrap_or(0));
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// What a descriptor leads to.
fn file(task: Pid, descriptor: u64) -> String {
    let link = fs::read_link(format!("/proc/{task}/fd/{descriptor}"));
    link.map_or_else(|_| String::new(), |link| link.display().to_string())
}
