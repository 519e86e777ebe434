//! The beginning of a connection on the controller's side: ICReq, ICResp, Connect.
//!
//! Only Connect says how deep the queue is and whether it has flow control, so a [`ControllerConn`](super::ControllerConn) is built
//! after it. Until then commands other than Connect are refused. This is not the hot path: it allocates where that is simpler.

use super::decoder::{Event, Header, PduDecoder};
use super::encoder::Encoder;
use super::handshake::{ControllerOffer, IC_BYTES, answer, gather, termination};
use super::params::TcpParams;
use super::pdu::{CapsuleCmd, Fes, IcReq, PduType, TermReqHeader, TransferHeader};
use super::{ADMIN_IN_CAPSULE_BYTES, TX_HEADER_BYTES};
use crate::violation::Violation;
use crate::wire::fabrics::ConnectData;
use crate::wire::{Cid, Cqe, FabricsType, Sqe, Status};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// What the handshake came to.
#[derive(Debug)]
pub enum HandshakeEvent {
    /// All input is used up.
    NeedMore,
    /// Connect arrived, whole and undamaged. Judge it: either build a [`ControllerConn`](super::ControllerConn), have it
    /// [`accept_connect`](super::ControllerConn::accept_connect) and give it the rest of the input, or call
    /// [`ControllerHandshake::refuse`].
    Connect(Box<ConnectCapsule>),
    /// A command before Connect, or a Connect that breaks a rule of the transport. It is answered already.
    Refused {
        /// The command's identifier.
        cid: Cid,
        /// The rule.
        violation: Violation,
    },
    /// The host terminates the connection: close it.
    TermReq {
        /// Fatal Error Status.
        fes: Fes,
        /// Fatal Error Information.
        fei: u32,
    },
}

/// A Connect command with its data, and what ICReq and ICResp agreed on before.
#[derive(Clone, Debug)]
pub struct ConnectCapsule {
    /// What was agreed on.
    pub params: TcpParams,
    /// The command.
    pub sqe: Sqe,
    /// Its data.
    pub data: ConnectData,
}

/// See the module's text. Whatever [`ControllerHandshake::receive`] returns, send what [`ControllerHandshake::take_output`] gives
/// afterwards. The deadline for all this is the driver's: a socket that stays silent is closed.
#[derive(Debug)]
pub struct ControllerHandshake {
    offer: ControllerOffer,
    state: State,
    output: Vec<u8>,
}

#[derive(Debug)]
enum State {
    AwaitIcReq { have: u8, scratch: [u8; IC_BYTES] },
    AwaitConnect(Box<AwaitConnect>),
    Over,
}

#[derive(Debug)]
struct AwaitConnect {
    decoder: PduDecoder,
    encoder: Encoder,
    connect: ConnectCapsule,
    /// Bytes of `connect.data` that are there.
    have: usize,
    /// Why the command whose payload arrives is refused.
    refused: Option<Violation>,
}

impl ControllerHandshake {
    /// Waits for ICReq.
    pub fn new(offer: ControllerOffer) -> Self {
        Self {
            offer,
            state: State::AwaitIcReq {
                have: 0,
                scratch: [0; IC_BYTES],
            },
            output: Vec::new(),
        }
    }

    /// The next event in `input`, and how many bytes of it are done with. To be called again with the rest until
    /// [`HandshakeEvent::NeedMore`] or [`HandshakeEvent::Connect`]. After an error the connection is over.
    pub fn receive(&mut self, input: &[u8]) -> Result<(usize, HandshakeEvent), Violation> {
        let mut at = 0;
        loop {
            let (taken, event) = match &mut self.state {
                State::AwaitIcReq { have, scratch } => {
                    let result = gather(scratch, have, &input[at..], PduType::IC_REQ);
                    let result = result.and_then(|taken| {
                        if usize::from(*have) < IC_BYTES {
                            return Ok((taken, None));
                        }
                        let request: IcReq = zerocopy::transmute!(*scratch);
                        answer(&request, &self.offer).map(|agreed| (taken, Some(agreed)))
                    });
                    match result {
                        Ok((taken, None)) => (taken, Some(HandshakeEvent::NeedMore)),
                        Ok((taken, Some((response, params)))) => {
                            self.output.extend_from_slice(response.as_bytes());
                            self.state = State::AwaitConnect(Box::new(AwaitConnect::new(params)));
                            (taken, None)
                        }
                        Err(violation) => {
                            let offender = scratch[..usize::from(*have)].to_vec();
                            return Err(self.fail(violation, &offender));
                        }
                    }
                }
                State::AwaitConnect(state) => match state.receive(&input[at..], &mut self.output) {
                    Ok((taken, event)) => {
                        if matches!(event, Some(HandshakeEvent::TermReq { .. })) {
                            self.state = State::Over;
                        }
                        (taken, event)
                    }
                    Err((violation, offender)) => return Err(self.fail(violation, &offender)),
                },
                State::Over => (input.len() - at, Some(HandshakeEvent::NeedMore)),
            };
            at += taken;
            if let Some(event) = event {
                return Ok((at, event));
            }
        }
    }

    /// Answers a Connect with a failure. The host may try again on this connection.
    pub fn refuse(&mut self, cid: Cid, status: Status, result: u64) {
        if let State::AwaitConnect(state) = &self.state {
            state.respond(cid, status, result, &mut self.output);
        }
    }

