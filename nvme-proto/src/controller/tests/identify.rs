//! Identify: every data structure, and which NSIDs, CSIs and CNTIDs are refused.

use super::*;
use crate::wire::identify::{
    Csi, Descriptor, IdentifyNamespace, IndependentNamespace, NamespaceList, NvmIdentifyController,
    descriptors,
};

#[test]
fn controller_structure() {
    let mut host = Host::io();
    host.subsystem.info.multiple_ports = true;
    let id: IdentifyController = host.identify(Cns::CONTROLLER, 0);
    assert_eq!(
        (
            id.sn.to_string().as_str(),
            id.mn.to_string().as_str(),
            id.fr.to_string().as_str()
        ),
        ("S123", "Example", "0.1")
    );
    assert_eq!(&id.sn.0[4..], [b' '; 16], "padded with spaces");
    assert_eq!(Nqn::from_field(&id.subnqn), Ok(nqn(SUBNQN)));
    assert_eq!(id.cmic, 0b11);
    assert_eq!(id.mdts_bytes(4096), Some(1 << 20));
    assert_eq!(id.in_capsule_bytes(), 16384);
    assert_eq!(id.ver.get(), 0x0002_0000);
    assert_eq!(
        id.ctratt.get(),
        0b100_0001,
        "128-bit host identifiers, TBKAS"
    );
    assert_eq!(id.oaes.get(), 1 << 8);
    assert_eq!(
        (id.cntrltype, id.acl, id.aerl, id.elpe, id.frmw),
        (1, 3, 3, 63, 0b11)
    );
    assert_eq!(id.lpa, 0b10_0111);
    assert_eq!((id.sqes, id.cqes, id.maxcmd.get()), (0x66, 0x44, 1024));
    assert_eq!((id.nn.get(), id.mnan.get()), (32, 32));
    assert_eq!(
        id.oncs.get(),
        0b1001_1101,
        "Compare, DSM, Write Zeroes, Save/Select, Verify"
    );
    assert_eq!(id.fuses.get(), 0, "Compare alone, not Compare and Write");
    assert_eq!(
        (id.vwc, id.fna),
        (0b101, 0),
        "a cache; Flush of one namespace at a time"
    );
    assert_eq!((id.awun.get(), id.awupf.get(), id.acwu.get()), (0, 0, 0));
    assert_eq!(id.sgls.get(), 1 | 1 << 20 | 1 << 21);
    assert_eq!(
        (
            id.iorcsz.get(),
            id.icdoff.get(),
            id.msdbd,
            id.ofcs.get(),
            id.fcatt
        ),
        (1, 0, 1, 1, 0)
    );
    assert_eq!(
        (id.vid.get(), id.oacs.get(), id.npss, id.dctype),
        (0, 0, 0, 0)
    );
}

/// Fields that no test names say "none": nothing is claimed by accident.
#[test]
fn everything_else_of_the_controller_structure_is_zero() {
    let mut host = Host::io();
    let mut id: IdentifyController = host.identify(Cns::CONTROLLER, 0);
    (id.sn, id.mn, id.fr) = (Ascii([0; 20]), Ascii([0; 40]), Ascii([0; 8]));
    (id.cmic, id.mdts, id.cntrltype, id.acl, id.aerl) = (0, 0, 0, 0, 0);
    (id.frmw, id.lpa, id.elpe, id.sqes, id.cqes, id.vwc, id.msdbd) = (0, 0, 0, 0, 0, 0, 0);
    id.subnqn = [0; 256];
    for field in [
        &mut id.cntlid,
        &mut id.kas,
        &mut id.maxcmd,
        &mut id.oncs,
        &mut id.ofcs,
    ] {
        field.set(0);
    }
    for field in [
        &mut id.ver,
        &mut id.oaes,
        &mut id.ctratt,
        &mut id.nn,
        &mut id.mnan,
        &mut id.sgls,
        &mut id.ioccsz,
        &mut id.iorcsz,
    ] {
        field.set(0);
    }
    assert!(zerocopy::IntoBytes::as_bytes(&id).iter().all(|&b| b == 0));
}

