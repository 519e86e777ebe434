//! Capsules that are wrong in each field, against a target: each is answered with the status for it, or, where there is nothing to answer,
//! with the end of that one connection. After each, another host does I/O, and so does the next queue of the one that did wrong.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use nvme_proto::wire::fabrics::{Cattr, ConnectData, ConnectSqe, PropertySqe};
use nvme_proto::wire::property::Property;
use nvme_proto::wire::{AdminOpcode, Cntlid, IoOpcode, Opcode, Qid, SglDescriptor, Sqe, Status};
use nvmf_io::verbs::HEADER_BYTES;
use zerocopy::little_endian::{U16, U32, U64};

use crate::connects;
use crate::host::{Answer, Host, Identity, MEMORY_BYTES, RECEIVES};

/// Entries of the queues: few, to be overrun.
const ENTRIES: u16 = 8;
/// The most data that a capsule may carry over RDMA (IOCCSZ).
const IN_CAPSULE_BYTES: u32 = 4096;

/// What has to come of a capsule.
#[derive(Clone, Copy)]
enum Expect {
    Status(Status),
    Closed,
}
use Expect::{Closed, Status as Answered};

/// A host with a controller and an I/O queue.
struct Peer {
    address: SocketAddr,
    who: Identity,
    admin: Host,
    cntlid: Cntlid,
    io: Host,
    nsid: u32,
    block_bytes: u32,
}

impl Peer {
    fn new(address: SocketAddr, number: u8, subsystem: &str, nsid: u32) -> Result<Self> {
        let who = Identity::new(number, subsystem)?;
        let (mut admin, cntlid) = Host::bring_up(address, &who, 0)?;
        let block_bytes = block_bytes(&mut admin, nsid)?;
        let io = Host::io(address, &who, cntlid, Qid(1), ENTRIES, RECEIVES)?;
        Ok(Self {
            address,
            who,
            admin,
            cntlid,
            io,
            nsid,
            block_bytes,
        })
    }

    /// Another I/O queue in the place of one that was ended.
    fn again(&mut self) -> Result<()> {
        self.io = Host::io(
            self.address,
            &self.who,
            self.cntlid,
            Qid(1),
            ENTRIES,
            RECEIVES,
        )?;
        Ok(())
    }

    /// A command for the first `bytes` of the namespace.
    fn command(&self, opcode: Opcode, dptr: SglDescriptor, bytes: u32) -> Sqe {
        let mut sqe = Sqe::new(opcode);
        sqe.nsid = U32::new(self.nsid);
        sqe.dptr = dptr;
        sqe.cdw12 = U32::new(bytes / self.block_bytes - 1);
        sqe
    }

    /// A descriptor of the host's memory from its beginning.
    fn keyed(&mut self, bytes: u32) -> Result<SglDescriptor> {
        let (address, key) = self.io.remote()?;
        SglDescriptor::keyed(address, bytes, key, false).context("too long")
    }

    /// Writes a pattern and reads it back, both ways of data.
    fn works(&mut self, fill: u8) -> Result<()> {
        let bytes = IN_CAPSULE_BYTES;
        let write = self.command(IoOpcode::WRITE, SglDescriptor::in_capsule(bytes), bytes);
        self.io.succeed(write, &vec![fill; bytes as usize])?;
        let dptr = self.keyed(bytes)?;
        let read = self.command(IoOpcode::READ, dptr, bytes);
        self.io.succeed(read, &[])?;
        let mut read_back = vec![0; bytes as usize];
        self.io.memory.copy_out(0, &mut read_back);
        ensure!(read_back.iter().all(|byte| *byte == fill), "data differ");
        Ok(())
    }
}

/// The block size of a namespace, by Identify.
pub fn block_bytes(admin: &mut Host, nsid: u32) -> Result<u32> {
    let (address, key) = admin.remote()?;
    let mut identify = Sqe::new(AdminOpcode::IDENTIFY);
    identify.nsid = U32::new(nsid);
    identify.dptr = SglDescriptor::keyed(address, 4096, key, false).context("too long")?;
    admin.succeed(identify, &[])?;
    let mut data = [0; 4096];
    admin.memory.copy_out(0, &mut data);
    // FLBAS names the format, LBADS of which is the block size as a power of two.
    let format = usize::from(data[26] & 0xf);
    Ok(1 << data[128 + 4 * format + 2])
}

