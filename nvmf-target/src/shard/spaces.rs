//! The namespaces as one shard serves them.
//!
//! A space is a namespace attached to the shard's ring. It keeps its place while commands refer to it: one that was
//! removed is retired, refuses what is not yet running, and goes when its last command ends.

use std::collections::HashMap;
use std::sync::Arc;

use nvme_proto::wire::Nsid;
use nvmf_io::{Errno, Ring, Token};

use super::disks::{DiskId, Disks};
use super::token::Purpose;
use crate::backend::Backend;
use crate::model::{Namespace, NamespaceTable, SubsystemId};

/// Index of a space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SpaceId(pub(super) u32);

/// Index of a subsystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SubsystemIndex(u32);

/// A namespace attached to this shard's ring.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) namespace: Arc<Namespace>,
    pub(super) backend: Backend,
    /// The disk that it is on.
    pub(super) disk: Option<DiskId>,
    /// Commands that refer to it.
    pub(super) users: u32,
    /// Commands that its backing has.
    pub(super) running: u32,
    /// Pauses in force.
    pub(super) paused: u32,
    /// Removed from its subsystem.
    pub(super) retired: bool,
    /// Moves on when the namespace changes, so that a command that was checked before is checked again.
    pub(super) revision: u32,
}

#[derive(Debug, Default)]
struct SubsystemSpaces {
    by_nsid: Vec<Option<SpaceId>>,
}

/// All namespaces of a shard.
#[derive(Debug, Default)]
pub(super) struct Spaces {
    spaces: Vec<Option<Space>>,
    subsystems: Vec<SubsystemSpaces>,
    index: HashMap<SubsystemId, SubsystemIndex>,
    /// Those on devices with rings of their own.
    devices: Vec<SpaceId>,
    pub(super) disks: Disks,
}

impl Spaces {
    /// The index of a subsystem, made when it is not known yet: it has no namespaces then.
    pub(super) fn subsystem(&mut self, id: SubsystemId) -> SubsystemIndex {
        *self.index.entry(id).or_insert_with(|| {
            self.subsystems.push(SubsystemSpaces::default());
            SubsystemIndex(self.subsystems.len() as u32 - 1)
        })
    }

    /// The space of namespace `nsid`.
    #[inline]
    pub(super) fn find(&self, subsystem: SubsystemIndex, nsid: Nsid) -> Option<SpaceId> {
        let by_nsid = &self.subsystems[subsystem.0 as usize].by_nsid;
        *by_nsid.get((nsid.0 as usize).wrapping_sub(1))?
    }

    /// The first space of a subsystem with an NSID above `nsid`.
    pub(super) fn next(&self, subsystem: SubsystemIndex, nsid: Nsid) -> Option<SpaceId> {
        let by_nsid = &self.subsystems[subsystem.0 as usize].by_nsid;
        by_nsid
            .iter()
            .skip(nsid.0 as usize)
            .find_map(|space| *space)
    }

    /// A space that commands refer to, so that it is still there.
    #[inline]
    pub(super) fn get_mut(&mut self, id: SpaceId) -> &mut Space {
        self.spaces[id.0 as usize]
            .as_mut()
            .expect("a space stays while commands refer to it")
    }

    /// Notes that a command refers to it no more.
    #[inline]
    pub(super) fn unuse(&mut self, id: SpaceId, ring: &mut Ring) {
        let space = self.get_mut(id);
        space.users -= 1;
        if space.retired && space.users == 0 {
            self.detach(id, ring);
        }
    }

    #[cold]
    fn detach(&mut self, id: SpaceId, ring: &mut Ring) {
        self.devices.retain(|device| *device != id);
        if let Some(space) = self.spaces[id.0 as usize].take() {
            space.backend.detach(ring);
        }
    }

    /// Makes `table` the namespaces of a subsystem. A namespace on the same backing as before stays attached, whatever else changed
    /// about it. `paused` says how often a namespace that is new here is paused.
    pub(super) fn replace(
        &mut self,
        subsystem: SubsystemId,
        table: &NamespaceTable,
        ring: &mut Ring,
        paused: impl Fn(Nsid) -> u32,
    ) {
        let index = self.subsystem(subsystem).0 as usize;
        let mut old = std::mem::take(&mut self.subsystems[index].by_nsid);
        let mut new = vec![None; table.highest_nsid().0 as usize];
        for namespace in table.iter() {
            let at = namespace.nsid.0 as usize - 1;
            let kept = old.get_mut(at).and_then(|slot| {
                let id = (*slot)?;
                let space = self.get_mut(id);
                Arc::ptr_eq(&space.namespace.backing, &namespace.backing).then(|| {
                    *slot = None;
                    space.namespace = namespace.clone();
                    space.revision += 1;
                    id
                })
            });
            new[at] = Some(kept.unwrap_or_else(|| {
                let paused = paused(namespace.nsid);
                self.attach(namespace, paused, ring)
            }));
        }
        self.subsystems[index].by_nsid = new;
        for id in old.into_iter().flatten() {
            let space = self.get_mut(id);
            space.retired = true;
            space.revision += 1;
            if space.users == 0 {
                self.detach(id, ring);
            }
        }
    }

