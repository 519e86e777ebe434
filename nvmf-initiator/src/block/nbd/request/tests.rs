//! Every rule for a request, kept and broken.

use zerocopy::IntoBytes;

use super::*;
use crate::block::nbd::test_export;
use crate::block::spec::Geometry;

const SIZE_BYTES: u64 = 64 << 20;

fn header(command: u16, flags: u16, offset_bytes: u64, len_bytes: u32) -> RequestHeader {
    RequestHeader {
        magic: REQUEST_MAGIC.into(),
        flags: flags.into(),
        command: command.into(),
        cookie: 7.into(),
        offset_bytes: offset_bytes.into(),
        len_bytes: len_bytes.into(),
    }
}

fn action(header: RequestHeader) -> Result<Action, NbdError> {
    let request = Request::parse(header.as_bytes(), &test_export())
        .unwrap()
        .unwrap();
    assert_eq!(request.cookie, 7);
    let is_write = header.command.get() == command::WRITE;
    let payload_bytes = if is_write { header.len_bytes.get() } else { 0 };
    assert_eq!(
        request.payload_bytes, payload_bytes,
        "the stream can be followed"
    );
    request.action
}

#[test]
fn what_is_offered_is_carried_out() {
    let cases = [
        (command::READ, 0, Action::Read),
        // It has nothing to reach stable storage, and so it does.
        (command::READ, 1, Action::Read),
        (command::WRITE, 0, Action::Write { fua: false }),
        (command::WRITE, 1, Action::Write { fua: true }),
        (command::TRIM, 1, Action::Trim { fua: true }),
        (
            command::WRITE_ZEROES,
            0,
            Action::WriteZeroes {
                unmap: true,
                fua: false,
            },
        ),
        (
            command::WRITE_ZEROES,
            3,
            Action::WriteZeroes {
                unmap: false,
                fua: true,
            },
        ),
    ];
    for (command, flags, expected) in cases {
        let request = header(command, flags, SIZE_BYTES - 4096, 4096);
        assert_eq!(action(request), Ok(expected));
    }
    // Their offset and length mean nothing.
    assert_eq!(
        action(header(command::FLUSH, 0, u64::MAX, 1)),
        Ok(Action::Flush)
    );
    assert_eq!(
        action(header(command::DISC, 0, 3, 3)),
        Ok(Action::Disconnect)
    );
    // Longer than any payload.
    assert_eq!(
        action(header(command::TRIM, 0, 0, SIZE_BYTES as u32)),
        Ok(Action::Trim { fua: false })
    );
}

#[test]
fn requests_beyond_the_end_are_refused() {
    let cases = [
        (command::READ, NbdError::INVAL),
        (command::TRIM, NbdError::INVAL),
        (command::WRITE, NbdError::NOSPC),
        (command::WRITE_ZEROES, NbdError::NOSPC),
    ];
    for (command, error) in cases {
        for offset in [SIZE_BYTES, SIZE_BYTES - 512, u64::MAX - 511] {
            assert_eq!(action(header(command, 0, offset, 1024)), Err(error));
        }
    }
}

#[test]
fn requests_off_the_blocks_are_refused() {
    for command in [
        command::READ,
        command::WRITE,
        command::TRIM,
        command::WRITE_ZEROES,
    ] {
        assert_eq!(action(header(command, 0, 1, 512)), Err(NbdError::INVAL));
        assert_eq!(action(header(command, 0, 0, 511)), Err(NbdError::INVAL));
    }
}

#[test]
fn oversize_payloads_are_refused_and_those_past_the_protocols_end_the_connection() {
    for command in [command::READ, command::WRITE] {
        let request = header(command, 0, 0, MAX_TRANSFER_BYTES + 512);
        assert_eq!(action(request), Err(NbdError::INVAL));
        assert_eq!(
            action(header(command, 0, 0, 32 << 20)),
            Err(NbdError::INVAL)
        );
    }
    let len_bytes = (32 << 20) + 1;
    let request = header(command::WRITE, 0, 0, len_bytes);
    assert_eq!(
        Request::parse(request.as_bytes(), &test_export()),
        Err(Violation::PayloadTooLong(len_bytes))
    );
    // A read of that length has no payload to follow.
    assert_eq!(
        action(header(command::READ, 0, 0, u32::MAX)),
        Err(NbdError::INVAL)
    );
}

#[test]
fn unknown_commands_and_flags_are_refused() {
    // CACHE, BLOCK_STATUS, RESIZE, and one that nobody knows.
    for command in [5, 7, 8, 0xffff] {
        assert_eq!(action(header(command, 0, 0, 512)), Err(NbdError::INVAL));
    }
    // DF belongs to structured replies, FAST_ZERO is not offered, NO_HOLE belongs to WRITE_ZEROES.
    for (command, flags) in [
        (command::READ, 4),
        (command::WRITE_ZEROES, 16),
        (command::WRITE, 2),
        (command::DISC, 0x8000),
    ] {
        assert_eq!(action(header(command, flags, 0, 512)), Err(NbdError::INVAL));
    }
}

#[test]
fn what_is_not_offered_is_refused() {
    let limits = crate::block::BlockLimits {
        max_transfer_bytes: 4096,
        max_discard_bytes: 0,
        max_write_zeroes_bytes: 0,
    };
    let export = Export::new(test_export().geometry.clone(), limits);
    for command in [command::TRIM, command::WRITE_ZEROES] {
        let request = Request::parse(header(command, 0, 0, 512).as_bytes(), &export);
        assert_eq!(request.unwrap().unwrap().action, Err(NbdError::INVAL));
    }
}

#[test]
fn a_read_only_export_takes_no_change() {
    let mut spec = crate::block::nbd::test_spec();
    spec.read_only = true;
    let export = Export::new(Geometry::new(&spec), spec.limits);
    for (command, expected) in [
        (command::READ, Ok(Action::Read)),
        (command::FLUSH, Ok(Action::Flush)),
        (command::WRITE, Err(NbdError::PERM)),
        (command::TRIM, Err(NbdError::PERM)),
        (command::WRITE_ZEROES, Err(NbdError::PERM)),
    ] {
        let request = Request::parse(header(command, 0, 0, 512).as_bytes(), &export);
        assert_eq!(request.unwrap().unwrap().action, expected);
    }
}

#[test]
fn half_a_request_waits_and_another_magic_ends_the_connection() {
    let request = header(command::READ, 0, 0, 512);
    for end in 0..28 {
        let parsed = Request::parse(&request.as_bytes()[..end], &test_export());
        assert_eq!(parsed, Ok(None));
    }
    let structured = [0x21, 0xe4, 0x1c, 0x71];
    let mut bytes = request.as_bytes().to_vec();
    bytes[..4].copy_from_slice(&structured);
    assert_eq!(
        Request::parse(&bytes, &test_export()),
        Err(Violation::RequestMagic(0x21e4_1c71))
    );
}

#[test]
fn errors_of_the_backing_have_a_number_in_the_protocol() {
    let cases = [
        (Errno::IO, NbdError::IO),
        (Errno::NOSPC, NbdError::NOSPC),
        (Errno::ROFS, NbdError::PERM),
        (Errno::OPNOTSUPP, NbdError::NOTSUP),
        // It has no other.
        (Errno::NOLINK, NbdError::IO),
    ];
    for (errno, error) in cases {
        assert_eq!(error_of(errno), error);
    }
}
