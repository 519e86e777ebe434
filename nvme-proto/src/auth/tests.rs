//! Known vectors, golden bytes, and hosts of every kind.
//!
//! Vectors were computed with Python's `hmac`, `hashlib` and integers: secrets are the bytes n, n+1, … with `zlib.crc32`; a host's response is
//! `hmac.new(key, c + s + t + b"\0HostHost" + host + b"\0" + subsystem, hash)` where c is 40h, 41h, …, s 04 03 02 01h, t 06 05h, and key the
//! secret's or `hmac.new(secret, nqn + b"NVMe-over-Fabrics", hash)`. The primes' hashes are those of the tables in Linux's `crypto/dh.c` too.

use sha2::{Digest, Sha256};

use super::*;
use crate::controller::Fault;
use crate::wire::sgl::SglDescriptor;
use crate::wire::{FabricsType, Nqn, Sqe, Status};
use std::sync::Arc;

const HOST: &str = "nqn.2024-01.org.example:host";
const SUBSYSTEM: &str = "nqn.2024-01.org.example:storage";
/// Bytes 1 to 32.
const PLAIN: &str = "DHHC-1:00:AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAl7OaH:";
/// Bytes 4 to 35, transformed by SHA-256.
const BY_SHA256: &str = "DHHC-1:01:BAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAhIiOdu0CL:";
/// Bytes 2 to 49, transformed by SHA-384.
const BY_SHA384: &str =
    "DHHC-1:02:AgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIyQlJicoKSorLC0uLzAxZ5lb1w==:";
/// Bytes 3 to 66, transformed by SHA-512.
const BY_SHA512: &str = "DHHC-1:03:AwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P0BBQgHVOkA=:";

fn secret(text: &str) -> Secret {
    text.parse().unwrap()
}

