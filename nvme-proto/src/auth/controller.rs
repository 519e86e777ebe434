//! The controller's side: what a queue answers until its host has authenticated.
//!
//! Every command that comes on a queue that is not authenticated goes to [`ControllerAuth::command`]; [`ControllerAuth::outcome`] says afterwards
//! whether that is over. A transaction that failed is not begun again: the host gets AUTH_Failure1 if a message of it is due, and the driver ends the
//! connection. The driver also bounds the time.
//!
//! What a host costs that has not authenticated is bounded too: one public value, computed once there is room for it, and one shared secret, since a second
//! reply is out of order.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::command::{AuthSqe, MAX_MESSAGE_BYTES};
use super::dh::{DhGroup, DhKeyPair, EXPONENT_BYTES};
use super::fault::AuthFault;
use super::hash::{HashId, MAX_HASH_BYTES, Proof};
use super::message::{Challenge, Message, Negotiate, Reply};
use super::secret::Secret;
use crate::controller::Fault;
use crate::wire::{FabricsType, Nqn, Sqe, Status};

/// The secrets for one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhChapKeys {
    /// What the host proves that it has.
    pub host: Secret,
    /// What the controller proves that it has, if the host asks.
    pub controller: Option<Secret>,
}

/// What may be agreed on, the preferred first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhChapPolicy {
    /// Hash functions.
    pub hashes: Vec<HashId>,
    /// Diffie-Hellman groups.
    pub groups: Vec<DhGroup>,
}

impl Default for DhChapPolicy {
    /// The cheapest first: secrets are random and long, so that nothing is to be gained by guessing at what was overheard. Of the groups
    /// only the affordable ones: a peer has us compute before it has authenticated, as often as it connects.
    fn default() -> Self {
        Self {
            hashes: HashId::ALL.to_vec(),
            groups: DhGroup::AFFORDABLE.to_vec(),
        }
    }
}

/// What the driver does about a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Complete it, without data.
    Complete(Status),
    /// Complete it successfully with these data, never more than its SGL describes.
    Data(Vec<u8>),
}

/// Where the queue stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The transaction goes on.
    Pending,
    /// The host is who it says: all further commands go the usual way.
    Authenticated,
    /// It failed, and the host has been told as far as it can be: end the connection.
    Failed(AuthFault),
}

/// What is due next.
#[derive(Debug)]
enum Step {
    /// AUTH_Negotiate, from the host.
    Negotiate,
    /// The challenge, fetched by the host.
    Challenge(HashId, DhGroup),
    /// The host's reply to this.
    Reply(Box<Pending>),
    /// Success1, fetched by the host.
    Success1 {
        hash: HashId,
        response: Option<Zeroizing<Vec<u8>>>,
    },
    /// The host's verdict on our response.
    Success2,
    /// AUTH_Failure1, fetched by the host.
    Failure1(AuthFault),
    /// Nothing.
    Over(Outcome),
}

/// A challenge that was sent.
#[derive(Debug)]
struct Pending {
    hash: HashId,
    challenge: Vec<u8>,
    sequence: u32,
    exchange: Option<DhKeyPair>,
    group: DhGroup,
}

/// See the module's text.
#[derive(Debug)]
pub struct ControllerAuth<K> {
    keys: K,
    policy: DhChapPolicy,
    host: Nqn,
    subsystem: Nqn,
    transaction: u16,
    step: Step,
}

impl<K: AsRef<DhChapKeys>> ControllerAuth<K> {
    /// For a queue of `host` at `subsystem`.
    pub fn new(keys: K, policy: DhChapPolicy, host: Nqn, subsystem: Nqn) -> Self {
        Self {
            keys,
            policy,
            host,
            subsystem,
            transaction: 0,
            step: Step::Negotiate,
        }
    }

    /// Where the queue stands.
    pub fn outcome(&self) -> Outcome {
        match self.step {
            Step::Over(outcome) => outcome,
            _ => Outcome::Pending,
        }
    }

    /// Whether the host has sent any message of authentication.
    pub fn has_begun(&self) -> bool {
        !matches!(self.step, Step::Negotiate)
    }

