//! What carries a queue: a TCP connection, or an RDMA link. The rest of a queue knows neither.

use nvme_proto::queue::{ControllerQueue, SlotId};
use nvme_proto::tcp::ControllerConn;
use nvmf_io::SockId;

use super::receive::Rx;
use super::transmit::Tx;
use crate::rdma::Link;

/// A TCP connection.
pub(super) struct Tcp {
    pub(super) conn: ControllerConn,
    pub(super) socket: SockId,
    pub(super) rx: Rx,
    pub(super) tx: Tx,
}

/// An RDMA link.
pub(super) struct Rdma {
    pub(super) link: Link,
    /// The device did not give back what is posted in time: the queue pair goes with it.
    pub(super) abandoned: bool,
}

/// See the module's text.
#[expect(
    clippy::large_enum_variant,
    reason = "a queue is in a box already, and TCP's path is the one that another step would cost most"
)]
pub(super) enum Wire {
    Tcp(Tcp),
    Rdma(Box<Rdma>),
}

impl Wire {
    /// The protocol's queue.
    #[inline]
    pub(super) fn queue(&self) -> &ControllerQueue {
        match self {
            Wire::Tcp(tcp) => tcp.conn.queue(),
            Wire::Rdma(rdma) => rdma.link.conn().queue(),
        }
    }

    /// The protocol's queue, to change.
    #[inline]
    pub(super) fn queue_mut(&mut self) -> &mut ControllerQueue {
        match self {
            Wire::Tcp(tcp) => tcp.conn.queue_mut(),
            Wire::Rdma(rdma) => rdma.link.conn_mut().queue_mut(),
        }
    }

    /// Data are sent with a digest.
    #[inline]
    pub(super) fn sends_digests(&self) -> bool {
        match self {
            Wire::Tcp(tcp) => tcp.conn.sends_data_digests(),
            Wire::Rdma(_) => false,
        }
    }

    /// There is something to send.
    pub(super) fn wants_transmit(&self) -> bool {
        match self {
            Wire::Tcp(tcp) => tcp.conn.wants_transmit(),
            Wire::Rdma(rdma) => rdma.link.conn().wants_post(),
        }
    }

    /// Nothing that was sent is still on its way out.
    pub(super) fn is_sent(&self) -> bool {
        match self {
            Wire::Tcp(tcp) => tcp.tx.is_idle(),
            Wire::Rdma(rdma) => rdma.link.is_sent(),
        }
    }

    /// What is being sent holds data buffers that no command has any more.
    pub(super) fn holds_buffers(&self) -> bool {
        match self {
            Wire::Tcp(tcp) => tcp.tx.holds_buffers(),
            Wire::Rdma(_) => false,
        }
    }

    /// Nothing is in flight, in either direction.
    pub(super) fn is_quiet(&self) -> bool {
        match self {
            Wire::Tcp(tcp) => tcp.tx.is_idle() && tcp.rx.is_idle(),
            Wire::Rdma(rdma) => rdma.link.is_quiet() || rdma.abandoned,
        }
    }

    /// No command is taken or answered any more.
    pub(super) fn close_protocol(&mut self) {
        match self {
            Wire::Tcp(tcp) => tcp.conn.close(|_| {}),
            Wire::Rdma(rdma) => rdma.link.conn_mut().close(|_| {}),
        }
    }

    /// Forgets input that was not looked at.
    pub(super) fn discard(&mut self) {
        if let Wire::Tcp(tcp) = self {
            tcp.rx.discard();
        }
    }

    /// The command whose in-capsule data come next and have no buffer. Over RDMA they are in one already.
    pub(super) fn blocked(&self) -> Option<SlotId> {
        match self {
            Wire::Tcp(tcp) => tcp.rx.blocked(),
            Wire::Rdma(_) => None,
        }
    }

    /// The in-capsule data of `slot` come next and have no buffer.
    pub(super) fn block(&mut self, slot: SlotId) {
        if let Wire::Tcp(tcp) = self {
            tcp.rx.block(slot);
        }
    }

    pub(super) fn unblock(&mut self) {
        if let Wire::Tcp(tcp) = self {
            tcp.rx.unblock();
        }
    }

    /// The host is about to be asked for data that have a buffer.
    pub(super) fn expect(&mut self) {
        if let Wire::Tcp(tcp) = self {
            tcp.rx.expect();
        }
    }

    /// They have come, or nobody wants them any more.
    pub(super) fn no_longer_expect(&mut self) {
        if let Wire::Tcp(tcp) = self {
            tcp.rx.no_longer_expect();
        }
    }
}
