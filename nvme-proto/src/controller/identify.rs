//! Identify: what a controller says of itself and of its namespaces.

use super::error_log;
use super::events;
use super::fault::Fault;
use super::io::MAX_WRITE_ZEROES_BYTES;
use super::keep_alive::KAS;
use super::view::{NamespaceInfo, SubsystemView};
use super::{ControllerInit, ControllerKind, Transport};
use crate::wire::identify::flags::{
    Cmic, Ctratt, Dlfeat, Frmw, Lpa, Nmic, Nsattr, Nsfeat, Nstat, Oaes, Ofcs, Oncs, Sgls, Vwc,
};
use crate::wire::identify::{
    Cns, Csi, Descriptor, DescriptorList, IdentifyCommand, IdentifyController, IdentifyNamespace,
    IndependentNamespace, IoCommandSets, LbaFormat, NamespaceList, NvmIdentifyController,
    NvmIdentifyNamespace,
};
use crate::wire::property::Vs;
use crate::wire::{Cntlid, Nsid};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64, U128};

/// ACL in Identify Controller, 0's based: what the standard recommends as the least.
pub(super) const ACL: u8 = 3;

/// Appends the data structure that `command` asks for to `out`.
pub(super) fn identify(
    command: &IdentifyCommand,
    init: &ControllerInit,
    view: &dyn SubsystemView,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let mut put = |bytes: &[u8]| out.extend_from_slice(bytes);
    if init.kind == ControllerKind::Discovery {
        // There are no namespaces and no I/O command sets.
        if command.cns != Cns::CONTROLLER {
            return Err(Fault::UnsupportedCns(command.cns));
        }
        put(discovery_controller(init, view).as_bytes());
        return Ok(());
    }
    let nvm_only = || match command.csi {
        Csi::NVM => Ok(()),
        other => Err(Fault::UnsupportedCsi(other)),
    };
    match command.cns {
        Cns::CONTROLLER => put(io_controller(init, view).as_bytes()),
        Cns::NAMESPACE => {
            let id = match known_namespace(command.nsid, view)? {
                Some(ns) => namespace(&ns),
                None => IdentifyNamespace::zeroed(),
            };
            put(id.as_bytes());
        }
        Cns::CSI_NAMESPACE => {
            nvm_only()?;
            known_namespace(command.nsid, view)?;
            // No metadata, no extended formats: nothing to say, of active namespaces either.
            put(NvmIdentifyNamespace::zeroed().as_bytes());
        }
        Cns::INDEPENDENT_NAMESPACE => {
            let id = match known_namespace(command.nsid, view)? {
                Some(ns) => independent_namespace(&ns),
                None => IndependentNamespace::zeroed(),
            };
            put(id.as_bytes());
        }
        Cns::ACTIVE_NAMESPACES => put(active_namespaces(command.nsid, view)?.as_bytes()),
        Cns::CSI_ACTIVE_NAMESPACES => {
            nvm_only()?;
            put(active_namespaces(command.nsid, view)?.as_bytes());
        }
        Cns::NAMESPACE_DESCRIPTORS => {
            let ns =
                known_namespace(command.nsid, view)?.ok_or(Fault::InvalidNsid(command.nsid))?;
            put(descriptors(&ns).as_bytes());
        }
        Cns::CSI_CONTROLLER => {
            nvm_only()?;
            put(nvm_controller().as_bytes());
        }
        Cns::IO_COMMAND_SETS => {
            if command.cntid != Cntlid::DYNAMIC && command.cntid != init.cntlid {
                return Err(Fault::ForeignController(command.cntid));
            }
            put(IoCommandSets::nvm_only().as_bytes());
        }
        other => return Err(Fault::UnsupportedCns(other)),
    }
    Ok(())
}

