//! The properties of a controller and the life cycle that CC and CSTS describe.
//!
//! ```text
//! disabled --EN 0→1--> ready --EN 1→0--> resetting --drained--> disabled
//!                        |
//!                        +--SHN--> shutting down --done--> shut down --EN 1→0--> resetting
//! ```
//! EN 0→1 with values that the controller does not support ends in CFS instead of ready; EN 1→0
//! leaves that state as well.

use super::fault::Fault;
use super::{ControllerKind, ControllerLimits};
use crate::wire::fabrics::PropertySqe;
use crate::wire::property::{Cap, Cc, Crto, Csts, Property, Vs};

/// What a write to CC asks the target to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CcEffect {
    /// Nothing.
    None,
    /// The controller became ready.
    Enabled,
    /// Reset: drain, then [`Registers::drained`].
    Disable,
    /// Shut down: make everything durable, then [`Registers::shutdown_done`].
    Shutdown {
        /// SHN was 10b.
        abrupt: bool,
    },
}

#[derive(Debug)]
pub(super) struct Registers {
    kind: ControllerKind,
    cap: Cap,
    crto: Crto,
    cc: Cc,
    csts: Csts,
}

impl Registers {
    pub fn new(kind: ControllerKind, limits: &ControllerLimits) -> Self {
        let to = u64::from(limits.ready_timeout_ms.div_ceil(500)).clamp(1, 255);
        let cap = Cap::default()
            .with_mqes(u64::from(limits.max_queue_entries.saturating_sub(1)))
            .with_cqr(true)
            .with_to(to)
            .with_css(Cap::CSS_NVM | Cap::CSS_IOCSS)
            .with_crwms(true);
        let crto = Crto::default().with_crwmt(to as u32);
        Self {
            kind,
            cap,
            crto,
            cc: Cc::default(),
            csts: Csts::default(),
        }
    }

    pub fn is_ready(&self) -> bool {
        self.cc.en() && self.csts.rdy() && self.csts.shst() == Csts::SHST_NORMAL
    }

    pub fn csts(&self) -> Csts {
        self.csts
    }

    pub fn get(&self, sqe: &PropertySqe) -> Result<u64, Fault> {
        let property = checked_property(sqe)?;
        Ok(match property {
            Property::CAP => self.cap.0,
            Property::VS => Vs::V2_0.0.into(),
            Property::CC => self.cc.0.into(),
            Property::CSTS => self.csts.0.into(),
            Property::CRTO => self.crto.0.into(),
            // NSSR reads as zero; CAP.NSSRS is 0.
            _ => 0,
        })
    }

    pub fn set(&mut self, sqe: &PropertySqe) -> Result<CcEffect, Fault> {
        match checked_property(sqe)? {
            Property::CC => self.set_cc(Cc(sqe.value.get() as u32)),
            // The rest is read only; NSSR since CAP.NSSRS is 0.
            other => Err(Fault::UnsupportedProperty(other)),
        }
    }

    fn set_cc(&mut self, new: Cc) -> Result<CcEffect, Fault> {
        let old = self.cc;
        match (old.en(), new.en()) {
            (false, true) if self.csts.rdy() => return Err(Fault::EnableDuringReset),
            (false, true) => {
                self.cc = new;
                // A shutdown that came before the controller was enabled is over.
                self.csts = match self.can_run(new) {
                    true => Csts::default().with_rdy(true),
                    false => Csts::default().with_cfs(true),
                };
                if self.csts.cfs() {
                    return Ok(CcEffect::None);
                }
            }
            (true, false) => {
                self.cc = new;
                return Ok(CcEffect::Disable);
            }
            (true, true) => {
                // Apart from the shutdown notification nothing changes while enabled.
                if old.with_shn(0) != new.with_shn(0) {
                    return Err(Fault::CcWhileEnabled(new.0));
                }
                self.cc = new;
            }
            (false, false) => self.cc = new,
        }
        Ok(self.notify_shutdown(old, new))
    }

    /// A shutdown notification where there was none starts a shutdown, unless one has started.
    fn notify_shutdown(&mut self, old: Cc, new: Cc) -> CcEffect {
        let notified = |cc: Cc| matches!(cc.shn(), Cc::SHN_NORMAL | Cc::SHN_ABRUPT);
        if notified(new) && !notified(old) && self.csts.shst() == Csts::SHST_NORMAL {
            self.csts = self.csts.with_shst(Csts::SHST_OCCURRING);
            return CcEffect::Shutdown {
                abrupt: new.shn() == Cc::SHN_ABRUPT,
            };
        }
        match new.en() && !old.en() {
            true => CcEffect::Enabled,
            false => CcEffect::None,
        }
    }

    /// Whether the controller can run with these settings.
    fn can_run(&self, cc: Cc) -> bool {
        let css = matches!(cc.css(), Cc::CSS_NVM | Cc::CSS_IOCSS | Cc::CSS_ADMIN);
        // CAP.MPSMIN and MPSMAX are 0 (4 KiB pages), CAP.AMS offers round robin alone, and CAP.CRMS
        // does not offer CRIME.
        let common = css && cc.mps() == 0 && cc.ams() == 0 && !cc.crime();
        match self.kind {
            ControllerKind::Io => {
                common
                    && cc.iosqes() == Cc::IOSQES
                    && cc.iocqes() == Cc::IOCQES
                    && cc.css() != Cc::CSS_ADMIN
            }
            // Discovery controllers have no I/O queues: hosts differ in what they write here.
            ControllerKind::Discovery => common,
        }
    }

    /// The reset that EN 1→0 asked for has finished.
    pub fn drained(&mut self) {
        if !self.cc.en() {
            self.csts = Csts::default();
        }
    }

    /// The shutdown that SHN asked for has finished.
    pub fn shutdown_done(&mut self) {
        if self.csts.shst() == Csts::SHST_OCCURRING {
            self.csts = self.csts.with_shst(Csts::SHST_COMPLETE);
        }
    }
}

/// The property that the command names, if it exists and has the size that ATTRIB says.
fn checked_property(sqe: &PropertySqe) -> Result<Property, Fault> {
    let property = sqe.property();
    let size = property
        .size_bytes()
        .ok_or(Fault::UnsupportedProperty(property))?;
    match sqe.size_bytes() == Some(size) {
        true => Ok(property),
        false => Err(Fault::PropertySize(property)),
    }
}