#[test]
fn flush_of_all_namespaces_is_claimed_where_the_target_does_it() {
    let mut init = init(ControllerKind::Io);
    init.limits.flush_all = true;
    let mut host = Host::with(init);
    host.set_cc(ENABLED);
    let id: IdentifyController = host.identify(Cns::CONTROLLER, 0);
    assert_eq!(id.vwc, 0b111);
}

#[test]
fn rdma_controllers_take_keyed_sgls() {
    let mut host = Host::with(ControllerInit {
        transport: Transport::Rdma,
        ..init(ControllerKind::Io)
    });
    host.set_cc(ENABLED);
    let id: IdentifyController = host.identify(Cns::CONTROLLER, 0);
    assert_eq!(id.sgls.get(), 1 | 1 << 2 | 1 << 20);
}

#[test]
fn namespace_structures() {
    let mut host = Host::io();
    host.subsystem.namespaces.insert(
        Nsid(2),
        NamespaceInfo {
            block_shift: 9,
            used_blocks: Some(10),
            read_only: true,
            eui64: Eui64([3; 8]),
            atomic_blocks: 8,
            preferred: Some(PreferredIo {
                write_blocks: 8,
                deallocate_blocks: 16,
                optimal_write_blocks: 256,
            }),
            ..namespace(5000)
        },
    );
    let ns: IdentifyNamespace = host.identify(Cns::NAMESPACE, 2);
    assert_eq!(
        (ns.nsze.get(), ns.ncap.get(), ns.nuse.get()),
        (5000, 5000, 10)
    );
    assert_eq!(ns.nvmcap.get(), 5000 * 512);
    assert_eq!(ns.nsfeat, 0b1_0011, "thin, atomics, preferences");
    assert_eq!((ns.nawun.get(), ns.nawupf.get(), ns.nacwu.get()), (7, 7, 0));
    assert_eq!(
        (
            ns.npwg.get(),
            ns.npwa.get(),
            ns.npdg.get(),
            ns.npda.get(),
            ns.nows.get()
        ),
        (7, 7, 15, 15, 255)
    );
    assert_eq!((ns.nmic, ns.nsattr, ns.dlfeat), (1, 1, 0b1001));
    assert_eq!(
        (ns.nlbaf, ns.flbas, ns.format().block_size_bytes()),
        (0, 0, Some(512))
    );
    assert_eq!((ns.nguid, ns.eui64), (Nguid([2; 16]), Eui64([3; 8])));
    assert_eq!((ns.mc, ns.dpc, ns.dps, ns.rescap), (0, 0, 0, 0));

    let plain: IdentifyNamespace = host.identify(Cns::NAMESPACE, 1);
    assert_eq!((plain.nsfeat, plain.nuse.get(), plain.nsattr), (0, 1000, 0));

    let independent: IndependentNamespace = host.identify(Cns::INDEPENDENT_NAMESPACE, 2);
    assert_eq!(
        (independent.nmic, independent.nsattr, independent.nstat),
        (1, 1, 1)
    );

    let ids = host.read(IdentifyCommand::new(Cns::NAMESPACE_DESCRIPTORS, Nsid(2)).to_sqe());
    let expected = [
        Descriptor::Uuid(Uuid([1; 16])),
        Descriptor::Nguid(Nguid([2; 16])),
        Descriptor::Eui64(Eui64([3; 8])),
        Descriptor::Csi(Csi::NVM),
    ];
    assert_eq!(descriptors(&ids).collect::<Vec<_>>(), expected);
}

