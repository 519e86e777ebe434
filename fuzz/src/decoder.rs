//! The decoder: any bytes, cut anywhere, give the same events as in one piece, and no event claims more than there is.

use crate::input::Input;
use nvme_proto::digest::Crc;
use nvme_proto::tcp::TcpParams;
use nvme_proto::tcp::decoder::{Event, PduDecoder};
use nvme_proto::violation::Violation;

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Header(u8, Crc, u32),
    Payload(u64, Crc),
    End(bool),
    Fault(Violation, Vec<u8>),
}

struct Reader {
    decoder: PduDecoder,
    seen: Vec<Seen>,
    /// Payload that the last header announced and that has not come yet.
    due: u32,
    over: bool,
    /// Payload has to come past the decoder, that of termination requests excepted.
    only_direct: bool,
}

impl Reader {
    fn new(params: &TcpParams, host: bool) -> Self {
        let decoder = if host {
            PduDecoder::for_host(params)
        } else {
            PduDecoder::for_controller(params)
        };
        Self {
            decoder,
            seen: Vec::new(),
            due: 0,
            over: false,
            only_direct: false,
        }
    }

    fn payload(&mut self, data: &[u8]) {
        self.due = self
            .due
            .checked_sub(data.len() as u32)
            .expect("payload beyond what the header announced");
        match self.seen.last_mut() {
            Some(Seen::Payload(bytes, crc)) => {
                *bytes += data.len() as u64;
                *crc = crc.and(data);
            }
            _ => self
                .seen
                .push(Seen::Payload(data.len() as u64, Crc::of(data))),
        }
    }

    fn is_term_req(&self) -> bool {
        let last = self.seen.iter().rev().find_map(|seen| match seen {
            Seen::Header(pdu_type, ..) => Some(*pdu_type),
            _ => None,
        });
        matches!(last, Some(0x02 | 0x03))
    }

    fn feed(&mut self, mut input: &[u8], direct: bool) {
        if direct
            && !self.over
            && let Some((left, crc)) = self.decoder.pending()
        {
            let (now, rest) = input.split_at(input.len().min(left as usize));
            if !now.is_empty() {
                self.decoder
                    .payload_received(now.len() as u32, crc.map(|crc| crc.and(now)));
                self.payload(now);
            }
            input = rest;
        }
        while !self.over {
            let (taken, more) = match self.decoder.next(input) {
                Ok((taken, Event::NeedMore)) => {
                    assert_eq!(taken, input.len(), "NeedMore leaves nothing");
                    return;
                }
                Ok((taken, Event::Header(header))) => {
                    assert_eq!(self.due, 0, "a header inside payload");
                    assert_eq!(
                        header.bytes.len(),
                        usize::from(header.pdu_type.header_bytes())
                    );
                    self.due = header.data_bytes;
                    (
                        taken,
                        Some(Seen::Header(
                            header.pdu_type.0,
                            Crc::of(header.bytes),
                            header.data_bytes,
                        )),
                    )
                }
                Ok((taken, Event::Payload(range))) => {
                    assert!(!range.is_empty() && range.end == taken);
                    assert!(
                        !self.only_direct || self.is_term_req(),
                        "payload where none was to be"
                    );
                    let data = &input[range];
                    self.payload(data);
                    (taken, None)
                }
                Ok((taken, Event::End { digest_ok })) => {
                    assert_eq!(self.due, 0, "the end before all payload came");
                    (taken, Some(Seen::End(digest_ok)))
                }
                Err(fault) => {
                    self.over = true;
                    assert!(fault.header.len() <= 72);
                    (0, Some(Seen::Fault(fault.violation, fault.header.to_vec())))
                }
            };
            self.seen.extend(more);
            input = &input[taken..];
        }
    }
}

/// Params, then a plan of cuts, then the stream.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let host = input.byte() & 1 != 0;
    let params = input.params();
    let plan: Vec<_> = (0..4).map(|_| input.byte()).collect();
    let stream = input.bytes(usize::MAX);

    let mut whole = Reader::new(&params, host);
    whole.feed(stream, false);
    let mut pieces = Reader::new(&params, host);
    let (mut rest, mut turn) = (stream, 0);
    while !rest.is_empty() {
        let cut = plan[turn % plan.len()];
        let (piece, after) = rest.split_at(rest.len().min(usize::from(cut >> 1).max(1)));
        pieces.feed(piece, cut & 1 != 0);
        rest = after;
        turn += 1;
    }
    assert_eq!(whole.seen, pieces.seen);

    // Step by step, as far as the decoder says what comes next, and in parts of steps: all payload is received past it.
    let mut steps = Reader::new(&params, host);
    steps.only_direct = true;
    let (mut rest, mut turn) = (stream, 0);
    while !rest.is_empty() && !steps.over {
        let ahead = steps.decoder.ahead();
        let step = (ahead.payload_bytes as usize).saturating_add(ahead.rest_bytes as usize);
        assert!((1..=255).contains(&ahead.rest_bytes));
        let cut = usize::from(plan[turn % plan.len()] >> 1).max(1);
        let (piece, after) = rest.split_at(rest.len().min(step).min(cut));
        assert_eq!(steps.decoder.pending().is_some(), ahead.payload_bytes > 0);
        steps.feed(piece, true);
        rest = after;
        turn += 1;
    }
    assert_eq!(whole.seen, steps.seen);
}
