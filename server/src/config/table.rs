//! The description of a setting, and the macro that turns one declaration into the typed sections and the table.

use super::{value::Value, values::Values};

/// One setting, with all that reading, showing and documenting it needs.
#[derive(Debug)]
pub struct Setting {
    /// Section of the file.
    pub section: &'static str,
    /// Name within the section.
    pub name: &'static str,
    /// Its doc comment, line by line.
    pub doc: &'static [&'static str],
    /// Which values are valid, in words.
    pub kind: &'static str,
    /// The default as text; empty means none.
    pub default: &'static str,
    /// Smallest and largest value.
    pub bounds: Option<(&'static str, &'static str)>,
    /// Other environment variables that set it, besides the regular one.
    pub aliases: &'static [&'static str],
    /// Environment variable that sets only the port of the address.
    pub port_alias: Option<&'static str>,
    /// Never shown; can also be read from the file that `<name>_file` names.
    pub secret: bool,
    /// Written in TOML without quotes.
    pub bare: bool,
    pub(super) check: fn(&str) -> Result<(), String>,
}

impl Setting {
    /// `section.name`.
    pub fn key(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The regular environment variable: `BANANAS_SECTION_NAME`.
    pub fn variable(&self) -> String {
        format!("BANANAS_{}_{}", self.section, self.name).to_ascii_uppercase()
    }

    /// The doc comment as one paragraph.
    pub fn help(&self) -> String {
        self.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }
}

/// A section of the configuration and its settings.
#[derive(Debug)]
pub struct Section {
    /// Name in the file.
    pub name: &'static str,
    /// Its doc comment, line by line.
    pub doc: &'static [&'static str],
    /// Its settings.
    pub settings: &'static [Setting],
}

pub(super) fn check<V: Value>(text: &str) -> Result<(), String> {
    V::parse(text).map(drop)
}

pub(super) fn check_within<V: Value + PartialOrd>(text: &str, least: &str, most: &str) -> Result<(), String> {
    let value = V::parse(text)?;
    let inside = V::parse(least)? <= value && value <= V::parse(most)?;
    if inside {
        Ok(())
    } else {
        Err(format!("out of bounds: {least} to {most}"))
    }
}

pub(super) fn take<V: Value>(values: &Values, key: &str) -> Result<V, String> {
    V::parse(values.get(key).map_or("", |value| value.text.as_str()))
}

macro_rules! sections {
    ($(
        $(#[doc = $section_doc:literal])*
        $section:ident: $Section:ident {
            $(
                $(#[doc = $doc:literal])*
                $field:ident: $Type:ty = $default:literal
                $(in $least:literal ..= $most:literal)?
                $(, alias $alias:literal)*
                $(, port $port:literal)?
                ;
            )*
        }
    )*) => {
        $(
            $(#[doc = $section_doc])*
            #[derive(Debug, Clone)]
            pub struct $Section {
                $($(#[doc = $doc])* pub $field: $Type,)*
            }
        )*

        /// The effective configuration.
        #[derive(Debug, Clone)]
        pub struct Config {
            $($(#[doc = $section_doc])* pub $section: $Section,)*
            pub(super) sources: std::collections::BTreeMap<String, super::Source>,
            pub(super) warnings: Vec<String>,
        }

        /// Every setting.
        pub const SECTIONS: &[Section] = &[$(
            Section {
                name: stringify!($section),
                doc: &[$($section_doc),*],
                settings: &[$(
                    Setting {
                        section: stringify!($section),
                        name: stringify!($field),
                        doc: &[$($doc),*],
                        kind: <$Type as Value>::KIND,
                        default: $default,
                        bounds: sections!(@bounds $($least $most)?),
                        aliases: &[$($alias),*],
                        port_alias: sections!(@port $($port)?),
                        secret: <$Type as Value>::SECRET,
                        bare: <$Type as Value>::BARE,
                        check: sections!(@check $Type $(, $least $most)?),
                    },
                )*],
            },
        )*];

        impl Config {
            pub(super) fn from_values(values: &Values, warnings: Vec<String>) -> Result<Self, String> {
                Ok(Self {
                    $($section: $Section {
                        $($field: table::take(values, concat!(stringify!($section), ".", stringify!($field)))?,)*
                    },)*
                    sources: values.iter().map(|(key, value)| (key.clone(), value.source.clone())).collect(),
                    warnings,
                })
            }

            /// Every setting with its effective value as text, secrets redacted.
            pub fn entries(&self) -> Vec<(&'static Setting, String)> {
                let shown = [$($(Value::show(&self.$section.$field)),*),*];
                SECTIONS.iter().flat_map(|section| section.settings).zip(shown).collect()
            }
        }
    };
    (@bounds) => { None };
    (@bounds $least:literal $most:literal) => { Some(($least, $most)) };
    (@port) => { None };
    (@port $port:literal) => { Some($port) };
    (@check $Type:ty) => { table::check::<$Type> };
    (@check $Type:ty, $least:literal $most:literal) => { |text| table::check_within::<$Type>(text, $least, $most) };
}
pub(super) use sections;