    /// Answers any command on the queue. `data` came with it, and `random` fills what it gets with bytes that nobody can guess.
    pub fn command(&mut self, sqe: &Sqe, data: &[u8], random: &mut dyn FnMut(&mut [u8])) -> Answer {
        let answer = match (sqe.is_fabrics(), sqe.fctype()) {
            (true, FabricsType::AUTHENTICATION_SEND) => self.send(sqe, data),
            (true, FabricsType::AUTHENTICATION_RECEIVE) => self.receive(sqe, random),
            _ => Err(Fault::NotAuthenticated),
        };
        answer.unwrap_or_else(|fault| Answer::Complete(fault.status()))
    }

    /// A message from the host. What is wrong with it the host learns from the next that it fetches.
    fn send(&mut self, sqe: &Sqe, data: &[u8]) -> Result<Answer, Fault> {
        let length = AuthSqe::from_sqe(sqe).checked_length()?;
        if length > MAX_MESSAGE_BYTES || data.len() != length as usize {
            return Err(Fault::MessageLength(length));
        }
        if !matches!(self.step, Step::Over(_)) {
            self.step = Message::parse(data)
                .and_then(|message| self.take(message))
                .unwrap_or_else(|fault| match fault {
                    // Whoever says so fetches no more.
                    AuthFault::HostFailed(_) => Step::Over(Outcome::Failed(fault)),
                    fault => Step::Failure1(fault),
                });
        }
        Ok(Answer::Complete(Status::SUCCESS))
    }

    fn take(&mut self, message: Message<'_>) -> Result<Step, AuthFault> {
        let out_of_order = AuthFault::OutOfOrder {
            got: message.name(),
            due: self.due(),
        };
        if !matches!(self.step, Step::Negotiate) && message.transaction() != self.transaction {
            return Err(AuthFault::WrongTransaction {
                got: message.transaction(),
                due: self.transaction,
            });
        }
        if let Message::Failure2 { explanation, .. } = message {
            return Err(AuthFault::HostFailed(explanation));
        }
        match (&self.step, message) {
            (Step::Negotiate, Message::Negotiate(negotiate)) => {
                self.transaction = negotiate.transaction;
                let (hash, group) = self.agree(&negotiate)?;
                Ok(Step::Challenge(hash, group))
            }
            (Step::Reply(pending), Message::Reply(reply)) => self.judge(pending, &reply),
            (Step::Success2, Message::Success2 { .. }) => Ok(Step::Over(Outcome::Authenticated)),
            (Step::Failure1(first), _) => Err(*first),
            _ => Err(out_of_order),
        }
    }

