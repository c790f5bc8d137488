//! The types of settings: how each is read from text and shown as text.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use redis::IntoConnectionInfo;
use secrecy::{ExposeSecret, SecretString};

/// A type that a setting can have. Every source (file, environment, flag) gives text.
pub trait Value: Sized {
    /// Which values are valid, for error messages and documentation.
    const KIND: &'static str;
    /// Whether the value is never shown, and can be read from the file that `<name>_file` names.
    const SECRET: bool = false;
    /// Whether TOML writes it without quotes.
    const BARE: bool = false;
    /// Reads it. The error gives the reason without repeating the value.
    fn parse(text: &str) -> Result<Self, String>;
    /// Writes it so that [`Value::parse`] returns the same value, unless it is secret.
    fn show(&self) -> String;
}

macro_rules! number {
    ($($number:ty = $kind:literal),*) => {$(
        impl Value for $number {
            const KIND: &'static str = $kind;
            const BARE: bool = true;
            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| format!("not {}", $kind))
            }
            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
number!(
    u32 = "a whole number",
    usize = "a whole number",
    u64 = "a whole number",
    f64 = "a number"
);

impl Value for bool {
    const KIND: &'static str = "true or false";
    const BARE: bool = true;
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err("not true or false".into()),
        }
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for String {
    const KIND: &'static str = "text";
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.into())
    }
    fn show(&self) -> String {
        self.clone()
    }
}

impl Value for SocketAddr {
    const KIND: &'static str = "an IP address and a port, such as 127.0.0.1:8080 or [::]:8080";
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("not {}", Self::KIND))
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for Duration {
    const KIND: &'static str = "a duration such as 250ms, 30s, 5m or 1h30m";
    fn parse(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::ZERO);
        }
        let duration = humantime::parse_duration(text).map_err(|_| format!("not {}", Self::KIND))?;
        // Redis and the clients count in milliseconds: a finer duration could become zero, which often has another
        // meaning.
        if duration.subsec_nanos() % 1_000_000 == 0 {
            Ok(duration)
        } else {
            Err("finer than a millisecond".into())
        }
    }
    fn show(&self) -> String {
        humantime::format_duration(*self).to_string().replace(' ', "")
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// As `usize`; saturates.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

const BYTE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

impl Value for ByteSize {
    const KIND: &'static str = "a size such as 64KiB, 4MiB or a number of bytes";
    fn parse(text: &str) -> Result<Self, String> {
        let unit = BYTE_UNITS
            .into_iter()
            .find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)));
        let (digits, bytes) = unit.unwrap_or((text, 1));
        let count: Option<u64> = digits.trim_end().parse().ok();
        count
            .and_then(|count| count.checked_mul(bytes))
            .map(Self)
            .ok_or_else(|| format!("not {}", Self::KIND))
    }
    fn show(&self) -> String {
        let unit = BYTE_UNITS[..3]
            .iter()
            .find(|(_, bytes)| self.0 >= *bytes && self.0.is_multiple_of(*bytes));
        unit.map_or_else(
            || self.0.to_string(),
            |(unit, bytes)| format!("{}{unit}", self.0 / bytes),
        )
    }
}

/// A path, or none.
impl Value for Option<PathBuf> {
    const KIND: &'static str = "a path, or empty for none";
    fn parse(text: &str) -> Result<Self, String> {
        Ok((!text.is_empty()).then(|| text.into()))
    }
    fn show(&self) -> String {
        self.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
    }
}

/// A secret, or none. Never shown.
impl Value for Option<SecretString> {
    const KIND: &'static str = "a secret, or empty for none";
    const SECRET: bool = true;
    fn parse(text: &str) -> Result<Self, String> {
        Ok((!text.is_empty()).then(|| text.into()))
    }
    fn show(&self) -> String {
        if self.is_some() {
            "[redacted]".into()
        } else {
            String::new()
        }
    }
}

/// The URL of Redis. It may contain a password, which is never shown.
#[derive(Debug, Clone)]
pub struct RedisUrl(SecretString);

impl RedisUrl {
    /// Whether it uses TLS.
    pub fn is_tls(&self) -> bool {
        self.expose().starts_with("rediss://")
    }

    /// Whether it contains a password.
    pub fn has_password(&self) -> bool {
        let info = self.expose().into_connection_info();
        info.is_ok_and(|info| info.redis_settings().password().is_some())
    }

    /// The whole URL, including its password if it has one.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl Value for RedisUrl {
    const KIND: &'static str = "redis://host:port/db, rediss://… (TLS) or unix:///path";
    const SECRET: bool = true;
    fn parse(text: &str) -> Result<Self, String> {
        if text.contains("$(") || text.contains("${") {
            return Err(
                "contains a variable that was not expanded: set the password separately, as REDIS_PASSWORD".into(),
            );
        }
        let schemes = ["redis://", "rediss://", "unix://", "redis+unix://"];
        if !schemes.iter().any(|scheme| text.starts_with(scheme)) {
            return Err(format!("not {}", Self::KIND));
        }
        // An @ or # after the host is part of a password that was not encoded: the URL parser cut it there and found
        // the wrong host.
        let rest = text.split_once("://").map_or("", |(_, rest)| rest);
        let (_, after_host) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let is_cut = !rest.starts_with('/') && after_host.contains(['@', '#']);
        if is_cut || text.into_connection_info().is_err() {
            let hint = "put a password with characters that are special in a URL into REDIS_PASSWORD, \
                        or percent-encode it (/ as %2F, @ as %40, # as %23)";
            return Err(format!("not {}; {hint}", Self::KIND));
        }
        Ok(Self(text.into()))
    }
    fn show(&self) -> String {
        let url = self.expose();
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        match rest.rsplit_once('@') {
            Some((userinfo, host)) => {
                let user = userinfo.split(':').next().unwrap_or_default();
                format!("{scheme}://{user}:[redacted]@{host}")
            }
            None => without_query_secrets(url),
        }
    }
}