fn nqn(text: &str) -> Nqn {
    text.parse().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn exponent(first: u8) -> [u8; EXPONENT_BYTES] {
    std::array::from_fn(|i| first + i as u8)
}

#[test]
fn secrets_as_nvme_cli_prints_them() {
    // nvme gen-dhchap-key --hmac=0 to 3 -n nqn.2024-01.org.example:host
    for text in [
        "DHHC-1:00:z6fQs4rspaFbDOxakIubeNgxMD87m8UKmvQ71K+I5iQ0viaM:",
        "DHHC-1:01:ffv5sOfj5XV/74yyu0iLLizkdRMl0YbIwGos1xHCOxhHxjwj:",
        "DHHC-1:02:oJPUxzmh4Bs6Y2lvGfmq2wcWID/SULG4sNRsbJRe4GWXLM+mrAtVSSL6d81QUvNFSWebEA==:",
        "DHHC-1:03:biaSr2Suj91z6dTzQ+Y2pW66CBo3ECdu3GKngk6jP4QBcOTyh+RheaZ0lpGWr3ktZvB12gEmqnsdjvPFJ3HSS8RieZ4=:",
    ] {
        let read = secret(text);
        assert_eq!(format!("{read:?}"), "Secret(hidden)");
        assert_eq!(read, secret(text));
        assert_ne!(read, secret(PLAIN));
    }
}

#[test]
fn what_is_no_secret() {
    for (text, error) in [
        ("", SecretError::Form),
        ("DHHC-2:00:AAAA:", SecretError::Form),
        ("DHHC-1:00", SecretError::Form),
        (PLAIN.trim_end_matches(':'), SecretError::Form),
        (&PLAIN.replace(":00:", ":04:"), SecretError::Transform),
        (&PLAIN.replace(":00:", ":0:"), SecretError::Transform),
        (&PLAIN.replace("AQID", "A*ID"), SecretError::Base64),
        (&PLAIN.replace("AQID", ""), SecretError::Length(29)),
        ("DHHC-1:00:AAAA:", SecretError::Length(0)),
        ("DHHC-1:00::", SecretError::Length(0)),
        (&PLAIN.replace("AQID", "AQIE"), SecretError::Checksum),
        (&format!("{PLAIN}{BY_SHA512}"), SecretError::Form),
    ] {
        assert_eq!(text.parse::<Secret>().unwrap_err(), error, "{text}");
    }
}

#[test]
fn responses_are_those_computed_elsewhere() {
    for (hash, text, of_host, of_controller) in [
        (
            HashId::Sha256,
            PLAIN,
            "1374a3487548e5d19ccaf3bfd31d9b66623e9e8da96f22738c2d4a300ef3c156",
            "0d6ef76269048b899b99679cc910105703f8a6b91f5fcc1515c14e2e1de87dc4",
        ),
        (
            HashId::Sha384,
            BY_SHA384,
            "d7693317375cc1d1c889bff2f3aa98d6b23baf5611c648d99b33ee7b68cfecf25e8b6fbddbc2f4750541f7d0ed72e1d8",
            "0a0b5af04b8babc778316232b3d3689bbe1fc9156ec33555682f42b416d341e055fc752beaaa79b78f6df5ec09d2eadb",
        ),
        (
            HashId::Sha512,
            BY_SHA512,
            "0d91a0c33202395edf170e319b83ce24120259cce5ae740bfc6737d8cd26f9ebc897bc9f29b1a84679e30be47ef13ff569cd94141c792916445d78c0fa34ff45",
            "4cac3b3816509492eacfe32f6613d4c20c02cc88f14464fe28440b0b3b95d4f690257b78b4b542df6aeb8e4199f00da14d2849bf5158133ec27d68e25d2a7b4c",
        ),
        (
            HashId::Sha256,
            BY_SHA256,
            "beefa475731eba0e2391656cc1e87a45d8e10918b8117a886bc996cf2b8ccad0",
            "4520b1eb3894a930509a3092048db443ab6a9e0d7741adf5e34b9c9952140f8a",
        ),
    ] {
        let challenge: Vec<u8> = (0x40..).take(hash.bytes()).collect();
        let proof = Proof {
            hash,
            challenge: &challenge,
            shared: None,
            sequence: 0x0102_0304,
            transaction: 0x0506,
            host: &nqn(HOST),
            subsystem: &nqn(SUBSYSTEM),
        };
        assert_eq!(hex(&proof.of_host(&secret(text))), of_host);
        assert_eq!(hex(&proof.of_controller(&secret(text))), of_controller);
    }
}

#[test]
fn a_shared_secret_augments_the_challenge() {
    let ours = DhKeyPair::new(DhGroup::Ffdhe2048, &exponent(1)).unwrap();
    let theirs = DhKeyPair::new(DhGroup::Ffdhe2048, &exponent(101)).unwrap();
    let shared = ours.shared(&theirs.public()).unwrap();
    let challenge: Vec<u8> = (0x40..0x60).collect();
    let proof = Proof {
        hash: HashId::Sha256,
        challenge: &challenge,
        shared: Some(&shared),
        sequence: 0x0102_0304,
        transaction: 0x0506,
        host: &nqn(HOST),
        subsystem: &nqn(SUBSYSTEM),
    };
    // c is hmac.new(sha256(shared), c, sha256) here.
    assert_eq!(
        hex(&proof.of_host(&secret(PLAIN))),
        "deef4a901290966919ccb0e37f240ef73bcf07fd05a448ed0038b03fd22cccd1"
    );
}

#[test]
fn groups_are_those_of_rfc_7919() {
    let digest = |bytes: &[u8]| hex(&Sha256::digest(bytes));
    for (group, prime, public, shared) in [
        (
            DhGroup::Ffdhe2048,
            "9cd3b7f336872f46c09428d1bbc19877a4d440512cda8d1c1cf0cd6e33698966",
            "1908b0773912e53f8b481d76c9723f551e22e7edcee9e562bf0cc763a9ce3958",
            "16afa060bf7bb1f461feefe325d206b4c5ac600e9463aee93584fc7c22f62c8b",
        ),
        (
            DhGroup::Ffdhe3072,
            "0eaf67db3a839156d5013494a5318a772b5697d270d721f37f092efc69ea5a17",
            "e9f81f609bb558fd1ea247cff217d7681f14a9b132cb0c93203a873ad800ca24",
            "9456b8da396868eab0e367242c459e44d708d41717ca23eaf2e7dac54c0b28d7",
        ),
        (
            DhGroup::Ffdhe4096,
            "4648414224ac881b3d0dc59b466f96d06a558278776807797ecf1f66ff397b3e",
            "a53688d3a4d42b2c60ebff8551c83d059a0415eea23c365d1e190ebaff879f1c",
            "bacc0738f6a43302a919392046038fa0b76eb08fd48249fba43632b5cd3dffb9",
        ),
        (
            DhGroup::Ffdhe6144,
            "227ac9066b3ddd9e193670cda2388fa884f65ba0cf98b742d1fe77a6687c79c7",
            "21ff5bd61a7d69b1817b7ae910dc291ab6c5f4d60aa562b30c987dda2f0f9157",
            "96b3e23c9a968833f5b4ad3489b360c83cbab2d933495a6145aed9fa4ce0578e",
        ),
        (
            DhGroup::Ffdhe8192,
            "770b14efaf6f049929c523113b3fa99a8d11dab1b18af3609590122075d19833",
            "b2f1e92b44e0a45ee7b23938bfd9be352a84ab3878fa0afae756e3c4f6999e9e",
            "1be5193e3888d0af79ddab45b55211e9aa12567062972bdec7df01ff4934043f",
        ),
    ] {
        let modulus = group.prime().unwrap();
        assert_eq!(modulus.len(), group.value_bytes());
        assert_eq!(digest(&modulus), prime, "{group}");
        let ours = DhKeyPair::new(group, &exponent(1)).unwrap();
        let theirs = DhKeyPair::new(group, &exponent(101)).unwrap();
        assert_eq!(digest(&ours.public()), public, "{group}");
        let both = ours.shared(&theirs.public()).unwrap();
        assert_eq!(digest(&both), shared, "{group}");
        assert_eq!(both, theirs.shared(&ours.public()).unwrap());
        assert!(!format!("{ours:?}").contains("exponent"));
        // 0, 1, p - 1, p, and what is longer than p.
        let mut below = modulus.clone();
        *below.last_mut().unwrap() -= 1;
        for weak in [
            &[0][..],
            &[1],
            &below,
            &modulus,
            &vec![1; modulus.len() + 1],
            &[],
        ] {
            assert!(ours.shared(weak).is_none(), "{group}");
        }
        assert!(
            ours.shared(&[2]).is_some(),
            "leading zeroes may be left out"
        );
    }
    assert!(DhKeyPair::new(DhGroup::Null, &exponent(1)).is_none());
}

#[test]
fn golden_messages() {
    let mut negotiate = vec![0, 0, 0, 0, 0x34, 0x12, 0, 1, 1, 0, 2, 1, 1, 3];
    negotiate.resize(42, 0);
    negotiate.push(1);
    negotiate.resize(72, 0);
    negotiate[42] = 5;
    let response: Vec<u8> = (0..32).collect();
    let challenge: Vec<u8> = (100..132).collect();
    let with = |start: &[u8], parts: &[&[u8]]| [start, &parts.concat()].concat();
    for (message, bytes) in [
        (
            Message::Negotiate(Negotiate {
                transaction: 0x1234,
                secure_channel: 0,
                offer: Some((&[1, 3], &[5])),
            }),
            negotiate,
        ),
        (
            Message::Challenge(Challenge {
                transaction: 0x1234,
                hash: 1,
                group: 2,
                sequence: 0x0a0b_0c0d,
                challenge: &challenge,
                public: &[7, 8, 9],
            }),
            with(
                &[
                    1, 1, 0, 0, 0x34, 0x12, 32, 0, 1, 2, 3, 0, 0x0d, 0x0c, 0x0b, 0x0a,
                ],
                &[&challenge, &[7, 8, 9]],
            ),
        ),
        (
            Message::Reply(Reply {
                transaction: 0x1234,
                sequence: 0x0a0b_0c0d,
                response: &response,
                challenge: Some(&challenge),
                public: &[7],
            }),
            with(
                &[
                    1, 2, 0, 0, 0x34, 0x12, 32, 0, 1, 0, 1, 0, 0x0d, 0x0c, 0x0b, 0x0a,
                ],
                &[&response, &challenge, &[7]],
            ),
        ),
        (
            Message::Reply(Reply {
                transaction: 1,
                sequence: 0,
                response: &response,
                challenge: None,
                public: &[],
            }),
            with(
                &[1, 2, 0, 0, 1, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                &[&response, &[0; 32]],
            ),
        ),
        (
            Message::Success1 {
                transaction: 1,
                hash_bytes: 32,
                response: Some(&response),
            },
            with(
                &[1, 3, 0, 0, 1, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0],
                &[&response],
            ),
        ),
        (
            Message::Success1 {
                transaction: 1,
                hash_bytes: 32,
                response: None,
            },
            with(
                &[1, 3, 0, 0, 1, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                &[&[0; 32]],
            ),
        ),
        (
            Message::Success2 {
                transaction: 0x1234,
            },
            vec![1, 4, 0, 0, 0x34, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        (
            Message::Failure1 {
                transaction: 2,
                explanation: Explanation::INCORRECT_PAYLOAD,
            },
            vec![0, 0xf1, 0, 0, 2, 0, 1, 6],
        ),
        (
            Message::Failure2 {
                transaction: 2,
                explanation: Explanation::FAILED,
            },
            vec![0, 0xf0, 0, 0, 2, 0, 1, 1],
        ),
    ] {
        assert_eq!(message.to_bytes(), bytes, "{}", message.name());
        assert_eq!(Message::parse(&bytes), Ok(message));
        // A response that there is not has no bytes that must be there.
        if !matches!(message, Message::Success1 { response: None, .. }) {
            for cut in 0..bytes.len() {
                assert!(
                    matches!(
                        Message::parse(&bytes[..cut]),
                        Err(AuthFault::Truncated { .. })
                    ),
                    "{} of {cut} bytes",
                    message.name()
                );
            }
        }
        assert_eq!(Message::parse(&[&bytes[..], &[0; 9]].concat()), Ok(message));
    }
}

#[test]
fn the_commands_are_as_the_standard_has_them() {
    let mut send = AuthSqe::send(72);
    send.dptr = SglDescriptor::in_capsule(72);
    let bytes = zerocopy::IntoBytes::as_bytes(&send);
    assert_eq!((bytes[0], bytes[4]), (0x7f, 0x05));
    assert_eq!(bytes[40..48], [0, 1, 1, 0xe9, 72, 0, 0, 0]);
    assert_eq!(send.into_sqe().fctype(), FabricsType::AUTHENTICATION_SEND);
    assert_eq!(send.checked_length(), Ok(72));
    let receive = AuthSqe::receive(0x1000).into_sqe();
    assert_eq!(receive.fctype(), FabricsType::AUTHENTICATION_RECEIVE);
}

/// Offers everything.
const ALL_HASHES: [u8; 3] = [1, 2, 3];
const ALL_GROUPS: [u8; 6] = [0, 1, 2, 3, 4, 5];

/// A host that can do everything right, and the controller that it talks to.
struct World {
    auth: ControllerAuth<Arc<DhChapKeys>>,
    transaction: u16,
    random: u8,
}

/// What a host has learned from a challenge.
struct Seen {
    hash: HashId,
    group: DhGroup,
    sequence: u32,
    challenge: Vec<u8>,
    public: Vec<u8>,
}

impl World {
    fn new(controller: Option<&str>, policy: DhChapPolicy) -> Self {
        let keys = Arc::new(DhChapKeys {
            host: secret(BY_SHA256),
            controller: controller.map(secret),
        });
        World {
            auth: ControllerAuth::new(keys, policy, nqn(HOST), nqn(SUBSYSTEM)),
            transaction: 7,
            random: 0,
        }
    }

    fn command(&mut self, sqe: &Sqe, data: &[u8]) -> Answer {
        let random = &mut self.random;
        self.auth.command(sqe, data, &mut |bytes| {
            for byte in bytes {
                *random = random.wrapping_add(37);
                *byte = *random;
            }
        })
    }

    fn send_bytes(&mut self, data: &[u8]) {
        let mut sqe = AuthSqe::send(data.len() as u32);
        sqe.dptr = SglDescriptor::in_capsule(data.len() as u32);
        assert_eq!(
            self.command(&sqe.into_sqe(), data),
            Answer::Complete(Status::SUCCESS)
        );
    }

    fn send(&mut self, message: Message<'_>) {
        self.send_bytes(&message.to_bytes());
    }

    fn receive_in(&mut self, room: u32) -> Answer {
        let mut sqe = AuthSqe::receive(room);
        sqe.dptr = SglDescriptor::transport(room);
        self.command(&sqe.into_sqe(), &[])
    }

    fn receive(&mut self) -> Vec<u8> {
        match self.receive_in(4096) {
            Answer::Data(data) => data,
            other => panic!("{other:?}"),
        }
    }

    fn negotiate(&mut self) {
        self.send(Message::Negotiate(Negotiate {
            transaction: self.transaction,
            secure_channel: 0,
            offer: Some((&ALL_HASHES, &ALL_GROUPS)),
        }));
    }

    fn challenge(&mut self) -> Seen {
        self.negotiate();
        let data = self.receive();
        let Ok(Message::Challenge(seen)) = Message::parse(&data) else {
            panic!("{data:?}");
        };
        assert_eq!(seen.transaction, self.transaction);
        Seen {
            hash: HashId::from_wire(seen.hash).unwrap(),
            group: DhGroup::from_wire(seen.group).unwrap(),
            sequence: seen.sequence,
            challenge: seen.challenge.to_vec(),
            public: seen.public.to_vec(),
        }
    }

    /// Replies with `text`, and with a challenge if there is one. Returns what the controller has to respond to it.
    fn reply(
        &mut self,
        seen: &Seen,
        text: &str,
        challenge: Option<&[u8]>,
        controller: &str,
    ) -> Vec<u8> {
        let pair = DhKeyPair::new(seen.group, &exponent(50));
        let public = pair.as_ref().map(DhKeyPair::public).unwrap_or_default();
        let shared = pair.map(|pair| pair.shared(&seen.public).unwrap());
        let proof = Proof {
            hash: seen.hash,
            challenge: &seen.challenge,
            shared: shared.as_ref().map(|shared| shared.as_slice()),
            sequence: seen.sequence,
            transaction: self.transaction,
            host: &nqn(HOST),
            subsystem: &nqn(SUBSYSTEM),
        };
        self.send(Message::Reply(Reply {
            transaction: self.transaction,
            sequence: 99,
            response: &proof.of_host(&secret(text)),
            challenge,
            public: &public,
        }));
        let proof = Proof {
            challenge: challenge.unwrap_or(&[]),
            sequence: 99,
            ..proof
        };
        proof.of_controller(&secret(controller)).to_vec()
    }

    /// The transaction failed for this reason, and the host is told.
    #[track_caller]
    fn failed(mut self, fault: AuthFault) {
        assert_eq!(self.auth.outcome(), Outcome::Pending);
        let data = self.receive();
        let told = Message::parse(&data).unwrap();
        let Message::Failure1 { explanation, .. } = told else {
            panic!("{told:?}");
        };
        assert_eq!(explanation, fault.explanation());
        self.is_over(fault);
    }

    /// Nothing helps any more.
    #[track_caller]
    fn is_over(&mut self, fault: AuthFault) {
        let required = Answer::Complete(Status::AUTHENTICATION_REQUIRED.dnr());
        for _ in 0..2 {
            assert_eq!(self.auth.outcome(), Outcome::Failed(fault));
            self.negotiate();
            assert_eq!(self.receive_in(4096), required);
        }
    }
}

fn only(hash: HashId, group: DhGroup) -> DhChapPolicy {
    DhChapPolicy {
        hashes: vec![hash],
        groups: vec![group],
    }
}

#[test]
fn a_host_with_the_secret_passes_with_every_hash_and_group() {
    for hash in HashId::ALL {
        for group in DhGroup::ALL {
            let mut world = World::new(None, only(hash, group));
            assert!(!world.auth.has_begun());
            let seen = world.challenge();
            assert!(world.auth.has_begun());
            assert_eq!((seen.hash, seen.group), (hash, group));
            assert_eq!(seen.challenge.len(), hash.bytes());
            assert_eq!(seen.public.len(), group.value_bytes());
            world.reply(&seen, BY_SHA256, None, PLAIN);
            assert_eq!(world.auth.outcome(), Outcome::Pending, "before Success1");
            let data = world.receive();
            let success = Message::Success1 {
                transaction: 7,
                hash_bytes: hash.bytes() as u8,
                response: None,
            };
            assert_eq!(Message::parse(&data), Ok(success));
            assert_eq!(world.auth.outcome(), Outcome::Authenticated);
        }
    }
}

#[test]
fn the_controller_proves_itself_and_waits_for_the_verdict() {
    for group in [DhGroup::Null, DhGroup::Ffdhe3072] {
        let mut world = World::new(Some(BY_SHA384), only(HashId::Sha384, group));
        let seen = world.challenge();
        let expected = world.reply(&seen, BY_SHA256, Some(&[9; 48]), BY_SHA384);
        let data = world.receive();
        let success = Message::Success1 {
            transaction: 7,
            hash_bytes: 48,
            response: Some(&expected),
        };
        assert_eq!(Message::parse(&data), Ok(success));
        assert_eq!(world.auth.outcome(), Outcome::Pending);
        world.send(Message::Success2 { transaction: 7 });
        assert_eq!(world.auth.outcome(), Outcome::Authenticated);
    }
}

#[test]
fn a_host_that_rejects_the_controller_ends_it() {
    let mut world = World::new(Some(PLAIN), DhChapPolicy::default());
    let seen = world.challenge();
    world.reply(&seen, BY_SHA256, Some(&[9; 32]), PLAIN);
    world.receive();
    world.send(Message::Failure2 {
        transaction: 7,
        explanation: Explanation::FAILED,
    });
    world.is_over(AuthFault::HostFailed(Explanation::FAILED));
}

#[test]
fn the_preferred_of_what_the_host_offers_is_chosen() {
    let mut world = World::new(None, DhChapPolicy::default());
    let seen = world.challenge();
    assert_eq!((seen.hash, seen.group), (HashId::Sha256, DhGroup::Null));
    let policy = DhChapPolicy {
        hashes: vec![HashId::Sha512, HashId::Sha384],
        groups: vec![DhGroup::Ffdhe8192, DhGroup::Ffdhe2048],
    };
    let mut world = World::new(None, policy);
    world.send(Message::Negotiate(Negotiate {
        transaction: 7,
        secure_channel: 0,
        offer: Some((&[1, 2, 77], &[0, 1, 99])),
    }));
    let data = world.receive();
    let Ok(Message::Challenge(seen)) = Message::parse(&data) else {
        panic!("{data:?}");
    };
    assert_eq!((seen.hash, seen.group), (2, 1));
}

#[test]
fn other_commands_are_refused_until_then() {
    let mut world = World::new(None, DhChapPolicy::default());
    let required = Answer::Complete(Status::AUTHENTICATION_REQUIRED.dnr());
    let property = crate::wire::fabrics::PropertySqe::get(crate::wire::property::Property::CAP);
    let read = Sqe::new(crate::wire::IoOpcode::READ);
    let disconnect = crate::wire::fabrics::disconnect_sqe();
    for sqe in [property.into_sqe(), read, disconnect] {
        assert_eq!(world.command(&sqe, &[]), required);
    }
    let seen = world.challenge();
    assert_eq!(world.command(&read, &[]), required);
    world.reply(&seen, BY_SHA256, None, PLAIN);
    assert_eq!(world.command(&read, &[]), required);
    world.receive();
    assert_eq!(world.auth.outcome(), Outcome::Authenticated);
}

#[test]
fn malformed_commands_fail_alone() {
    let mut world = World::new(None, DhChapPolicy::default());
    let good = {
        let mut sqe = AuthSqe::send(72);
        sqe.dptr = SglDescriptor::in_capsule(72);
        sqe
    };
    let refused = |world: &mut World, sqe: AuthSqe, data: &[u8], fault: Fault| {
        assert_eq!(
            world.command(&sqe.into_sqe(), data),
            Answer::Complete(fault.status()),
            "{fault}"
        );
    };
    let mut sqe = good;
    sqe.secp = 0;
    let fault = Fault::SecurityProtocol {
        secp: 0,
        spsp: [1, 1],
    };
    refused(&mut world, sqe, &[0; 72], fault);
    let mut sqe = good;
    sqe.spsp = [1, 2];
    let fault = Fault::SecurityProtocol {
        secp: 0xe9,
        spsp: [1, 2],
    };
    refused(&mut world, sqe, &[0; 72], fault);
    let mut sqe = good;
    sqe.length = 0.into();
    refused(&mut world, sqe, &[], Fault::MessageLength(0));
    let mut sqe = good;
    sqe.length = 71.into();
    let fault = Fault::DataLength {
        described: 72,
        expected: 71,
    };
    refused(&mut world, sqe, &[0; 72], fault);
    refused(&mut world, good, &[0; 71], Fault::MessageLength(72));
    for long in [MAX_MESSAGE_BYTES + 1, u32::MAX] {
        let mut sqe = AuthSqe::send(long);
        sqe.dptr = SglDescriptor::in_capsule(long);
        refused(&mut world, sqe, &[], Fault::MessageLength(long));
    }
    // None of these began anything.
    assert!(!world.auth.has_begun());
}

#[test]
fn a_challenge_without_room_costs_nothing() {
    for (group, bytes) in [(DhGroup::Null, 48), (DhGroup::Ffdhe2048, 304)] {
        let mut world = World::new(None, only(HashId::Sha256, group));
        world.negotiate();
        let status = Fault::MessageLength(bytes - 1).status();
        for _ in 0..3 {
            assert_eq!(world.receive_in(bytes - 1), Answer::Complete(status));
        }
        assert_eq!(world.random, 0, "nothing was drawn");
        match world.receive_in(bytes) {
            Answer::Data(data) => assert_eq!(data.len(), bytes as usize),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn groups_that_cost_much_are_used_only_where_they_are_configured() {
    let offer = |policy| {
        let mut world = World::new(None, policy);
        world.send(Message::Negotiate(Negotiate {
            transaction: 7,
            secure_channel: 0,
            offer: Some((&[1], &[4, 5])),
        }));
        world
    };
    offer(DhChapPolicy::default()).failed(AuthFault::NoCommonGroup);
    let mut world = offer(only(HashId::Sha256, DhGroup::Ffdhe6144));
    assert_eq!(world.receive().len(), 16 + 32 + 768);
}

/// Runs up to the challenge, sends what `bad` makes of it, and expects the fault.
#[track_caller]
fn after_challenge(fault: AuthFault, bad: impl FnOnce(&mut World, &Seen)) {
    after_challenge_of(fault, DhChapPolicy::default(), bad);
}

#[track_caller]
fn after_challenge_of(fault: AuthFault, policy: DhChapPolicy, bad: impl FnOnce(&mut World, &Seen)) {
    let mut world = World::new(None, policy);
    let seen = world.challenge();
    bad(&mut world, &seen);
    world.failed(fault);
}

#[test]
fn a_wrong_secret_is_refused() {
    for text in [PLAIN, BY_SHA384, &BY_SHA256.replace(":01:", ":00:")] {
        after_challenge(AuthFault::WrongResponse, |world, seen| {
            world.reply(seen, text, None, PLAIN);
        });
        let policy = only(HashId::Sha512, DhGroup::Ffdhe2048);
        after_challenge_of(AuthFault::WrongResponse, policy, |world, seen| {
            world.reply(seen, text, None, PLAIN);
        });
    }
}

#[test]
fn the_response_to_another_challenge_is_refused() {
    let mut first = World::new(None, DhChapPolicy::default());
    let old = first.challenge();
    after_challenge(AuthFault::WrongResponse, |world, seen| {
        let replayed = Seen {
            challenge: old.challenge.iter().map(|byte| byte ^ 1).collect(),
            public: Vec::new(),
            ..*seen
        };
        world.reply(&replayed, BY_SHA256, None, PLAIN);
    });
    after_challenge(AuthFault::WrongResponse, |world, seen| {
        let replayed = Seen {
            sequence: seen.sequence.wrapping_add(1),
            challenge: seen.challenge.clone(),
            public: Vec::new(),
            ..*seen
        };
        world.reply(&replayed, BY_SHA256, None, PLAIN);
    });
}

#[test]
fn our_challenge_sent_back_is_refused() {
    let mut world = World::new(Some(BY_SHA256), DhChapPolicy::default());
    let seen = world.challenge();
    world.reply(&seen, BY_SHA256, Some(&seen.challenge), PLAIN);
    world.failed(AuthFault::ReflectedChallenge);
}

#[test]
fn a_host_that_asks_for_a_controller_key_that_there_is_not_is_refused() {
    after_challenge(AuthFault::NoControllerKey, |world, seen| {
        world.reply(seen, BY_SHA256, Some(&[1; 32]), PLAIN);
    });
}

#[test]
fn every_message_carries_the_transaction() {
    after_challenge(
        AuthFault::WrongTransaction { got: 8, due: 7 },
        |world, seen| {
            world.transaction = 8;
            world.reply(seen, BY_SHA256, None, PLAIN);
        },
    );
}

#[test]
fn messages_come_in_their_order() {
    let out_of_order = |got, due| AuthFault::OutOfOrder { got, due };
    let mut world = World::new(None, DhChapPolicy::default());
    world.send(Message::Success2 { transaction: 7 });
    world.failed(out_of_order("DH-HMAC-CHAP_Success2", "AUTH_Negotiate"));

    // To fetch before anything was sent.
    World::new(None, DhChapPolicy::default())
        .failed(out_of_order("Authentication Receive", "AUTH_Negotiate"));

    let fault = out_of_order("DH-HMAC-CHAP_Success2", "DH-HMAC-CHAP_Reply");
    after_challenge(fault, |world, _| {
        world.send(Message::Success2 { transaction: 7 });
    });
    // A second challenge is not to be had.
    let fault = out_of_order("AUTH_Negotiate", "DH-HMAC-CHAP_Reply");
    after_challenge(fault, |world, _| world.negotiate());
    let fault = out_of_order("Authentication Receive", "DH-HMAC-CHAP_Reply");
    after_challenge(fault, |_, _| {});

    // Two messages without fetching in between; what is said is the first fault.
    let mut world = World::new(None, DhChapPolicy::default());
    world.negotiate();
    world.negotiate();
    world.send(Message::Success2 { transaction: 7 });
    world.failed(out_of_order("AUTH_Negotiate", "an Authentication Receive"));

    // What only a controller says.
    after_challenge(
        out_of_order("AUTH_Failure1", "DH-HMAC-CHAP_Reply"),
        |world, _| {
            world.send(Message::Failure1 {
                transaction: 7,
                explanation: Explanation::FAILED,
            });
        },
    );
}

#[test]
fn unknown_and_truncated_messages_are_refused() {
    after_challenge(AuthFault::UnknownMessage { kind: 1, id: 5 }, |world, _| {
        world.send_bytes(&[1, 5, 0, 0, 7, 0, 0, 0]);
    });
    after_challenge(AuthFault::UnknownMessage { kind: 2, id: 0 }, |world, _| {
        world.send_bytes(&[2, 0, 0, 0, 7, 0, 0, 0]);
    });
    for (bytes, needed) in [(1, 8), (7, 8)] {
        let mut world = World::new(None, DhChapPolicy::default());
        world.send_bytes(&vec![0; bytes]);
        world.failed(AuthFault::Truncated { bytes, needed });
    }
    // Lengths that reach beyond the message: 255 protocols, a hash of 255 bytes, a public value of 65535.
    let mut world = World::new(None, DhChapPolicy::default());
    world.send_bytes(&[0, 0, 0, 0, 7, 0, 0, 255, 1]);
    world.failed(AuthFault::Truncated {
        bytes: 9,
        needed: 8 + 255 * 64,
    });
    after_challenge(
        AuthFault::Truncated {
            bytes: 16,
            needed: 16 + 2 * 255,
        },
        |world, _| world.send_bytes(&[1, 2, 0, 0, 7, 0, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    );
    after_challenge(
        AuthFault::Truncated {
            bytes: 16,
            needed: 16 + 0xffff,
        },
        |world, _| world.send_bytes(&[1, 2, 0, 0, 7, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]),
    );
}

#[test]
fn offers_without_anything_in_common_are_refused() {
    let negotiate = |secure_channel, offer| {
        let mut world = World::new(None, DhChapPolicy::default());
        world.send(Message::Negotiate(Negotiate {
            transaction: 7,
            secure_channel,
            offer,
        }));
        world
    };
    negotiate(0, None).failed(AuthFault::NoProtocol);
    negotiate(1, Some((&[1][..], &[0][..]))).failed(AuthFault::SecureChannel);
    negotiate(0, Some((&[4], &[0]))).failed(AuthFault::NoCommonHash);
    negotiate(0, Some((&[], &[0]))).failed(AuthFault::NoCommonHash);
    negotiate(0, Some((&[1], &[6]))).failed(AuthFault::NoCommonGroup);
    // A list that would reach into the other one.
    for at in [10, 11] {
        let mut bytes = Message::Negotiate(Negotiate {
            transaction: 7,
            secure_channel: 0,
            offer: Some((&[1], &[0])),
        })
        .to_bytes();
        bytes[at] = 31;
        let mut world = World::new(None, DhChapPolicy::default());
        world.send_bytes(&bytes);
        world.failed(AuthFault::ListTooLong { entries: 31 });
    }
}

#[test]
fn responses_and_public_values_of_other_lengths_are_refused() {
    let reply = |world: &mut World, response: &[u8], public: &[u8]| {
        world.send(Message::Reply(Reply {
            transaction: 7,
            sequence: 0,
            response,
            challenge: None,
            public,
        }));
    };
    for got in [0, 31, 33, 64] {
        after_challenge(AuthFault::HashLength { got, due: 32 }, |world, _| {
            reply(world, &vec![0; got.into()], &[]);
        });
    }
    after_challenge(AuthFault::DhValueLength { got: 1, due: 0 }, |world, _| {
        reply(world, &[0; 32], &[2]);
    });
    let policy = || only(HashId::Sha256, DhGroup::Ffdhe2048);
    for got in [0, 257] {
        let fault = AuthFault::DhValueLength { got, due: 256 };
        after_challenge_of(fault, policy(), |world, _| {
            reply(world, &[0; 32], &vec![2; got.into()]);
        });
    }
    after_challenge_of(AuthFault::WeakDhValue, policy(), |world, _| {
        reply(world, &[0; 32], &[1]);
    });
}
