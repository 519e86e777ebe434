//! Identifiers as distinct types, so that a command identifier is never passed where a namespace identifier belongs.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $int:ty, $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $int);

        impl $name {
            /// The plain number.
            pub const fn get(self) -> $int {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(", $format, ")"), self.0)
            }
        }

        impl From<$int> for $name {
            fn from(value: $int) -> Self {
                Self(value)
            }
        }
    };
}

id!(
    /// Command identifier (CID): chosen by the host, unique among the commands of a queue that are not yet completed.
    Cid, u16, "{:04x}h"
);
id!(
    /// Namespace identifier (NSID). 0 means none, [`Nsid::ALL`] means every namespace where a command allows it.
    Nsid, u32, "{}"
);
id!(
    /// Logical block address.
    Lba, u64, "{}"
);
id!(
    /// Controller identifier (CNTLID), unique within an NVM subsystem.
    Cntlid, u16, "{}"
);
id!(
    /// Queue identifier (QID): 0 is the admin queue.
    Qid, u16, "{}"
);

impl Nsid {
    /// No namespace.
    pub const NONE: Self = Self(0);
    /// The broadcast value.
    pub const ALL: Self = Self(u32::MAX);
    /// The largest value that can name one namespace. FFFFFFFEh is reserved, FFFFFFFFh is the broadcast value.
    pub const MAX: Self = Self(0xffff_fffd);

    /// Whether this can be the identifier of one namespace, neither 0 nor one of the two special values at the top.
    pub const fn is_single(self) -> bool {
        self.0 != 0 && self.0 <= Self::MAX.0
    }
}

impl Cntlid {
    /// In Connect: the host asks for any controller (dynamic controller model).
    pub const DYNAMIC: Self = Self(0xffff);
    /// In Connect: the host asks for any controller of the static controller model.
    pub const STATIC_ANY: Self = Self(0xfffe);
    /// The largest identifier that a controller may have.
    pub const MAX: Self = Self(0xffef);
}

impl Qid {
    /// The admin queue.
    pub const ADMIN: Self = Self(0);

    /// Whether this is the admin queue.
    pub const fn is_admin(self) -> bool {
        self.0 == 0
    }
}