/// The namespace, or `None` for one that is within NN but not active.
fn known_namespace(nsid: Nsid, view: &dyn SubsystemView) -> Result<Option<NamespaceInfo>, Fault> {
    if !nsid.is_single() || nsid > view.subsystem().max_nsid {
        return Err(Fault::InvalidNsid(nsid));
    }
    Ok(view.namespace(nsid))
}

/// The namespaces above `after`; the two reserved values at the top are refused.
fn active_namespaces(after: Nsid, view: &dyn SubsystemView) -> Result<NamespaceList, Fault> {
    if after > Nsid::MAX {
        return Err(Fault::InvalidNsid(after));
    }
    let first = view.next_namespace(after);
    Ok(NamespaceList::new(core::iter::successors(first, |&nsid| {
        view.next_namespace(nsid)
    })))
}

/// log2 of `bytes` in units of the minimum memory page size (4 KiB), rounded down; 0 for no limit.
pub(super) fn log2_pages(bytes: u32) -> u8 {
    (bytes >> 12).checked_ilog2().unwrap_or(0) as u8
}

/// What both kinds of controllers say.
fn common(init: &ControllerInit, view: &dyn SubsystemView) -> IdentifyController {
    let subsystem = view.subsystem();
    let limits = &init.limits;
    let mut id = IdentifyController::zeroed();
    id.sn = subsystem.serial;
    id.mn = subsystem.model;
    id.fr = subsystem.firmware;
    id.mdts = log2_pages(limits.max_transfer_bytes);
    id.cntlid = U16::new(init.cntlid.0);
    id.ver = U32::new(Vs::V2_0.0);
    id.ctratt = U32::new((Ctratt::HOST_ID_128 | Ctratt::TBKAS).bits());
    id.aerl = events::AERL;
    id.elpe = (error_log::ENTRIES - 1) as u8;
    id.kas = U16::new(KAS);
    id.maxcmd = U16::new(limits.max_queue_entries);
    let sgls = match init.transport {
        Transport::Tcp => Sgls::SUPPORTED | Sgls::OFFSET | Sgls::TRANSPORT,
        Transport::Rdma => Sgls::SUPPORTED | Sgls::OFFSET | Sgls::KEYED,
    };
    id.sgls = U32::new(sgls.bits());
    id.subnqn = subsystem.nqn.to_field();
    id.lpa = (Lpa::COMMANDS_SUPPORTED_AND_EFFECTS
        | Lpa::EXTENDED_DATA
        | Lpa::SUPPORTED_PAGES_AND_EFFECTS)
        .bits();
    id
}

fn discovery_controller(init: &ControllerInit, view: &dyn SubsystemView) -> IdentifyController {
    let mut id = common(init, view);
    id.cntrltype = IdentifyController::CNTRLTYPE_DISCOVERY;
    id.dctype = IdentifyController::DCTYPE_DIRECT;
    id.oaes = U32::new(Oaes::DISCOVERY_LOG_CHANGE.bits());
    id
}

fn io_controller(init: &ControllerInit, view: &dyn SubsystemView) -> IdentifyController {
    let subsystem = view.subsystem();
    let limits = &init.limits;
    let mut id = common(init, view);
    id.cntrltype = IdentifyController::CNTRLTYPE_IO;
    let mut cmic = Cmic::MULTIPLE_CONTROLLERS;
    cmic.set(Cmic::MULTIPLE_PORTS, subsystem.multiple_ports);
    id.cmic = cmic.bits();
    id.oaes = U32::new(Oaes::NAMESPACE_ATTRIBUTE.bits());
    id.acl = ACL;
    id.frmw = (Frmw::SLOT1_READ_ONLY | Frmw::ONE_SLOT).bits();
    id.lpa |= Lpa::SMART_PER_NAMESPACE.bits();
    // Entries of 64 and 16 bytes, required and at most.
    id.sqes = 0x66;
    id.cqes = 0x44;
    id.nn = U32::new(subsystem.max_nsid.0);
    id.mnan = U32::new(subsystem.max_nsid.0);
    let oncs = Oncs::COMPARE
        | Oncs::DATASET_MANAGEMENT
        | Oncs::WRITE_ZEROES
        | Oncs::SAVE_AND_SELECT
        | Oncs::VERIFY;
    id.oncs = U16::new(oncs.bits());
    let flush_all = match limits.flush_all {
        true => Vwc::FLUSH_ALL_SUPPORTED,
        false => Vwc::FLUSH_ALL_UNSUPPORTED,
    };
    id.vwc = (Vwc::PRESENT | flush_all).bits();
    // AWUN, AWUPF and ACWU stay 0 (one block), FUSES 0 (no fused operations), ICDOFF 0.
    id.ioccsz = U32::new((64 + limits.in_capsule_bytes) / 16);
    id.iorcsz = U32::new(1);
    id.msdbd = 1;
    id.ofcs = U16::new(Ofcs::DISCONNECT.bits());
    id
}

