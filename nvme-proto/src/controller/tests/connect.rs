//! Connect: each check with the status and the parameter that it names.

use super::*;
use crate::wire::fabrics::{Cattr, ConnectData, ConnectSqe, InvalidParameter};
use crate::wire::nqn::NqnError;
use proptest::prelude::*;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

const MAX_ADMIN_ENTRIES: u32 = 128;

fn connect(qid: u16, entries: u16) -> (ConnectSqe, ConnectData) {
    let cntlid = if qid == 0 { Cntlid::DYNAMIC } else { CNTLID };
    let data = ConnectData::new(HOSTID, cntlid, &nqn(SUBNQN), &nqn(HOSTNQN));
    (
        ConnectSqe::new(Qid(qid), entries, Cattr::DISABLE_SQ_FLOW_CONTROL, 5000),
        data,
    )
}

fn parse(sqe: &ConnectSqe, data: &ConnectData) -> Result<ConnectRequest, Fault> {
    ConnectRequest::parse(&sqe.into_sqe(), data.as_bytes(), MAX_ADMIN_ENTRIES)
}

/// The status, and the parameter that the result names.
fn shown(fault: Fault) -> (Status, Option<InvalidParameter>) {
    let status = fault.status();
    assert!(
        status.is_dnr(),
        "{fault}: without DNR a host tries for ever"
    );
    let parameter = status
        .is(Status::CONNECT_INVALID_PARAMETERS)
        .then(|| InvalidParameter::from_result(fault.result()));
    (status.code(), parameter)
}

fn invalid(parameter: InvalidParameter) -> (Status, Option<InvalidParameter>) {
    (Status::CONNECT_INVALID_PARAMETERS, Some(parameter))
}

#[test]
fn good_requests() {
    let (sqe, data) = connect(0, 32);
    let request = parse(&sqe, &data).unwrap();
    assert_eq!(
        (request.qid, request.entries, request.kato_ms),
        (Qid(0), 32, 5000)
    );
    assert_eq!((request.cntlid, request.host_id), (Cntlid::DYNAMIC, HOSTID));
    assert_eq!(
        (request.subnqn, request.hostnqn),
        (nqn(SUBNQN), nqn(HOSTNQN))
    );
    assert!(request.disable_sq_flow_control);
    let (mut sqe, data) = connect(3, 2);
    sqe.cattr = 0;
    let request = parse(&sqe, &data).unwrap();
    assert_eq!(
        (request.qid, request.entries, request.cntlid),
        (Qid(3), 2, CNTLID)
    );
    assert!(!request.disable_sq_flow_control);
}

#[test]
fn only_connect_comes_first() {
    let parse = |sqe: Sqe| ConnectRequest::parse(&sqe, &[0; 1024], MAX_ADMIN_ENTRIES).unwrap_err();
    assert_eq!(
        shown(parse(Sqe::new(crate::wire::IoOpcode::READ))).0,
        Status::INVALID_OPCODE
    );
    assert_eq!(
        shown(parse(PropertySqe::get(Property::CAP).into_sqe())).0,
        Status::INVALID_OPCODE
    );
}

#[test]
fn connect_checks_its_fields() {
    let refused = |change: fn(&mut ConnectSqe, &mut ConnectData), qid| {
        let (mut sqe, mut data) = connect(qid, 32);
        change(&mut sqe, &mut data);
        shown(parse(&sqe, &data).unwrap_err())
    };
    assert_eq!(
        refused(|s, _| s.recfmt = U16::new(1), 0),
        (Status::CONNECT_INCOMPATIBLE_FORMAT, None)
    );
    assert_eq!(
        refused(|s, _| s.sqsize = U16::new(0), 0),
        invalid(InvalidParameter::SQSIZE)
    );
    assert_eq!(
        refused(|s, _| s.sqsize = U16::new(0), 1),
        invalid(InvalidParameter::SQSIZE)
    );
    assert_eq!(
        refused(|s, _| s.sqsize = U16::new(128), 0),
        invalid(InvalidParameter::SQSIZE)
    );
    assert_eq!(
        refused(|_, d| d.cntlid = U16::new(1), 0),
        invalid(InvalidParameter::CNTLID)
    );
    assert_eq!(
        refused(|_, d| d.cntlid = U16::new(0xfffe), 0),
        invalid(InvalidParameter::CNTLID)
    );
    assert_eq!(
        refused(|_, d| d.subnqn = [b'a'; 256], 0),
        invalid(InvalidParameter::SUBNQN)
    );
    assert_eq!(
        refused(|_, d| d.hostnqn = [0; 256], 0),
        invalid(InvalidParameter::HOSTNQN)
    );
    assert_eq!(
        refused(|_, d| d.hostnqn[0] = 0xff, 1),
        invalid(InvalidParameter::HOSTNQN)
    );
}