    fn due(&self) -> &'static str {
        match self.step {
            Step::Negotiate => "AUTH_Negotiate",
            Step::Reply(_) => "DH-HMAC-CHAP_Reply",
            Step::Success2 => "DH-HMAC-CHAP_Success2",
            Step::Challenge(..) | Step::Success1 { .. } | Step::Failure1(_) | Step::Over(_) => {
                "an Authentication Receive"
            }
        }
    }

    /// Chooses from what the host offers.
    fn agree(&self, negotiate: &Negotiate<'_>) -> Result<(HashId, DhGroup), AuthFault> {
        if negotiate.secure_channel != 0 {
            return Err(AuthFault::SecureChannel);
        }
        let (hashes, groups) = negotiate.offer.ok_or(AuthFault::NoProtocol)?;
        let policy = &self.policy;
        let hash = policy
            .hashes
            .iter()
            .find(|hash| hashes.contains(&hash.to_wire()));
        let group = policy
            .groups
            .iter()
            .find(|group| groups.contains(&group.to_wire()));
        Ok((
            *hash.ok_or(AuthFault::NoCommonHash)?,
            *group.ok_or(AuthFault::NoCommonGroup)?,
        ))
    }

    /// Judges the host's response, and responds to its challenge.
    fn judge(&self, pending: &Pending, reply: &Reply<'_>) -> Result<Step, AuthFault> {
        let hash = pending.hash;
        if reply.response.len() != hash.bytes() {
            return Err(AuthFault::HashLength {
                got: reply.response.len() as u8,
                due: hash.bytes() as u8,
            });
        }
        let value_bytes = pending.group.value_bytes();
        if reply.public.len() > value_bytes || reply.public.is_empty() != (value_bytes == 0) {
            return Err(AuthFault::DhValueLength {
                got: reply.public.len() as u16,
                due: value_bytes as u16,
            });
        }
        let shared = match &pending.exchange {
            Some(exchange) => {
                let shared = exchange.shared(reply.public);
                Some(shared.ok_or(AuthFault::WeakDhValue)?)
            }
            None => None,
        };
        let proof = Proof {
            hash,
            challenge: &pending.challenge,
            shared: shared.as_ref().map(|shared| shared.as_slice()),
            sequence: pending.sequence,
            transaction: self.transaction,
            host: &self.host,
            subsystem: &self.subsystem,
        };
        let keys = self.keys.as_ref();
        let expected = proof.of_host(&keys.host);
        if !bool::from(expected.as_slice().ct_eq(reply.response)) {
            return Err(AuthFault::WrongResponse);
        }
        let response = match reply.challenge {
            None => None,
            Some(challenge) if challenge == pending.challenge => {
                return Err(AuthFault::ReflectedChallenge);
            }
            Some(challenge) => {
                let secret = keys.controller.as_ref();
                let secret = secret.ok_or(AuthFault::NoControllerKey)?;
                let proof = Proof {
                    challenge,
                    sequence: reply.sequence,
                    ..proof
                };
                Some(proof.of_controller(secret))
            }
        };
        Ok(Step::Success1 { hash, response })
    }

    /// Gives the host the message that is due.
    fn receive(&mut self, sqe: &Sqe, random: &mut dyn FnMut(&mut [u8])) -> Result<Answer, Fault> {
        let room = AuthSqe::from_sqe(sqe).checked_length()?;
        let transaction = self.transaction;
        let (message, next) = match &self.step {
            Step::Challenge(hash, group) => {
                // Before it costs anything: a host that has no room may ask as often as it likes.
                if Challenge::bytes(*hash, *group) > room as usize {
                    return Err(Fault::MessageLength(room));
                }
                let (pending, message) = challenge(*hash, *group, transaction, random);
                (message, Step::Reply(Box::new(pending)))
            }
            Step::Success1 { hash, response } => {
                let message = Message::Success1 {
                    transaction,
                    hash_bytes: hash.bytes() as u8,
                    response: response.as_ref().map(|response| response.as_slice()),
                };
                let next = match response {
                    Some(_) => Step::Success2,
                    None => Step::Over(Outcome::Authenticated),
                };
                (message.to_bytes(), next)
            }
            Step::Over(_) => return Err(Fault::NotAuthenticated),
            other => {
                let fault = match other {
                    Step::Failure1(fault) => *fault,
                    _ => AuthFault::OutOfOrder {
                        got: "Authentication Receive",
                        due: self.due(),
                    },
                };
                let message = Message::Failure1 {
                    transaction,
                    explanation: fault.explanation(),
                };
                (message.to_bytes(), Step::Over(Outcome::Failed(fault)))
            }
        };
        // A host that has no room may fetch the message again.
        if message.len() > room as usize {
            return Err(Fault::MessageLength(room));
        }
        self.step = next;
        Ok(Answer::Data(message))
    }
}

/// A new challenge, and the message with it.
fn challenge(
    hash: HashId,
    group: DhGroup,
    transaction: u16,
    random: &mut dyn FnMut(&mut [u8]),
) -> (Pending, Vec<u8>) {
    let mut challenge = vec![0; hash.bytes().min(MAX_HASH_BYTES)];
    random(&mut challenge);
    let mut sequence = [0; 4];
    random(&mut sequence);
    // 0 stands for no sequence number.
    let sequence = u32::from_le_bytes(sequence).max(1);
    let mut exponent = Zeroizing::new([0; EXPONENT_BYTES]);
    if group != DhGroup::Null {
        random(&mut exponent[..]);
    }
    let exchange = DhKeyPair::new(group, &exponent);
    let public = exchange.as_ref().map(DhKeyPair::public).unwrap_or_default();
    let message = Message::Challenge(Challenge {
        transaction,
        hash: hash.to_wire(),
        group: group.to_wire(),
        sequence,
        challenge: &challenge,
        public: &public,
    });
    let bytes = message.to_bytes();
    let pending = Pending {
        hash,
        challenge,
        sequence,
        exchange,
        group,
    };
    (pending, bytes)
}
