//! How the 64 bits of a ring's token are divided among those that share the ring.

use nvmf_io::Token;

/// The part of the ring's token space that belongs to one of its users: the upper half names the user, the lower half is
/// the user's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenSpace {
    upper: u32,
}

impl TokenSpace {
    /// The space of all tokens whose upper 32 bits are `upper`.
    pub const fn new(upper: u32) -> Self {
        TokenSpace { upper }
    }

    /// The token for a value of the user's own.
    pub const fn token(self, local: u32) -> Token {
        Token((self.upper as u64) << 32 | local as u64)
    }

    /// The upper half, which says to whom a completion goes.
    pub const fn upper_of(token: Token) -> u32 {
        (token.0 >> 32) as u32
    }

    /// The user's own half of a token.
    pub const fn local_of(token: Token) -> u32 {
        token.0 as u32
    }
}