#[test]
fn inactive_namespaces_are_zeroes_and_invalid_ones_refused() {
    let mut host = Host::io();
    for cns in [
        Cns::NAMESPACE,
        Cns::CSI_NAMESPACE,
        Cns::INDEPENDENT_NAMESPACE,
    ] {
        let data = host.read(IdentifyCommand::new(cns, Nsid(32)).to_sqe());
        assert!(data.iter().all(|&b| b == 0), "{cns:?}");
        for nsid in [0, 33, 0xffff_fffe, u32::MAX] {
            let command = IdentifyCommand::new(cns, Nsid(nsid));
            assert_eq!(
                host.refused(command.to_sqe()),
                Status::INVALID_NAMESPACE,
                "{cns:?} NSID {nsid}"
            );
        }
    }
    for nsid in [0, 2, 33, u32::MAX] {
        let command = IdentifyCommand::new(Cns::NAMESPACE_DESCRIPTORS, Nsid(nsid));
        assert_eq!(
            host.refused(command.to_sqe()),
            Status::INVALID_NAMESPACE,
            "NSID {nsid}"
        );
    }
}

#[test]
fn namespace_lists_start_above_the_given_one() {
    let mut host = Host::io();
    host.subsystem.info.max_nsid = Nsid(3000);
    host.subsystem.namespaces = (1..=2000).map(|n| (Nsid(n), namespace(1))).collect();
    for cns in [Cns::ACTIVE_NAMESPACES, Cns::CSI_ACTIVE_NAMESPACES] {
        let first: NamespaceList = host.identify(cns, 0);
        assert_eq!(first.iter().count(), 1024);
        let last = first.iter().last().unwrap();
        assert_eq!(last, Nsid(1024));
        let second: NamespaceList = host.identify(cns, last.0);
        assert_eq!(
            second.iter().collect::<Vec<_>>(),
            (1025..=2000).map(Nsid).collect::<Vec<_>>()
        );
        let none: NamespaceList = host.identify(cns, 0xffff_fffd);
        assert_eq!(none.iter().count(), 0);
        for nsid in [0xffff_fffe, u32::MAX] {
            assert_eq!(
                host.refused(IdentifyCommand::new(cns, Nsid(nsid)).to_sqe()),
                Status::INVALID_NAMESPACE
            );
        }
    }
}

#[test]
fn command_set_structures() {
    let mut host = Host::io();
    let nvm: NvmIdentifyController = host.identify(Cns::CSI_CONTROLLER, 0);
    assert_eq!(nvm.wzsl, 13, "2^13 pages are 32 MiB");
    assert_eq!(
        (nvm.vsl, nvm.wusl, nvm.dmrl, nvm.dmrsl.get(), nvm.dmsl.get()),
        (0, 0, 0, 0, 0)
    );
    for cns in [
        Cns::CSI_NAMESPACE,
        Cns::CSI_CONTROLLER,
        Cns::CSI_ACTIVE_NAMESPACES,
    ] {
        let command = IdentifyCommand {
            csi: Csi(2),
            ..IdentifyCommand::new(cns, Nsid(1))
        };
        assert_eq!(
            host.refused(command.to_sqe()),
            Status::INVALID_FIELD,
            "{cns:?}"
        );
    }
    for cntid in [CNTLID, Cntlid::DYNAMIC] {
        let command = IdentifyCommand {
            cntid,
            ..IdentifyCommand::new(Cns::IO_COMMAND_SETS, Nsid(0))
        };
        assert_eq!(
            host.read(command.to_sqe())[..9],
            [1, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }
    let other = IdentifyCommand {
        cntid: Cntlid(6),
        ..IdentifyCommand::new(Cns::IO_COMMAND_SETS, Nsid(0))
    };
    assert_eq!(host.refused(other.to_sqe()), Status::INVALID_FIELD);
}

#[test]
fn unsupported_structures_are_refused() {
    let mut host = Host::io();
    let supported = [0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x07, 0x08, 0x1c];
    for cns in (0..=255).filter(|cns| !supported.contains(cns)) {
        let command = IdentifyCommand::new(Cns(cns), Nsid(1));
        assert_eq!(
            host.refused(command.to_sqe()),
            Status::INVALID_FIELD,
            "CNS {cns:02x}h"
        );
    }
}