#[test]
fn data_is_exactly_1024_bytes() {
    let (sqe, data) = connect(0, 32);
    for length in [0, 1023, 1025, 8192] {
        let mut wrong = sqe;
        wrong.dptr.length = U32::new(length);
        assert_eq!(
            shown(parse(&wrong, &data).unwrap_err()).0,
            Status::DATA_SGL_LENGTH_INVALID
        );
    }
    // The transport checks the capsule against the SGL; here it would be caught too.
    let short = ConnectRequest::parse(&sqe.into_sqe(), &data.as_bytes()[..1000], MAX_ADMIN_ENTRIES);
    assert_eq!(shown(short.unwrap_err()).0, Status::DATA_SGL_LENGTH_INVALID);
}

#[test]
fn what_the_target_finds_out() {
    assert_eq!(
        shown(Fault::UnknownSubsystem),
        invalid(InvalidParameter::SUBNQN)
    );
    assert_eq!(
        shown(Fault::HostNotAllowed),
        (Status::CONNECT_INVALID_HOST, None)
    );
    assert_eq!(
        shown(Fault::UnknownController(Cntlid(9))),
        invalid(InvalidParameter::CNTLID)
    );
    assert!(
        Fault::BadSubnqn(NqnError::Empty)
            .to_string()
            .contains("SUBNQN")
    );
}

#[test]
fn io_queue_belongs_to_its_controller() {
    let mut host = Host::io();
    let (sqe, data) = connect(1, 1024);
    let request = parse(&sqe, &data).unwrap();
    let check = |host: &Host, request: &ConnectRequest| {
        host.controller
            .check_io_connect(request, &nqn(SUBNQN))
            .map_err(shown)
    };
    assert_eq!(check(&host, &request), Ok(()));
    let other = nqn("nqn.2024-01.io.example:other");
    let cases = [
        (
            ConnectRequest {
                cntlid: Cntlid(6),
                ..request.clone()
            },
            InvalidParameter::CNTLID,
        ),
        (
            ConnectRequest {
                subnqn: other.clone(),
                ..request.clone()
            },
            InvalidParameter::SUBNQN,
        ),
        (
            ConnectRequest {
                hostnqn: other,
                ..request.clone()
            },
            InvalidParameter::HOSTNQN,
        ),
        (
            ConnectRequest {
                host_id: HostId([8; 16]),
                ..request.clone()
            },
            InvalidParameter::HOSTID,
        ),
        (
            ConnectRequest {
                qid: Qid(129),
                ..request.clone()
            },
            InvalidParameter::QID,
        ),
        (
            ConnectRequest {
                qid: Qid(0),
                ..request.clone()
            },
            InvalidParameter::QID,
        ),
        (
            ConnectRequest {
                entries: 1025,
                ..request.clone()
            },
            InvalidParameter::SQSIZE,
        ),
    ];
    for (request, parameter) in cases {
        assert_eq!(
            check(&host, &request),
            Err(invalid(parameter)),
            "{request:?}"
        );
    }
    assert_eq!(
        check(
            &host,
            &ConnectRequest {
                qid: Qid(128),
                ..request.clone()
            }
        ),
        Ok(())
    );

    host.controller.io_queue_connected(Qid(1));
    assert_eq!(host.controller.io_queues().collect::<Vec<_>>(), [Qid(1)]);
    assert_eq!(
        check(&host, &request),
        Err((Status::COMMAND_SEQUENCE_ERROR, None)),
        "QID in use"
    );
    host.controller.io_queue_closed(Qid(1));
    assert_eq!(check(&host, &request), Ok(()));
}

#[test]
fn io_queues_wait_for_the_controller() {
    let (sqe, data) = connect(1, 32);
    let request = parse(&sqe, &data).unwrap();
    let mut host = Host::connected(ControllerKind::Io);
    let check = |host: &Host| {
        host.controller
            .check_io_connect(&request, &nqn(SUBNQN))
            .map_err(shown)
    };
    assert_eq!(check(&host), Err(invalid(InvalidParameter::QID)));
    host.set_cc(ENABLED);
    assert_eq!(check(&host), Ok(()));
    host.set_cc(0);
    assert_eq!(check(&host), Err(invalid(InvalidParameter::QID)));

    let discovery = Host::ready(ControllerKind::Discovery);
    assert_eq!(
        check(&discovery),
        Err(invalid(InvalidParameter::QID)),
        "no I/O queues there"
    );
}

proptest! {
    /// Whatever arrives, the answer is a request within its bounds or a permanent refusal.
    #[test]
    fn any_connect_is_answered(
        sqe in prop::collection::vec(any::<u8>(), 64),
        data in prop::collection::vec(any::<u8>(), 0..1100),
    ) {
        let mut sqe = Sqe::read_from_bytes(&sqe).unwrap();
        sqe.opcode = crate::wire::Opcode::FABRICS;
        sqe.as_mut_bytes()[4] = 1;
        match ConnectRequest::parse(&sqe, &data, MAX_ADMIN_ENTRIES) {
            Ok(request) => prop_assert!(request.entries >= 2),
            Err(fault) => { shown(fault); }
        }
    }
}
