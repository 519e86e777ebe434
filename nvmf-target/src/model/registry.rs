//! The controllers of a subsystem and their identifiers.

use std::collections::BTreeMap;

use nvme_proto::wire::Cntlid;

/// Hands out controller identifiers and finds controllers by them. `C` is whatever the owner keeps for each controller.
///
/// An identifier that was given back is reused as late as possible, so that a host that comes late with an I/O queue for a
/// controller that is gone does not meet its successor.
#[derive(Debug)]
pub struct ControllerRegistry<C> {
    controllers: BTreeMap<u16, C>,
    next: u16,
}

/// Every controller identifier of the subsystem is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {} controller identifiers of the subsystem are in use", Cntlid::MAX.0)]
pub struct RegistryFull;

impl<C> Default for ControllerRegistry<C> {
    fn default() -> Self {
        Self {
            controllers: BTreeMap::new(),
            next: 1,
        }
    }
}

impl<C> ControllerRegistry<C> {
    /// Makes a controller with a free identifier from 1 to [`Cntlid::MAX`].
    pub fn insert_with(&mut self, make: impl FnOnce(Cntlid) -> C) -> Result<Cntlid, RegistryFull> {
        let cntlid = (self.next..=Cntlid::MAX.0)
            .chain(1..self.next)
            .find(|id| !self.controllers.contains_key(id))
            .ok_or(RegistryFull)?;
        self.next = if cntlid == Cntlid::MAX.0 {
            1
        } else {
            cntlid + 1
        };
        self.controllers.insert(cntlid, make(Cntlid(cntlid)));
        Ok(Cntlid(cntlid))
    }

    /// The controller called `cntlid`.
    pub fn get(&self, cntlid: Cntlid) -> Option<&C> {
        self.controllers.get(&cntlid.0)
    }

    /// The controller called `cntlid`.
    pub fn get_mut(&mut self, cntlid: Cntlid) -> Option<&mut C> {
        self.controllers.get_mut(&cntlid.0)
    }

    /// Removes the controller called `cntlid`.
    pub fn remove(&mut self, cntlid: Cntlid) -> Option<C> {
        self.controllers.remove(&cntlid.0)
    }

    /// All controllers, by ascending identifier.
    pub fn iter(&self) -> impl Iterator<Item = (Cntlid, &C)> + '_ {
        self.controllers
            .iter()
            .map(|(id, controller)| (Cntlid(*id), controller))
    }

    /// Number of controllers.
    pub fn len(&self) -> usize {
        self.controllers.len()
    }

    /// Whether there is no controller.
    pub fn is_empty(&self) -> bool {
        self.controllers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_reused_late_and_run_out() {
        let mut registry = ControllerRegistry::default();
        assert_eq!(registry.insert_with(|id| id), Ok(Cntlid(1)));
        assert_eq!(registry.insert_with(|id| id), Ok(Cntlid(2)));
        assert_eq!(registry.remove(Cntlid(1)), Some(Cntlid(1)));
        assert_eq!(registry.insert_with(|id| id), Ok(Cntlid(3)));
        for _ in 4..=Cntlid::MAX.0 {
            registry.insert_with(|id| id).unwrap();
        }
        assert_eq!(
            registry.insert_with(|id| id),
            Ok(Cntlid(1)),
            "the one given back comes last"
        );
        assert_eq!(registry.insert_with(|id| id), Err(RegistryFull));
        registry.remove(Cntlid(7));
        assert_eq!(registry.insert_with(|id| id), Ok(Cntlid(7)));
        assert_eq!(registry.len(), Cntlid::MAX.0 as usize);
        assert_eq!(registry.get(Cntlid(9)), Some(&Cntlid(9)));
    }
}
