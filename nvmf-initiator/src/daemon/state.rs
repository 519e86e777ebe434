//! What a daemon writes down for the one that comes after it.
//!
//! The file is replaced whole, so that it is either the old or the new one, and it is written before a connect is answered:
//! what the user was told of survives. It lies in a folder that a reboot empties, as a reboot ends every connection.
//!
//! It holds all that is connected, so that its length grows with every connect. It is therefore written by a thread of its own, and
//! once for all who wait: hundreds of connects at once would keep the control thread from keeping their associations alive.

use std::cell::Cell;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::RunDir;
use super::api::ConnectRequest;
use crate::block::DeviceState;
use crate::core::namespace::NamespaceInfo;

/// Raised when the form changes. A daemon refuses a file of another version rather than guess at devices in use.
const VERSION: u32 = 1;

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub version: u32,
    /// Number of the next controller.
    pub next: u32,
    pub controllers: Vec<ControllerRecord>,
}

/// A controller that is connected, or was when its daemon died.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ControllerRecord {
    pub name: String,
    pub request: ConnectRequest,
    /// The form that its devices have.
    pub form: String,
    /// Shards with queues.
    pub shards: usize,
    /// The first of them.
    pub first_shard: usize,
    pub namespaces: Vec<NamespaceRecord>,
}

/// All but the namespaces stays as it was when the controller of this name was connected.
impl PartialEq for ControllerRecord {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.namespaces == other.namespaces
    }
}

impl Eq for ControllerRecord {}

/// One of its namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NamespaceRecord {
    pub info: NamespaceInfo,
    pub device: Option<DeviceRecord>,
}

/// Its device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceRecord {
    /// Under which its descriptors are kept.
    pub name: String,
    pub state: DeviceState,
}

impl Default for State {
    fn default() -> Self {
        State {
            version: VERSION,
            next: 0,
            controllers: Vec::new(),
        }
    }
}

impl State {
    /// Reads what the daemon before left; nothing where there is no file.
    pub fn read(run: &RunDir) -> io::Result<State> {
        let path = run.state();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            Err(error) => return Err(named(&path, error)),
        };
        let bad = |what: String| {
            let remedy = "it belongs to another version of this program: start that one to disconnect, or remove the \
                          file when no device is in use";
            named(
                &path,
                io::Error::new(io::ErrorKind::InvalidData, format!("{what}; {remedy}")),
            )
        };
        let state: State = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        if state.version != VERSION {
            return Err(bad(format!("version {}", state.version)));
        }
        Ok(state)
    }

    /// The record of the controller of this name.
    pub fn find(&mut self, name: &str) -> Option<&mut ControllerRecord> {
        self.controllers.iter_mut().find(|known| known.name == name)
    }

    /// Writes it down.
    pub fn write(&self, run: &RunDir) -> io::Result<()> {
        let path = run.state();
        let fresh = path.with_extension("new");
        let write = || {
            let mut file = fs::File::create(&fresh)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|error| named(&path, error))
    }
}

/// Whoever writes the file.
#[derive(Debug, Default)]
pub(crate) struct Saver {
    /// Counts who asked.
    asked: Cell<u64>,
    /// For how many of them it is written.
    saved: Cell<u64>,
    turn: Arc<Mutex<()>>,
}

impl Saver {
    /// Returns when what `state` tells now is written, by this call or by another that began later.
    pub async fn save(&self, run: &RunDir, state: impl Fn() -> State) {
        let own = self.asked.get() + 1;
        self.asked.set(own);
        let turn = Arc::clone(&self.turn).lock_owned().await;
        if self.saved.get() >= own {
            return;
        }
        let all = self.asked.get();
        let (state, run) = (state(), run.clone());
        // The turn goes with the write: who is dropped meanwhile must not leave two threads with one file.
        let writing = tokio::task::spawn_blocking(move || (state.write(&run), turn));
        let (written, _turn) = match writing.await {
            Ok((written, turn)) => (written, Some(turn)),
            Err(error) => (Err(io::Error::other(error)), None),
        };
        if let Err(error) = written {
            tracing::error!(%error, "a daemon that comes after this one will not find its devices");
        }
        self.saved.set(all);
    }
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::namespace::{Limits, NamespaceIdentity};
    use crate::host::HostIdentity;
    use crate::options::Target;
    use nvme_proto::wire::Nsid;
    use rustix::fs::{FileType, Mode};
    use std::fs::File;

