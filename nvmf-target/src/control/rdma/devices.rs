//! RDMA devices: noticing that one is gone, and letting go of it.
//!
//! Most drivers have the connection manager tell of it. One that cannot take a device away from a process, such as soft RoCE's, says nothing, and
//! `rdma link delete` waits until every process has closed the device; so it is looked for once a second. Either way connections on it end,
//! threads give up their registrations once they have none left on it, and with the last of them the device is closed. A device that comes
//! back is another one.

use std::io;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nvmf_io::verbs::{CmId, IdKey, ProtectionDomain, VerbsError, close_removed};
use tokio::time::sleep;

use super::super::net;
use super::super::target::Target;
use super::{HungUp, Service, follow, watched};

/// How often devices are looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

impl Service {
    /// From here on the connection manager's events are taken, and devices looked after.
    pub(super) fn attend(self: &Rc<Self>, target: &Rc<Target>) -> io::Result<()> {
        if !self.followed.get() {
            let fd = watched(&*self.channel)?;
            net::spawn(follow(Rc::clone(target), Rc::clone(self), fd));
            net::spawn(look_after(Rc::clone(target), Rc::clone(self)));
            self.followed.set(true);
        }
        Ok(())
    }

    /// The domain of the device that the identifier is on.
    pub(super) fn domain(&self, id: &CmId) -> Result<Arc<ProtectionDomain>, VerbsError> {
        let mut domains = self.domains.borrow_mut();
        if let Some(domain) = domains.iter().find(|domain| domain.serves(id)) {
            return Ok(Arc::clone(domain));
        }
        let domain = ProtectionDomain::new(id)?;
        tracing::info!(device = domain.device_name(), limits = ?domain.limits(), "RDMA device in use");
        domains.push(Arc::clone(&domain));
        Ok(domain)
    }

    /// Ends all that is on a device.
    pub(super) fn device_gone(&self, target: &Target, domain: &Arc<ProtectionDomain>) {
        if domain.is_retired() {
            return;
        }
        domain.retire();
        let device = Arc::downgrade(domain);
        let routes = self.routes.borrow();
        let on_it = routes
            .iter()
            .filter(|(_, route)| Weak::ptr_eq(&route.device, &device));
        let concerned: Vec<IdKey> = on_it.map(|(id, _)| *id).collect();
        drop(routes);
        tracing::error!(
            device = domain.device_name(),
            "an RDMA device is being removed: its connections end, and it is closed"
        );
        let same = |other: &Arc<ProtectionDomain>| Arc::ptr_eq(other, domain);
        self.domains.borrow_mut().retain(|other| !same(other));
        self.leaving.borrow_mut().push(device);
        for id in concerned {
            self.hang_up(target, id, HungUp::Device);
        }
    }

    /// Lets go of devices that are gone, as far as nobody uses them.
    fn let_go(&self, target: &Target) {
        self.registrars.borrow_mut().prune();
        let mut leaving = self.leaving.borrow_mut();
        leaving.retain(|device| device.strong_count() > 0);
        if !leaving.is_empty() {
            target.shards.forget_devices();
        }
        close_removed();
    }
}

async fn look_after(target: Rc<Target>, service: Rc<Service>) {
    loop {
        sleep(LOOK_INTERVAL).await;
        let gone: Vec<_> = {
            let domains = service.domains.borrow();
            let gone = domains.iter().filter(|domain| !domain.is_there());
            gone.cloned().collect()
        };
        for domain in gone {
            service.device_gone(&target, &domain);
        }
        service.let_go(&target);
    }
}