/// A unix URL may contain `?pass=`: nothing after the question mark is shown then.
fn without_query_secrets(url: &str) -> String {
    match url.split_once('?') {
        Some((url, query)) if query.contains("pass") => format!("{url}?[redacted]"),
        _ => url.into(),
    }
}

macro_rules! choice {
    (
        $(#[$attribute:meta])*
        $name:ident { $($(#[$variant_attribute:meta])* $variant:ident = $text:literal),* }
        $other:expr
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_attribute])* $variant),* }

        impl Value for $name {
            const KIND: &'static str = concat!("one of" $(, " ", $text)*);
            fn parse(text: &str) -> Result<Self, String> {
                let other: fn(&str) -> Option<&'static str> = $other;
                match text.to_ascii_lowercase().as_str() {
                    $($text => Ok(Self::$variant),)*
                    text => Err(other(text).map_or_else(|| format!("not {}", Self::KIND), String::from)),
                }
            }
            fn show(&self) -> String {
                match self { $(Self::$variant => $text.into()),* }
            }
        }
    };
}

choice! {
    /// How log lines are written.
    LogFormat {
        /// Text on a terminal, JSON elsewhere.
        Auto = "auto",
        /// One JSON object per line.
        Json = "json",
        /// For people.
        Text = "text"
    } |_| None
}

choice! {
    /// Where log lines go.
    LogOutput {
        /// Standard output.
        Stdout = "stdout",
        /// Standard error.
        Stderr = "stderr",
        /// The file that log.file names.
        File = "file"
    } |text| {
        (text == "elasticsearch").then_some(
            "the broker does not ship logs: write JSON to a file (log.output = \"file\") \
             and let Filebeat or Vector ship it",
        )
    }
}

/// A level, or filter directives such as `info,bananas_broker::dispatch=debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLevel(pub String);

impl Value for LogLevel {
    const KIND: &'static str =
        "error, warn, info, debug or trace, or directives such as info,bananas_broker::dispatch=debug";
    fn parse(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let named = ["error", "warn", "info", "debug", "trace", "off"].contains(&lower.as_str());
        let directives = text.contains('=') && text.parse::<tracing_subscriber::filter::Targets>().is_ok();
        if named {
            Ok(Self(lower))
        } else if directives {
            Ok(Self(text.into()))
        } else {
            Err(format!("not {}", Self::KIND))
        }
    }
    fn show(&self) -> String {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_are_shown_as_text_that_reads_the_same() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("64KiB", 65_536),
            ("4MiB", 4 << 20),
            ("1MB", 1_000_000),
            ("2 GiB", 2 << 30),
        ] {
            let size = ByteSize::parse(text).unwrap();
            assert_eq!(size.0, bytes, "{text}");
            assert_eq!(ByteSize::parse(&size.show()).unwrap(), size);
        }
        for text in ["", "MiB", "-1", "1.5MiB", "18446744073709551615GiB"] {
            assert!(ByteSize::parse(text).is_err(), "{text}");
        }
        for text in ["250ms", "30s", "5m", "1h30m", "0", "0s", "off", "24h"] {
            let duration = Duration::parse(text).unwrap();
            assert_eq!(Duration::parse(&duration.show()).unwrap(), duration, "{text}");
        }
        for text in ["", "5", "-5s", "soon", "500us", "1ms1us"] {
            assert!(Duration::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_redis_url_never_shows_its_password() {
        for (url, shown) in [
            ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
            ("redis://:hunter2@db:6379/1", "redis://:[redacted]@db:6379/1"),
            ("rediss://app:hunter2@db:6380", "rediss://app:[redacted]@db:6380"),
            (
                "unix:///run/redis.sock?pass=hunter2",
                "unix:///run/redis.sock?[redacted]",
            ),
        ] {
            let parsed = RedisUrl::parse(url).unwrap();
            assert_eq!(parsed.show(), shown);
            assert!(!format!("{parsed:?}").contains("hunter2"));
        }
    }

    #[test]
    fn an_invalid_redis_url_is_refused_with_the_remedy() {
        for url in [
            "redis://:$(REDIS_PASSWORD)@redis:6379",
            "redis://:p#ss/w@rd@host:6379",
            "redis://app:12/w@host:6379",
            "redis://app:12#w@host:6379",
            "redis://app:12?w@host:6379",
            "redis://host:6379/eleven",
            "127.0.0.1:6379",
            "http://x",
        ] {
            let error = RedisUrl::parse(url).unwrap_err();
            assert!(
                error.contains("REDIS_PASSWORD") || error.contains("redis://host"),
                "{url}: {error}"
            );
        }
    }
}