    #[test]
    fn what_is_written_is_read_again_and_other_versions_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::new(folder.path());
        assert_eq!(State::read(&run).unwrap(), State::default());
        let info = NamespaceInfo {
            nsid: Nsid(3),
            identity: NamespaceIdentity {
                uuid: Some(uuid::Uuid::from_u128(5)),
                ..Default::default()
            },
            block_bytes: 512,
            blocks: 8,
            physical_block_bytes: 4096,
            read_only: false,
            volatile_cache: true,
            limits: Limits {
                max_transfer_blocks: 8,
                max_write_zeroes_blocks: 0,
                max_discard_blocks: 1,
                compare: true,
            },
        };
        let device = DeviceRecord {
            name: "nvme-uuid.5".into(),
            state: DeviceState::Ublk { id: 2 },
        };
        let state = State {
            next: 4,
            controllers: vec![ControllerRecord {
                name: "nvmf3".into(),
                request: ConnectRequest {
                    target: Target {
                        address: crate::address::Address::tcp("h", 1),
                        subnqn: "n".into(),
                        options: Default::default(),
                    },
                    host: HostIdentity {
                        hostnqn: "h".into(),
                        hostid: uuid::Uuid::from_u128(1),
                    },
                    block: "auto".into(),
                },
                form: "ublk".into(),
                shards: 2,
                first_shard: 1,
                namespaces: vec![NamespaceRecord {
                    info,
                    device: Some(device),
                }],
            }],
            ..State::default()
        };
        state.write(&run).unwrap();
        assert_eq!(State::read(&run).unwrap(), state);
        State {
            version: 99,
            ..state
        }
        .write(&run)
        .unwrap();
        let error = State::read(&run).unwrap_err().to_string();
        assert!(
            error.contains("version 99") && error.contains("state.json"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_write_whose_caller_is_gone_keeps_its_turn() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::new(folder.path());
        let fresh = run.state().with_extension("new");
        // Whoever opens it to write waits until somebody has it open to read.
        rustix::fs::mknodat(rustix::fs::CWD, &fresh, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let (saver, writes) = (Saver::default(), Cell::new(0));
        let state = || {
            writes.set(writes.get() + 1);
            State {
                next: writes.get(),
                ..State::default()
            }
        };
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut first = Box::pin(saver.save(&run, state));
        assert!(first.as_mut().poll(&mut context).is_pending());
        drop(first);
        let mut second = Box::pin(saver.save(&run, state));
        assert!(second.as_mut().poll(&mut context).is_pending());
        let begun = writes.get();
        // Stays open, so that no writer waits any more, also where the test fails.
        let reader = File::options().read(true).write(true).open(&fresh);
        std::mem::forget(reader.unwrap());
        assert_eq!(begun, 1, "the second waits for the first");
        second.await;
        assert_eq!(State::read(&run).unwrap().next, 2);
    }

    #[tokio::test]
    async fn many_who_save_at_once_share_few_writes() {
        const WRITERS: u32 = 200;
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::new(folder.path());
        let (saver, next, writes) = (Saver::default(), Cell::new(0), Cell::new(0));
        let save = || async {
            next.set(next.get() + 1);
            let own = next.get();
            let state = || {
                writes.set(writes.get() + 1);
                State {
                    next: next.get(),
                    ..State::default()
                }
            };
            saver.save(&run, state).await;
            // Whatever was told to it before is in the file by now.
            assert!(State::read(&run).unwrap().next >= own);
        };
        let mut all = (0..WRITERS).map(|_| Box::pin(save())).collect::<Vec<_>>();
        std::future::poll_fn(|context| {
            all.retain_mut(|one| one.as_mut().poll(context).is_pending());
            match all.is_empty() {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }
        })
        .await;
        // The first for itself, the second for all the others.
        assert_eq!((next.get(), writes.get()), (WRITERS, 2));
        save().await;
        assert_eq!(writes.get(), 3);
    }
}
