//! Fuzz input as a source of small decisions. Once it is used up, everything is zero.

use nvme_proto::queue::QueueLimits;
use nvme_proto::tcp::{Pda, TcpParams};

pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// One of `from`.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()]
    }

    /// One of `from`, if there is any.
    pub fn pick_any<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() {
            None
        } else {
            Some(self.pick(from))
        }
    }

    pub fn params(&mut self) -> TcpParams {
        let bits = self.byte();
        TcpParams {
            header_digest: bits & 1 != 0,
            data_digest: bits & 2 != 0,
            pda: Pda::from_wire(self.byte() & 31).unwrap_or_default(),
            receive_pda: Pda::from_wire(self.byte() & 31).unwrap_or_default(),
            max_h2c_data_bytes: self.pick(&[4096, 4100, 65536]),
            max_r2t: self.pick(&[1, 2, 3]),
        }
    }

    pub fn limits(&mut self) -> QueueLimits {
        let bits = self.byte();
        QueueLimits {
            depth: self.pick(&[2, 3, 8, 33]),
            in_capsule_bytes: self.pick(&[0, 512, 8192]),
            max_transfer_bytes: 32768,
            r2t_window_bytes: self.pick(&[4096, 8192, 65536]),
            flow_control: bits & 1 != 0,
            success_flag: bits & 2 != 0,
            admin: bits & 4 != 0,
        }
    }
}