pub fn run(address: SocketAddr, subsystem: &str, nsid: u32) -> Result<()> {
    connects::run(address, subsystem)?;
    let mut peer = Peer::new(address, 1, subsystem, nsid)?;
    let mut bystander = Peer::new(address, 2, subsystem, nsid)?;
    let mut cases = 0;
    for case in cases_of(&mut peer)? {
        check(&mut peer, &case).with_context(|| case.what.to_owned())?;
        let fill = cases as u8 | 1;
        let others = bystander.works(fill);
        others.with_context(|| format!("another host, after {}", case.what))?;
        peer.works(!fill)
            .with_context(|| format!("after {}", case.what))?;
        cases += 1;
    }
    overrun(&mut peer).context("a queue that is overrun")?;
    bystander.works(0x77)?;
    let get = PropertySqe::get(Property::CSTS).into_sqe();
    peer.admin.succeed(get, &[]).context("the admin queue")?;
    println!("{cases} wrong capsules; other queues and hosts go on");
    Ok(())
}

struct Case {
    what: &'static str,
    sqe: Sqe,
    /// How much of the command is sent.
    length: usize,
    data: Vec<u8>,
    expect: Expect,
}

fn check(peer: &mut Peer, case: &Case) -> Result<()> {
    let mut sqe = case.sqe;
    sqe.cid = U16::new(peer.io.next_cid().0);
    peer.io.send(&sqe, case.length, &case.data)?;
    match (peer.io.answer()?, case.expect) {
        (Answer::Completed(cqe), Answered(status)) if cqe.status().is(status) => {
            ensure!(cqe.cid() == sqe.cid(), "answered as {}", cqe.cid());
            println!("{}: {status}", case.what);
            Ok(())
        }
        (Answer::Completed(cqe), Answered(status)) => {
            bail!("expected {status}, got {}", cqe.status())
        }
        (Answer::Closed, Answered(status)) => bail!("expected {status}, but it hung up"),
        (Answer::Completed(cqe), Closed) => bail!("was answered with {}", cqe.status()),
        (Answer::Closed, Closed) => {
            println!("{}: the connection ends", case.what);
            peer.again()
        }
    }
}

