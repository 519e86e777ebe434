//! The pools of a thread, registered with the devices that its queues use.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use nvmf_io::verbs::{ProtectionDomain, Registrar, RemoteAccess};

/// What pools are registered for.
pub(crate) fn access(windows: bool) -> RemoteAccess {
    match windows {
        true => RemoteAccess::Windows,
        false => RemoteAccess::ReadWrite,
    }
}

/// Registers the pools of one thread with one device. Shared by the device's queues on the thread, and gone with the last of them: a
/// host that is not connected leaves nothing on the device.
pub(crate) type SharedRegistrar = Rc<RefCell<Registrar>>;

/// The registrars of one thread.
#[derive(Debug, Default)]
pub(crate) struct Registrars(Vec<Weak<RefCell<Registrar>>>);

impl Registrars {
    /// The one for a device's domain, whose queue pairs all use windows or all do not.
    pub fn of(&mut self, domain: &Arc<ProtectionDomain>, windows: bool) -> SharedRegistrar {
        self.0.retain(|registrar| registrar.strong_count() > 0);
        let known = |registrar: &SharedRegistrar| Arc::ptr_eq(registrar.borrow().domain(), domain);
        if let Some(registrar) = self.0.iter().filter_map(Weak::upgrade).find(known) {
            return registrar;
        }
        let registrar = Registrar::new(Arc::clone(domain), access(windows));
        let registrar = Rc::new(RefCell::new(registrar));
        self.0.push(Rc::downgrade(&registrar));
        registrar
    }

    /// Registrations that there are.
    pub fn registrations(&self) -> usize {
        let alive = self.0.iter().filter_map(Weak::upgrade);
        alive
            .map(|registrar| registrar.borrow().registrations())
            .sum()
    }
}
