//! Addresses of brokers: one or several `host:port`, where a name may resolve to many.

use std::{fmt, str::FromStr};

use crate::error::Error;

/// A host and a port. A name is resolved again for every connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// The name or IP address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The addresses of one or more brokers, all equal.
///
/// Parsed from `http://host:port`. The scheme is optional, the port defaults to 8080, and several addresses are
/// separated by commas. An empty text is the default, `http://127.0.0.1:8080`, as for an environment variable that is
/// set to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses(Vec<Address>);

impl Addresses {
    /// The default port of a broker.
    pub const DEFAULT_PORT: u16 = 8080;

    /// In the order given; at least one.
    pub fn as_slice(&self) -> &[Address] {
        &self.0
    }
}

impl Default for Addresses {
    fn default() -> Self {
        Self(vec![Address {
            host: "127.0.0.1".to_owned(),
            port: Self::DEFAULT_PORT,
        }])
    }
}

impl FromStr for Addresses {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let addresses = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(parse)
            .collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() {
            return Err(refused(text, "no address in it"));
        }
        Ok(Self(addresses))
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, address) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "http://{address}")?;
        }
        Ok(())
    }
}

fn parse(text: &str) -> Result<Address, Error> {
    let rest = match text.split_once("://") {
        Some(("http", rest)) => rest,
        Some((scheme, _)) => {
            return Err(refused(
                text,
                &format!("the scheme {scheme} is not supported, only http"),
            ));
        }
        None => text,
    };
    let authority: http::uri::Authority = rest
        .trim_end_matches('/')
        .parse()
        .map_err(|_| refused(text, "not of the form http://host:port"))?;
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    if host.is_empty() || authority.as_str().contains('@') {
        return Err(refused(text, "not of the form http://host:port"));
    }
    let port = match authority.port() {
        Some(port) => port.as_u16(),
        None if authority.as_str() == authority.host() => Addresses::DEFAULT_PORT,
        None => return Err(refused(text, "the port is not a number up to 65535")),
    };
    Ok(Address { host, port })
}

fn refused(text: &str, why: &str) -> Error {
    Error::invalid_argument("address", format!("{text:?}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown() {
        for (text, shown) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("broker", "http://broker:8080"),
            ("http://a:1/, b:2,", "http://a:1,http://b:2"),
            ("[::1]:9", "http://[::1]:9"),
            (" ", "http://127.0.0.1:8080"),
        ] {
            assert_eq!(text.parse::<Addresses>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn bad_addresses_are_refused() {
        for text in [
            ",",
            "https://a:1",
            "redis://a",
            "http://",
            "a:99999",
            "a:x",
            "user@host:1",
            "http://a b",
        ] {
            assert!(text.parse::<Addresses>().is_err(), "{text:?}");
        }
    }
}
