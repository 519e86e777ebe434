//! Which commands there are, and what holds for every admin command; Abort and Keep Alive.

use super::*;
use crate::wire::event::{async_event_request_sqe, keep_alive_sqe};
use crate::wire::fabrics::{Cattr, ConnectSqe, disconnect_sqe};
use crate::wire::identify::Csi;
use crate::wire::log::EffectsLog;
use crate::wire::{IoOpcode, Opcode};
use zerocopy::IntoBytes;

/// For each opcode, the effects log says "supported" exactly where the controller does not answer
/// Invalid Command Opcode.
#[test]
fn effects_log_matches_what_is_supported() {
    for kind in [ControllerKind::Io, ControllerKind::Discovery] {
        let mut host = Host::ready(kind);
        let page =
            EffectsLog::read_from_bytes(&host.get_log(LogId::COMMAND_EFFECTS, 4096)).unwrap();
        for opcode in (0..=255).map(Opcode).filter(|&o| o != Opcode::FABRICS) {
            let invalid = |status: Status| status.is(Status::INVALID_OPCODE);
            let admin = match host.send(Sqe::new(opcode)) {
                AdminAction::Complete { status, .. } => !invalid(status),
                _ => true,
            };
            assert_eq!(page.admin(opcode).bits() & 1 == 1, admin, "admin {opcode}");
            let io = match validate_io(&Sqe::new(opcode), None) {
                Err(fault) => !invalid(fault.status()),
                Ok(_) => true,
            };
            let claimed = page.io(opcode).bits() & 1 == 1;
            assert_eq!(claimed, io && kind == ControllerKind::Io, "I/O {opcode}");
            let beyond_blocks = page.io(opcode).bits() & !3;
            assert_eq!(beyond_blocks, 0, "Linux would warn of {opcode}");
        }
        assert_eq!(
            page.admin(Opcode::FABRICS).bits() | page.io(Opcode::FABRICS).bits(),
            0
        );
    }
}

/// The transfer direction that the opcode encodes is the one that the command table implies.
#[test]
fn opcode_table_is_consistent() {
    for op in ops::IO {
        let writes_blocks = [
            IoOpcode::WRITE,
            IoOpcode::WRITE_ZEROES,
            IoOpcode::DATASET_MANAGEMENT,
        ]
        .contains(&op.opcode);
        assert_eq!(op.writes, writes_blocks, "{}", op.opcode);
        assert_eq!(
            op.effects
                .contains(crate::wire::log::CommandEffects::BLOCK_CONTENT_CHANGE),
            op.writes
        );
    }
    let all = ops::ADMIN
        .iter()
        .map(|op| op.opcode)
        .collect::<std::collections::HashSet<_>>();
    assert_eq!(all.len(), ops::ADMIN.len(), "no opcode twice");
}

#[test]
fn commands_wait_for_the_controller_to_be_ready() {
    let mut host = Host::connected(ControllerKind::Io);
    for sqe in [
        IdentifyCommand::new(Cns::CONTROLLER, Nsid(0)).to_sqe(),
        GetLogPage::new(LogId::ERROR, 64, 0).to_sqe(),
        GetFeatures::current(FeatureId::NUMBER_OF_QUEUES).to_sqe(0),
        SetFeatures::new(FeatureId::KEEP_ALIVE_TIMER, 1).to_sqe(),
        async_event_request_sqe(),
        keep_alive_sqe(),
        AbortCommand {
            sqid: Qid(0),
            cid: Cid(0),
        }
        .to_sqe(),
    ] {
        assert_eq!(
            host.refused(sqe),
            Status::COMMAND_SEQUENCE_ERROR,
            "{}",
            sqe.opcode
        );
    }
}

#[test]
fn fused_and_prp_commands_are_refused() {
    let mut host = Host::io();
    for flags in [0x41, 0x42, 0x43, 0x00, 0x80, 0xc0] {
        let mut sqe = keep_alive_sqe();
        sqe.flags = flags;
        assert_eq!(
            host.refused(sqe),
            Status::INVALID_FIELD,
            "flags {flags:02x}h"
        );
    }
    let mut property = PropertySqe::get(Property::VS);
    property.flags = 0;
    host.result(property.into_sqe());
}

