//! A small macro for registers and result dwords whose bits have names.

/// Declares a transparent newtype over an unsigned integer with one getter and one `with_` setter
/// for each named field. `[hi:lo]` is a number, `[bit]` is a `bool`. Setters take values that fit;
/// bits that do not are a programming error, caught in debug builds and dropped otherwise.
macro_rules! register {
    (
        $(#[$doc:meta])*
        $name:ident: $int:ty {
            $($(#[$fdoc:meta])* $get:ident $with:ident [$($bits:tt)*];)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub $int);

        impl $name {
            $(register!(@field $int, $(#[$fdoc])* $get $with [$($bits)*]);)*
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{}({:#x})", stringify!($name), self.0)
            }
        }
    };
    (@field $int:ty, $(#[$fdoc:meta])* $get:ident $with:ident [$hi:literal : $lo:literal]) => {
        $(#[$fdoc])*
        pub const fn $get(self) -> $int {
            (self.0 >> $lo) & ((1 << ($hi - $lo + 1)) - 1)
        }

        $(#[$fdoc])*
        #[must_use]
        pub const fn $with(self, value: $int) -> Self {
            let mask: $int = (1 << ($hi - $lo + 1)) - 1;
            debug_assert!(value <= mask);
            Self(self.0 & !(mask << $lo) | (value & mask) << $lo)
        }
    };
    (@field $int:ty, $(#[$fdoc:meta])* $get:ident $with:ident [$bit:literal]) => {
        $(#[$fdoc])*
        pub const fn $get(self) -> bool {
            self.0 >> $bit & 1 == 1
        }

        $(#[$fdoc])*
        #[must_use]
        pub const fn $with(self, value: bool) -> Self {
            Self(self.0 & !(1 << $bit) | (value as $int) << $bit)
        }
    };
}

pub(crate) use register;