    /// What is to be sent now; may be empty.
    pub fn take_output(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.output)
    }

    fn fail(&mut self, violation: Violation, offender: &[u8]) -> Violation {
        self.state = State::Over;
        self.output.extend(
            termination(PduType::C2H_TERM_REQ, &violation, offender)
                .into_iter()
                .flatten(),
        );
        violation
    }
}

/// A violation and the start of the PDU that has it.
type Fault = (Violation, Vec<u8>);

impl AwaitConnect {
    fn new(params: TcpParams) -> Self {
        Self {
            decoder: PduDecoder::for_controller(&params),
            encoder: Encoder::new(&params),
            connect: ConnectCapsule {
                params,
                sqe: Sqe::new(crate::wire::Opcode::FABRICS),
                data: ConnectData::new_zeroed(),
            },
            have: 0,
            refused: None,
        }
    }

    fn receive(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(usize, Option<HandshakeEvent>), Fault> {
        let (taken, event) = match self.decoder.next(input) {
            Ok(next) => next,
            Err(fault) => return Err((fault.violation, fault.header.to_vec())),
        };
        match event {
            Event::NeedMore => Ok((taken, Some(HandshakeEvent::NeedMore))),
            Event::Header(Header {
                pdu_type: PduType::CAPSULE_CMD,
                bytes,
                data_bytes,
            }) => {
                if let Ok(capsule) = CapsuleCmd::ref_from_bytes(bytes) {
                    self.connect.sqe = capsule.sqe;
                }
                if data_bytes > ADMIN_IN_CAPSULE_BYTES {
                    let violation = Violation::InCapsuleLimit {
                        bytes: data_bytes,
                        limit: ADMIN_IN_CAPSULE_BYTES,
                    };
                    return Err((violation, bytes.to_vec()));
                }
                self.have = 0;
                self.refused = check(&self.connect.sqe, data_bytes).err();
                // Where payload follows, the answer waits for its end.
                Ok((
                    taken,
                    if data_bytes == 0 {
                        self.finish(true, output)
                    } else {
                        None
                    },
                ))
            }
            Event::Header(Header {
                pdu_type: PduType::H2C_DATA,
                bytes,
                ..
            }) => {
                let ttag = TransferHeader::ref_from_bytes(bytes).map_or(0, |data| data.ttag.get());
                Err((Violation::TransferTag(ttag), bytes.to_vec()))
            }
            Event::Header(Header { bytes, .. }) => {
                let term = TermReqHeader::ref_from_bytes(bytes)
                    .map_or((0, 0), |t| (t.fes.get(), t.fei.get()));
                Ok((
                    taken,
                    Some(HandshakeEvent::TermReq {
                        fes: Fes(term.0),
                        fei: term.1,
                    }),
                ))
            }
            Event::Payload(range) => {
                let data = &input[range];
                if self.refused.is_none()
                    && let Some(room) = self
                        .connect
                        .data
                        .as_mut_bytes()
                        .get_mut(self.have..self.have + data.len())
                {
                    room.copy_from_slice(data);
                    self.have += data.len();
                }
                Ok((taken, None))
            }
            Event::End { digest_ok } => Ok((taken, self.finish(digest_ok, output))),
        }
    }

    /// The capsule is complete.
    fn finish(&mut self, digest_ok: bool, output: &mut Vec<u8>) -> Option<HandshakeEvent> {
        let cid = self.connect.sqe.cid();
        let refused = self.refused.take();
        let Some(violation) = refused.or((!digest_ok).then_some(Violation::DataDigest(cid))) else {
            return Some(HandshakeEvent::Connect(Box::new(self.connect.clone())));
        };
        self.respond(
            cid,
            violation.status().unwrap_or(Status::INTERNAL_ERROR),
            0,
            output,
        );
        Some(HandshakeEvent::Refused { cid, violation })
    }

    fn respond(&self, cid: Cid, status: Status, result: u64, output: &mut Vec<u8>) {
        // There is no queue yet, so there is no head either.
        let mut pdu = [0; TX_HEADER_BYTES];
        let bytes = self
            .encoder
            .response(&mut pdu, Cqe::new(cid, 0, status, result));
        output.extend_from_slice(&pdu[..usize::from(bytes)]);
    }
}

/// The first command is Connect, and its data, always the same length, are in the capsule.
fn check(sqe: &Sqe, capsule_bytes: u32) -> Result<(), Violation> {
    if !sqe.is_fabrics() || sqe.fctype() != FabricsType::CONNECT {
        return Err(Violation::ConnectExpected(sqe.cid()));
    }
    let sgl = &sqe.dptr;
    if !sgl.is_in_capsule() {
        return Err(Violation::SglType { kind: sgl.kind });
    }
    if sgl.address.get() != 0 {
        return Err(Violation::SglOffset {
            offset: sgl.address.get(),
        });
    }
    let sgl_bytes = sgl.length.get();
    if sgl_bytes != capsule_bytes || sgl_bytes as usize != ConnectData::SIZE {
        return Err(Violation::SglLength {
            sgl_bytes,
            capsule_bytes,
        });
    }
    Ok(())
}