#[test]
fn sgl_must_fit_the_command() {
    let mut host = Host::io();
    let sized = |mut sqe: Sqe, bytes| {
        sqe.dptr = SglDescriptor::transport(bytes);
        sqe
    };
    let identify = IdentifyCommand::new(Cns::CONTROLLER, Nsid(0)).to_sqe();
    let host_id = GetFeatures {
        cdw11: 1,
        ..GetFeatures::current(FeatureId::HOST_IDENTIFIER)
    }
    .to_sqe(16);
    for sqe in [
        sized(identify, 0),
        sized(identify, 4095),
        sized(identify, 8192),
        sized(GetLogPage::new(LogId::ERROR, 64, 0).to_sqe(), 60),
        sized(GetLogPage::new(LogId::ERROR, 64, 0).to_sqe(), 68),
        sized(
            GetFeatures::current(FeatureId::NUMBER_OF_QUEUES).to_sqe(0),
            4,
        ),
        sized(host_id, 8),
        sized(
            SetFeatures::new(FeatureId::WRITE_ATOMICITY, 0).to_sqe(),
            512,
        ),
        sized(keep_alive_sqe(), 1),
        sized(async_event_request_sqe(), 1),
        sized(
            AbortCommand {
                sqid: Qid(0),
                cid: Cid(0),
            }
            .to_sqe(),
            1,
        ),
    ] {
        assert_eq!(
            host.refused(sqe),
            Status::DATA_SGL_LENGTH_INVALID,
            "{}",
            sqe.opcode
        );
    }
}

#[test]
fn fabrics_commands_on_the_admin_queue() {
    let mut host = Host::io();
    assert_eq!(host.refused(disconnect_sqe()), Status::INVALID_QUEUE_TYPE);
    let again = ConnectSqe::new(Qid(0), 32, Cattr::empty(), 0).into_sqe();
    assert_eq!(host.refused(again), Status::COMMAND_SEQUENCE_ERROR);
    // Authentication is not supported, and Connect did not ask for it. 02h is reserved.
    for fctype in [0x05, 0x06, 0x02, 0xff] {
        let mut sqe = disconnect_sqe();
        sqe.as_mut_bytes()[4] = fctype;
        assert_eq!(
            host.refused(sqe),
            Status::INVALID_OPCODE,
            "FCTYPE {fctype:02x}h"
        );
    }
}

#[test]
fn abort_goes_to_the_io_queue() {
    let mut host = Host::io();
    host.controller.io_queue_connected(Qid(2));
    let abort = AbortCommand {
        sqid: Qid(2),
        cid: Cid(9),
    };
    let action = AdminAction::Abort {
        sqid: Qid(2),
        cid: Cid(9),
    };
    assert_eq!(host.send(abort.to_sqe()), action);
    // A queue or an admin command that is not there: success, "not aborted".
    assert_eq!(
        host.result(
            AbortCommand {
                sqid: Qid(3),
                cid: Cid(9)
            }
            .to_sqe()
        ),
        1
    );
    assert_eq!(
        host.result(
            AbortCommand {
                sqid: Qid(0),
                cid: Cid(9)
            }
            .to_sqe()
        ),
        1
    );
    // ACL is 3, 0's based: four may be outstanding.
    for _ in 0..3 {
        assert_eq!(host.send(abort.to_sqe()), action);
    }
    assert_eq!(host.refused(abort.to_sqe()), Status::ABORT_LIMIT_EXCEEDED);
    host.controller.abort_done();
    assert_eq!(host.send(abort.to_sqe()), action);
    host.controller.io_queue_closed(Qid(2));
    assert_eq!(host.result(abort.to_sqe()), 1);
}

#[test]
fn abort_ends_a_held_event_request() {
    let mut host = Host::io();
    let tag = host.request_event();
    assert_eq!(
        host.result(
            AbortCommand {
                sqid: Qid(0),
                cid: Cid(tag)
            }
            .to_sqe()
        ),
        0
    );
    let ended = host.controller.poll_event().unwrap();
    assert_eq!((ended.tag, ended.status), (tag, Status::ABORT_REQUESTED));
    assert_eq!(
        host.result(
            AbortCommand {
                sqid: Qid(0),
                cid: Cid(tag)
            }
            .to_sqe()
        ),
        1
    );
}

#[test]
fn discovery_controllers_have_fewer_commands() {
    let mut host = Host::ready(ControllerKind::Discovery);
    assert_eq!(
        host.refused(
            AbortCommand {
                sqid: Qid(0),
                cid: Cid(0)
            }
            .to_sqe()
        ),
        Status::INVALID_OPCODE
    );
    assert_eq!(host.send(keep_alive_sqe()), AdminAction::SUCCESS);
    for cns in [Cns::NAMESPACE, Cns::ACTIVE_NAMESPACES, Cns::IO_COMMAND_SETS] {
        let command = IdentifyCommand {
            csi: Csi::NVM,
            ..IdentifyCommand::new(cns, Nsid(1))
        };
        assert_eq!(host.refused(command.to_sqe()), Status::INVALID_FIELD);
    }
}
