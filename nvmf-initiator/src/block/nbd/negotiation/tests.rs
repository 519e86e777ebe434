//! Clients of all manners, good and bad, byte by byte.

use super::*;
use crate::block::BlockLimits;
use crate::block::nbd::test_export;

const FIXED: u32 = 1;
const NO_ZEROES: u32 = 2;

/// A client that has said its flags.
fn client(flags: u32) -> Negotiation {
    let mut negotiation = Negotiation::new();
    let taken = receive(&mut negotiation, &flags.to_be_bytes()).unwrap();
    assert_eq!(taken, (4, Next::Option, vec![]));
    negotiation
}

fn receive(
    negotiation: &mut Negotiation,
    input: &[u8],
) -> Result<(usize, Next, Vec<u8>), Violation> {
    let mut out = Vec::new();
    let (taken, next) = negotiation.receive(input, &test_export(), &mut out)?;
    assert!(out.len() <= MAX_ANSWER_BYTES);
    Ok((taken, next, out))
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// Data of INFO and GO.
fn query(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((kinds.len() as u16).to_be_bytes());
    data.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

/// Answers as option, kind and data.
fn answers(mut bytes: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut answers = Vec::new();
    while !bytes.is_empty() {
        let (header, rest) = OptionReplyHeader::read_from_prefix(bytes).unwrap();
        assert_eq!(header.magic.get(), 0x0003_e889_0455_65a9);
        let (data, rest) = rest.split_at(header.len.get() as usize);
        answers.push((header.option.get(), header.kind.get(), data.to_vec()));
        bytes = rest;
    }
    answers
}

/// What one option is answered with, and what comes next.
fn ask(number: u32, data: &[u8]) -> (Next, Vec<(u32, u32, Vec<u8>)>) {
    let mut negotiation = client(FIXED);
    let bytes = option(number, data);
    let (taken, next, out) = receive(&mut negotiation, &bytes).unwrap();
    assert_eq!(taken, bytes.len());
    (next, answers(&out))
}

#[test]
fn the_greeting_is_as_the_protocol_has_it() {
    assert_eq!(
        Negotiation::greeting().as_bytes(),
        b"NBDMAGICIHAVEOPT\x00\x03"
    );
}

#[test]
fn go_says_size_flags_and_block_sizes_and_begins_transmission() {
    for name in ["", "disk"] {
        let (next, answers) = ask(option::GO, &query(name, &[]));
        assert_eq!(next, Next::Transmission);
        // Flags: has flags, flush, FUA, trim, write zeroes, several connections.
        let mut export = vec![0, 0];
        export.extend((64u64 << 20).to_be_bytes());
        export.extend([0x01, 0x6d]);
        let mut sizes = vec![0, 3];
        for size in [512u32, 4096, 4 << 20] {
            sizes.extend(size.to_be_bytes());
        }
        let expected = [
            (option::GO, reply::INFO, export),
            (option::GO, reply::INFO, sizes),
            (option::GO, reply::ACK, vec![]),
        ];
        assert_eq!(answers, expected);
    }
}

#[test]
fn info_says_the_same_and_the_name_when_asked_and_another_option_may_follow() {
    let (next, answers) = ask(
        option::INFO,
        &query("disk", &[info::NAME, 77, info::BLOCK_SIZE]),
    );
    assert_eq!(next, Next::Option);
    assert_eq!(answers.len(), 4);
    assert_eq!(answers[2].2, b"\x00\x01disk");
    assert_eq!(answers[3].1, reply::ACK);
}

#[test]
fn what_the_backing_cannot_do_is_not_offered() {
    let mut export = test_export();
    let limits = BlockLimits {
        max_transfer_bytes: 4096,
        max_discard_bytes: 0,
        max_write_zeroes_bytes: 0,
    };
    export = Export::new(export.geometry.clone(), limits);
    assert_eq!(export.info().flags.get(), 0x010d);
}

#[test]
fn list_names_the_only_export() {
    let (next, answers) = ask(option::LIST, &[]);
    assert_eq!(next, Next::Option);
    let expected = [
        (
            option::LIST,
            reply::SERVER,
            b"\x00\x00\x00\x04disk".to_vec(),
        ),
        (option::LIST, reply::ACK, vec![]),
    ];
    assert_eq!(answers, expected);
}

#[test]
fn an_option_is_taken_whole_or_not_at_all() {
    let mut negotiation = client(FIXED);
    let bytes = option(option::GO, &query("disk", &[info::NAME]));
    for end in 0..bytes.len() {
        let taken = receive(&mut negotiation, &bytes[..end]).unwrap();
        assert_eq!(taken, (0, Next::NeedMore, vec![]), "{end}");
    }
    let (taken, next, _) = receive(&mut negotiation, &bytes).unwrap();
    assert_eq!((taken, next), (bytes.len(), Next::Transmission));
    let mut slow = Negotiation::new();
    assert_eq!(receive(&mut slow, &[0, 0, 0]).unwrap().1, Next::NeedMore);
}

#[test]
fn malformed_options_are_refused_and_the_client_may_go_on() {
    let mut cut = query("disk", &[1, 3]);
    cut.pop();
    let mut long = query("disk", &[]);
    long.push(0);
    let name_beyond_its_end = [0xff, 0xff, 0xff, 0xff, b'd', 0, 0];
    for data in [&[][..], &[0, 0, 0], &cut, &long, &name_beyond_its_end] {
        for number in [option::INFO, option::GO] {
            let expected = (Next::Option, vec![(number, reply::ERR_INVALID, vec![])]);
            assert_eq!(ask(number, data), expected, "{data:x?}");
        }
    }
    let expected = (
        Next::Option,
        vec![(option::LIST, reply::ERR_INVALID, vec![])],
    );
    assert_eq!(ask(option::LIST, b"?"), expected);
}

#[test]
fn an_unknown_export_is_refused() {
    for number in [option::INFO, option::GO] {
        let expected = (Next::Option, vec![(number, reply::ERR_UNKNOWN, vec![])]);
        assert_eq!(ask(number, &query("dis", &[])), expected);
    }
}

#[test]
fn options_that_are_not_implemented_are_refused_by_the_word_for_it() {
    // STARTTLS, structured replies, metadata contexts, extended headers, and one that nobody knows.
    for number in [5, 8, 9, 10, 11, 0xdead_beef] {
        let expected = (Next::Option, vec![(number, reply::ERR_UNSUP, vec![])]);
        assert_eq!(ask(number, b"data"), expected);
    }
}

#[test]
fn abort_is_acknowledged_and_ends() {
    assert_eq!(
        ask(option::ABORT, &[]),
        (Next::End, vec![(option::ABORT, reply::ACK, vec![])])
    );
}

#[test]
fn an_option_that_is_too_long_is_passed_over_without_being_kept() {
    let mut negotiation = client(FIXED);
    let mut header = option(option::GO, &[]);
    let len = MAX_OPTION_BYTES + 1;
    header[12..].copy_from_slice(&len.to_be_bytes());
    let taken = receive(&mut negotiation, &header).unwrap();
    assert_eq!(taken, (16, Next::Option, vec![]));
    // One byte short of its end nothing is answered yet.
    let (taken, next, out) = receive(&mut negotiation, &vec![0; len as usize - 1]).unwrap();
    assert_eq!((taken as u32, next, out), (len - 1, Next::NeedMore, vec![]));
    let mut rest = vec![0];
    rest.extend(option(option::ABORT, &[]));
    let (taken, next, out) = receive(&mut negotiation, &rest).unwrap();
    assert_eq!((taken, next), (1, Next::Option));
    assert_eq!(answers(&out), [(option::GO, reply::ERR_TOO_BIG, vec![])]);
    assert_eq!(receive(&mut negotiation, &rest[1..]).unwrap().1, Next::End);
}

#[test]
fn export_name_is_answered_in_its_old_form() {
    for (flags, padding) in [(0, 124), (FIXED, 124), (FIXED | NO_ZEROES, 0)] {
        let mut negotiation = client(flags);
        let bytes = option(option::EXPORT_NAME, b"disk");
        let (_, next, out) = receive(&mut negotiation, &bytes).unwrap();
        assert_eq!(next, Next::Transmission);
        assert_eq!(out.len(), 10 + padding);
        assert_eq!(out[..10], [0, 0, 0, 0, 4, 0, 0, 0, 0x01, 0x6d]);
    }
}

#[test]
fn violations_end_the_connection() {
    let violation =
        |mut negotiation: Negotiation, bytes: &[u8]| receive(&mut negotiation, bytes).unwrap_err();
    assert_eq!(
        violation(Negotiation::new(), &[0, 0, 0, 4]),
        Violation::UnknownFlags(4)
    );
    assert_eq!(
        violation(client(FIXED), b"GET / HTTP/1.1\r\n"),
        Violation::OptionMagic(u64::from_be_bytes(*b"GET / HT"))
    );
    assert_eq!(
        violation(client(0), &option(option::GO, &query("", &[]))),
        Violation::NotFixed(option::GO)
    );
    assert_eq!(
        violation(client(FIXED), &option(option::EXPORT_NAME, b"other")),
        Violation::UnknownExport
    );
    let long = option(option::EXPORT_NAME, &[b'x'; MAX_OPTION_BYTES as usize + 1]);
    assert_eq!(violation(client(FIXED), &long), Violation::UnknownExport);
}