fn cases_of(peer: &mut Peer) -> Result<Vec<Case>> {
    let bytes = IN_CAPSULE_BYTES;
    let (address, key) = peer.io.remote()?;
    let keyed = peer.keyed(bytes)?;
    let in_capsule = SglDescriptor::in_capsule(bytes);
    let full = vec![0x11; bytes as usize];
    let write = |dptr| peer.command(IoOpcode::WRITE, dptr, bytes);
    let read = |dptr| peer.command(IoOpcode::READ, dptr, bytes);
    let kind = |dptr: SglDescriptor, kind| SglDescriptor { kind, ..dptr };
    let named = |address, length, key| SglDescriptor::keyed(address, length, key, false);
    let named = |a, l, k| named(a, l, k).context("too long");
    let mut cases = Vec::new();
    let mut case = |what, sqe, data: &[u8], expect| {
        cases.push(Case {
            what,
            sqe,
            length: HEADER_BYTES,
            data: data.to_vec(),
            expect,
        });
    };

    // The kind of descriptor.
    let wrong_kind = Answered(Status::SGL_DESCRIPTOR_TYPE_INVALID);
    case(
        "a data block with an address",
        write(kind(in_capsule, 0x00)),
        &full,
        wrong_kind,
    );
    case("a bit bucket", read(kind(keyed, 0x10)), &[], wrong_kind);
    case("a segment", read(kind(keyed, 0x20)), &[], wrong_kind);
    case("a last segment", read(kind(keyed, 0x30)), &[], wrong_kind);
    case(
        "a keyed block with an offset",
        write(kind(keyed, 0x41)),
        &full,
        wrong_kind,
    );
    case(
        "a transport block",
        write(kind(in_capsule, 0x5a)),
        &full,
        wrong_kind,
    );
    case(
        "a vendor's descriptor",
        read(kind(keyed, 0xf0)),
        &[],
        wrong_kind,
    );
    case("a read into the capsule", read(in_capsule), &[], wrong_kind);

    // Lengths and offsets.
    let length = Answered(Status::DATA_SGL_LENGTH_INVALID);
    case(
        "less data than the capsule says",
        write(in_capsule),
        &full[1..],
        length,
    );
    case(
        "no data at all in the capsule",
        write(in_capsule),
        &[],
        length,
    );
    let beyond = peer.command(
        IoOpcode::WRITE,
        SglDescriptor::in_capsule(bytes + peer.block_bytes),
        bytes + peer.block_bytes,
    );
    case("more in the capsule than IOCCSZ", beyond, &full, length);
    let offset = SglDescriptor {
        address: U64::new(1),
        ..in_capsule
    };
    case(
        "an offset into the capsule",
        write(offset),
        &full,
        Answered(Status::SGL_OFFSET_INVALID),
    );
    case(
        "memory shorter than the blocks",
        read(named(address, bytes - 1, key)?),
        &[],
        length,
    );
    case(
        "no memory for the blocks",
        read(named(address, 0, key)?),
        &[],
        length,
    );
    let longest = SglDescriptor::MAX_KEYED_LENGTH_BYTES;
    let too_long = Answered(Status::INVALID_FIELD);
    case(
        "a transfer beyond MDTS",
        read(named(address, longest, key)?),
        &[],
        too_long,
    );

    // Other fields of the command.
    let mut prp = write(keyed);
    prp.flags = 0;
    case("PRPs", prp, &[], Answered(Status::INVALID_FIELD));
    prp.flags = 0xc0;
    case(
        "a reserved way to name memory",
        prp,
        &[],
        Answered(Status::INVALID_FIELD),
    );
    let unknown = peer.command(Opcode(0x7d), keyed, bytes);
    case(
        "an unknown opcode",
        unknown,
        &[],
        Answered(Status::INVALID_OPCODE),
    );
    let mut nowhere = read(keyed);
    nowhere.nsid = U32::new(0xfffe);
    case(
        "a namespace that is not there",
        nowhere,
        &[],
        Answered(Status::INVALID_NAMESPACE),
    );
    let mut end = read(keyed);
    end.set_cdw10_11(u64::MAX - 1);
    case(
        "blocks beyond the end",
        end,
        &[],
        Answered(Status::LBA_OUT_OF_RANGE),
    );
    let connect = ConnectSqe::new(Qid(1), ENTRIES, Cattr::empty(), 0).into_sqe();
    let twice = Answered(Status::COMMAND_SEQUENCE_ERROR);
    case(
        "a second Connect",
        connect,
        &vec![0; ConnectData::SIZE],
        twice,
    );

    // What cannot be answered, or fails in the device.
    let bad_key = named(address, bytes, key ^ 0x0055_5500)?;
    case(
        "a write from memory under a wrong key",
        write(bad_key),
        &[],
        Closed,
    );
    case(
        "a read into memory under a wrong key",
        read(bad_key),
        &[],
        Closed,
    );
    let end = address + 4096 * u64::from(MEMORY_BYTES);
    case(
        "a write from memory outside of the key",
        write(named(end, bytes, key)?),
        &[],
        Closed,
    );
    case(
        "a read into memory outside of the key",
        read(named(end, bytes, key)?),
        &[],
        Closed,
    );
    let high = named(u64::MAX - 100, bytes, key)?;
    case(
        "an address at the end of all memory",
        write(high),
        &[],
        Closed,
    );
    case(
        "a message longer than any capsule",
        write(in_capsule),
        &vec![0; 8192],
        Closed,
    );
    for (what, short) in [
        ("half a command", 32),
        ("a command less a byte", 63),
        ("one byte", 1),
    ] {
        cases.push(Case {
            what,
            sqe: read(keyed),
            length: short,
            data: Vec::new(),
            expect: Closed,
        });
    }
    Ok(cases)
}

/// Sends four times as many commands as the queue has entries without waiting: they are held up by the device, and each is answered.
fn overrun(peer: &mut Peer) -> Result<()> {
    let dptr = peer.keyed(IN_CAPSULE_BYTES)?;
    let mut sqe = peer.command(IoOpcode::READ, dptr, IN_CAPSULE_BYTES);
    // As many as there are receives for answers.
    let count = 4 * ENTRIES;
    let mut open = Vec::new();
    for _ in 0..count {
        sqe.cid = U16::new(peer.io.next_cid().0);
        open.push(sqe.cid());
        peer.io.send(&sqe, HEADER_BYTES, &[])?;
    }
    let (mut answered, mut refused) = (0, 0);
    while !open.is_empty() {
        match peer.io.answer()? {
            Answer::Completed(cqe) => {
                let at = open.iter().position(|cid| *cid == cqe.cid());
                open.swap_remove(at.with_context(|| format!("{} is answered twice", cqe.cid()))?);
                ensure!(cqe.status().is_success(), "failed with {}", cqe.status());
                answered += 1;
            }
            Answer::Closed => {
                refused = open.len();
                open.clear();
                peer.again()?;
            }
        }
    }
    println!(
        "{count} commands on a queue of {ENTRIES}: {answered} answered, {refused} refused with the connection"
    );
    peer.works(0x66)
}