    fn attach(&mut self, namespace: &Arc<Namespace>, paused: u32, ring: &mut Ring) -> SpaceId {
        let free = self.spaces.iter().position(Option::is_none);
        let at = free.unwrap_or_else(|| {
            self.spaces.push(None);
            self.spaces.len() - 1
        });
        let id = SpaceId(at as u32);
        let wake = Purpose::Device(id).token();
        let backend = Backend::attach(&namespace.backing, ring, wake);
        if let Backend::Passthrough(_) = backend {
            self.devices.push(id);
        }
        self.spaces[at] = Some(Space {
            namespace: namespace.clone(),
            backend,
            disk: namespace.backing.disk().map(|disk| self.disks.find(disk)),
            users: 0,
            running: 0,
            paused,
            retired: false,
            revision: 0,
        });
        id
    }

    /// A device's ring has something to reap. `more`: it will say so again.
    pub(super) fn device_woken(&mut self, id: SpaceId, ring: &mut Ring, more: bool) {
        let space = self.spaces.get_mut(id.0 as usize).and_then(Option::as_mut);
        if let Some(Backend::Passthrough(device)) = space.map(|space| &mut space.backend) {
            device.woken(ring, more);
        }
    }

    /// Submits what is queued on devices with rings of their own, and takes what is done there.
    pub(super) fn reap_devices(&mut self, done: &mut Vec<(Token, Result<u32, Errno>)>) {
        for id in &self.devices {
            let space = self.spaces[id.0 as usize].as_mut();
            if let Some(Backend::Passthrough(device)) = space.map(|space| &mut space.backend) {
                device.reap(done);
            }
        }
    }

    /// The spaces of a subsystem with their NSIDs: those of its namespaces now, not retired ones.
    pub(super) fn of_subsystem(
        &self,
        id: SubsystemId,
    ) -> impl Iterator<Item = (Nsid, SpaceId)> + '_ {
        let by_nsid = self
            .index
            .get(&id)
            .map(|index| &self.subsystems[index.0 as usize].by_nsid);
        let slots = (1..).map(Nsid).zip(by_nsid.into_iter().flatten());
        slots.filter_map(|(nsid, space)| Some((nsid, (*space)?)))
    }
}

#[cfg(test)]
mod tests {
    use nvmf_io::RingConfig;
    use uuid::Uuid;

    use super::*;
    use crate::backend::{Backing, BackingOptions, BackingSpec};
    use crate::model::{Geometry, IoCounters, NamespaceIds};

    fn namespace(nsid: u32) -> Arc<Namespace> {
        let spec = BackingSpec::Memory {
            size_bytes: 1 << 20,
        };
        let backing = Backing::open(&spec, &BackingOptions::default()).unwrap();
        Arc::new(Namespace {
            nsid: Nsid(nsid),
            ids: NamespaceIds {
                uuid: Uuid::from_u128(1),
                nguid: [1; 16],
                eui64: [0; 8],
            },
            geometry: Geometry::new(512, 1 << 20).unwrap(),
            read_only: false,
            backing: Arc::new(backing),
            counters: IoCounters::new(1),
        })
    }

    #[test]
    fn a_resized_namespace_keeps_its_place_and_a_removed_one_waits_for_its_commands() {
        let mut ring = Ring::new(&RingConfig::default()).unwrap();
        let mut spaces = Spaces::default();
        let id = SubsystemId(3);
        let subsystem = spaces.subsystem(id);
        assert_eq!(spaces.find(subsystem, Nsid(1)), None);

        let (first, second) = (namespace(1), namespace(2));
        let table = NamespaceTable::new([first.clone(), second.clone()]);
        spaces.replace(id, &table, &mut ring, |_| 0);
        let one = spaces.find(subsystem, Nsid(1)).unwrap();
        let two = spaces.find(subsystem, Nsid(2)).unwrap();
        for nsid in [0, 3, u32::MAX] {
            assert_eq!(spaces.find(subsystem, Nsid(nsid)), None);
        }
        spaces.get_mut(two).users = 1;
        let next = |nsid| spaces.next(subsystem, Nsid(nsid));
        assert_eq!((next(0), next(1), next(2)), (Some(one), Some(two), None));

        let larger = Arc::new(Namespace {
            geometry: Geometry::new(512, 1 << 19).unwrap(),
            ..(*first).clone()
        });
        spaces.replace(id, &NamespaceTable::new([larger]), &mut ring, |_| 0);
        assert_eq!(spaces.find(subsystem, Nsid(1)), Some(one));
        assert_eq!(spaces.get_mut(one).namespace.geometry.blocks(), 1024);
        assert_eq!(spaces.get_mut(one).revision, 1);
        assert_eq!(spaces.find(subsystem, Nsid(2)), None);
        assert!(spaces.get_mut(two).retired);
        assert_eq!(
            spaces.of_subsystem(id).collect::<Vec<_>>(),
            [(Nsid(1), one)]
        );

        spaces.unuse(two, &mut ring);
        assert!(spaces.spaces[1].is_none(), "gone with its last command");
        spaces.replace(
            id,
            &NamespaceTable::new([namespace(1)]),
            &mut ring,
            |nsid| nsid.0,
        );
        assert_ne!(
            spaces.find(subsystem, Nsid(1)),
            Some(one),
            "another backing is another space"
        );
    }
}