fn nvm_controller() -> NvmIdentifyController {
    let mut id = NvmIdentifyController::zeroed();
    id.wzsl = log2_pages(MAX_WRITE_ZEROES_BYTES);
    id
}

fn namespace(ns: &NamespaceInfo) -> IdentifyNamespace {
    let mut id = IdentifyNamespace::zeroed();
    let mut nsfeat = Nsfeat::empty();
    id.nsze = U64::new(ns.blocks);
    id.ncap = id.nsze;
    id.nuse = U64::new(ns.used_blocks.unwrap_or(ns.blocks).min(ns.blocks));
    nsfeat.set(Nsfeat::THIN_PROVISIONING, ns.used_blocks.is_some());
    id.nvmcap = U128::new(u128::from(ns.blocks) << ns.block_shift);
    id.nmic = Nmic::SHARED.bits();
    if ns.deallocate_reads_zeroes {
        id.dlfeat = (Dlfeat::READS_ZEROES | Dlfeat::WRITE_ZEROES_DEALLOCATE).bits();
    }
    if ns.atomic_blocks > 1 {
        nsfeat |= Nsfeat::NAMESPACE_ATOMICS;
        let atomic = U16::new(ns.atomic_blocks - 1);
        (id.nawun, id.nawupf) = (atomic, atomic);
    }
    if let Some(preferred) = ns.preferred {
        nsfeat |= Nsfeat::OPTIMAL_IO;
        let zero_based = |blocks: u16| U16::new(blocks.saturating_sub(1));
        (id.npwg, id.npwa) = (
            zero_based(preferred.write_blocks),
            zero_based(preferred.write_blocks),
        );
        (id.npdg, id.npda) = (
            zero_based(preferred.deallocate_blocks),
            zero_based(preferred.deallocate_blocks),
        );
        id.nows = zero_based(preferred.optimal_write_blocks);
    }
    id.nsfeat = nsfeat.bits();
    id.nsattr = nsattr(ns);
    id.nguid = ns.nguid;
    id.eui64 = ns.eui64;
    id.lbaf[0] = LbaFormat {
        ms: U16::ZERO,
        lbads: ns.block_shift,
        rp: 0,
    };
    id
}

fn independent_namespace(ns: &NamespaceInfo) -> IndependentNamespace {
    let mut id = IndependentNamespace::zeroed();
    id.nmic = Nmic::SHARED.bits();
    id.nsattr = nsattr(ns);
    id.nstat = Nstat::READY.bits();
    id
}

fn nsattr(ns: &NamespaceInfo) -> u8 {
    if ns.read_only {
        Nsattr::WRITE_PROTECTED.bits()
    } else {
        0
    }
}

fn descriptors(ns: &NamespaceInfo) -> DescriptorList {
    let mut list = DescriptorList::default();
    list.push(Descriptor::Uuid(ns.uuid));
    list.push(Descriptor::Nguid(ns.nguid));
    list.push(Descriptor::Eui64(ns.eui64));
    list.push(Descriptor::Csi(Csi::NVM));
    list
}
