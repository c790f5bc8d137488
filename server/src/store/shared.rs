//! Constants that Rust and the scripts share. Each is written once and used by name on both sides: `part::LEASES` is
//! `KEY_LEASES` in Lua.

/// How a value is written in Lua.
pub(in crate::store) trait InLua {
    /// As a Lua literal.
    fn in_lua(&self) -> String;
}

impl InLua for &str {
    fn in_lua(&self) -> String {
        format!("'{self}'")
    }
}

impl InLua for bool {
    fn in_lua(&self) -> String {
        self.to_string()
    }
}

/// A first byte to compare texts with: a comparison costs a fourth of taking a byte out of a text.
pub(in crate::store) struct FirstByte(pub(in crate::store) u8);

impl InLua for FirstByte {
    fn in_lua(&self) -> String {
        format!("'\\{}'", self.0)
    }
}

macro_rules! numbers_in_lua {
    ($($type:ty),*) => {
        $(impl InLua for $type {
            fn in_lua(&self) -> String {
                // In brackets, so that a minus before it does not make a comment.
                if *self < <$type>::default() { format!("({self})") } else { self.to_string() }
            }
        })*
    };
}

numbers_in_lua!(u8, u16, u32, u64, usize, i64);

/// A module of constants whose names in Lua begin with a prefix.
macro_rules! shared {
    (
        $(#[$doc:meta])*
        mod $module:ident as $prefix:literal {
            $($(#[$item_doc:meta])* $name:ident: $type:ty = $value:expr;)*
        }
    ) => {
        $(#[$doc])*
        pub(crate) mod $module {
            $($(#[$item_doc])* pub(crate) const $name: $type = $value;)*

            /// Each name in Lua, and its literal there.
            pub(in crate::store) fn in_lua() -> Vec<(&'static str, String)> {
                use $crate::store::shared::InLua as _;
                vec![$((concat!($prefix, stringify!($name)), $name.in_lua())),*]
            }
        }
    };
}

pub(in crate::store) use shared;
