//! One table of every command that is supported, with what it does. The dispatch of admin commands, the
//! checks of I/O commands and the Commands Supported and Effects log page all follow it; tests hold
//! the three against each other for all 256 opcodes.

use super::ControllerKind;
use crate::wire::log::{CommandEffects, EffectsLog};
use crate::wire::{AdminOpcode, IoOpcode, Opcode};

/// What is known of one command.
#[derive(Clone, Copy, Debug)]
pub struct Op {
    /// Its opcode.
    pub opcode: Opcode,
    /// What the effects log says of it.
    pub effects: CommandEffects,
    /// Whether a discovery controller supports it too.
    pub discovery: bool,
    /// Whether it changes the namespace, so that a write-protected one refuses it.
    pub writes: bool,
}

const fn admin(opcode: Opcode, discovery: bool, scope: CommandEffects) -> Op {
    Op {
        opcode,
        effects: CommandEffects::SUPPORTED.union(scope),
        discovery,
        writes: false,
    }
}

/// The scope of I/O commands is left unsaid, as in nvmet: it is the namespace in any case, and Linux's host warns of any effect of an I/O
/// command beyond a change of blocks.
const fn read(opcode: Opcode) -> Op {
    Op {
        opcode,
        effects: CommandEffects::SUPPORTED,
        discovery: false,
        writes: false,
    }
}

const fn write(opcode: Opcode) -> Op {
    let op = read(opcode);
    Op {
        effects: op.effects.union(CommandEffects::BLOCK_CONTENT_CHANGE),
        writes: true,
        ..op
    }
}

const CONTROLLER: CommandEffects = CommandEffects::SCOPE_CONTROLLER;
/// What a command that may concern a namespace or the controller says.
const EITHER: CommandEffects = CONTROLLER.union(CommandEffects::SCOPE_NAMESPACE);

/// The admin commands, without the fabrics ones.
pub const ADMIN: &[Op] = &[
    admin(AdminOpcode::GET_LOG_PAGE, true, EITHER),
    admin(AdminOpcode::IDENTIFY, true, EITHER),
    admin(AdminOpcode::ABORT, false, CONTROLLER),
    admin(AdminOpcode::SET_FEATURES, true, EITHER),
    admin(AdminOpcode::GET_FEATURES, true, EITHER),
    admin(AdminOpcode::ASYNC_EVENT_REQUEST, true, CONTROLLER),
    admin(AdminOpcode::KEEP_ALIVE, true, CONTROLLER),
];

/// The I/O commands, without the fabrics ones.
pub const IO: &[Op] = &[
    read(IoOpcode::FLUSH),
    write(IoOpcode::WRITE),
    read(IoOpcode::READ),
    read(IoOpcode::COMPARE),
    write(IoOpcode::WRITE_ZEROES),
    write(IoOpcode::DATASET_MANAGEMENT),
    read(IoOpcode::VERIFY),
];

/// The admin command `opcode` of a controller of kind `kind`.
pub fn admin_op(opcode: Opcode, kind: ControllerKind) -> Option<&'static Op> {
    ADMIN
        .iter()
        .find(|op| op.opcode == opcode && (op.discovery || kind == ControllerKind::Io))
}

/// The I/O command `opcode`.
pub fn io_op(opcode: Opcode) -> Option<&'static Op> {
    IO.iter().find(|op| op.opcode == opcode)
}

/// The effects log of a controller of kind `kind`.
pub fn effects_log(kind: ControllerKind) -> EffectsLog {
    let mut log = EffectsLog::empty();
    for op in ADMIN
        .iter()
        .filter(|op| admin_op(op.opcode, kind).is_some())
    {
        log.set_admin(op.opcode, op.effects);
    }
    if kind == ControllerKind::Io {
        for op in IO {
            log.set_io(op.opcode, op.effects);
        }
    }
    log
}
