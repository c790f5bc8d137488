//! Reads the memory and the command counters of Redis with INFO. It uses no client library, because nothing else in
//! this program talks to Redis.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
};

use super::usage::Usage;
use crate::exit::{Failure, Result};

/// Bytes of memory that Redis uses.
pub(super) fn used_memory(url: &str) -> Result<u64> {
    let info = info(url, "memory")?;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
    used.and_then(|used| used.trim().parse().ok())
        .ok_or_else(|| Failure::usage("--redis-url: INFO does not contain used_memory"))
}

/// Calls and time of each command since the start of Redis.
pub(super) fn commands(url: &str) -> Result<Vec<Usage>> {
    Ok(info(url, "commandstats")?.lines().filter_map(command).collect())
}

/// A line such as `cmdstat_client|setinfo:calls=2,usec=1,usec_per_call=0.50,...`.
fn command(line: &str) -> Option<Usage> {
    let (name, fields) = line.trim().strip_prefix("cmdstat_")?.split_once(':')?;
    let field = |name: &str| {
        let value = fields.split(',').find_map(|field| field.strip_prefix(name))?;
        value.strip_prefix('=')?.parse().ok()
    };
    Some(Usage {
        name: name.to_owned(),
        calls: field("calls")?,
        us: field("usec")?,
    })
}

fn info(url: &str, section: &str) -> Result<String> {
    let failed = |error: io::Error| Failure::usage(format!("--redis-url {}: {error}", without_password(url)));
    request(url, section).map_err(failed)
}

fn request(url: &str, section: &str) -> io::Result<String> {
    let (password, address) = parts(url);
    let mut redis: Box<dyn ReadWrite> = if address.starts_with('/') {
        Box::new(UnixStream::connect(address)?)
    } else {
        Box::new(TcpStream::connect(address)?)
    };
    if let Some(password) = password {
        write!(redis, "*2\r\n$4\r\nAUTH\r\n${}\r\n{password}\r\n", password.len())?;
    }
    write!(redis, "INFO {section}\r\n")?;
    let mut reply = BufReader::new(redis);
    if password.is_some() {
        line(&mut reply)?;
    }
    let length = line(&mut reply)?
        .trim_start_matches('$')
        .parse()
        .map_err(io::Error::other)?;
    let mut info = String::new();
    reply.take(length).read_to_string(&mut info)?;
    Ok(info)
}

/// One line of the reply. An error reply is an error.
fn line(reply: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reply.read_line(&mut line)?;
    match line.strip_prefix('-') {
        Some(error) => Err(io::Error::other(error.trim().to_owned())),
        None => Ok(line.trim().to_owned()),
    }
}

/// The password and the address: `host:port`, or the path of a socket.
fn parts(url: &str) -> (Option<&str>, &str) {
    let rest = url
        .split_once("://")
        .map_or_else(|| url.trim_start_matches("unix:"), |(_, rest)| rest);
    let (login, address) = rest
        .rsplit_once('@')
        .map_or((None, rest), |(login, address)| (Some(login), address));
    let password = login.map(|login| login.split_once(':').map_or(login, |(_, password)| password));
    if address.starts_with('/') {
        return (password, address);
    }
    // A database number may follow. INFO covers all databases.
    (password, address.split('/').next().unwrap_or_default())
}

fn without_password(url: &str) -> &str {
    parts(url).1
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed_as_in_the_broker() {
        for (url, password, address) in [
            ("redis://localhost:6379/0", None, "localhost:6379"),
            ("redis://:secret@10.0.0.1:6379", Some("secret"), "10.0.0.1:6379"),
            ("unix:///run/redis.sock", None, "/run/redis.sock"),
            ("unix:/run/redis.sock", None, "/run/redis.sock"),
            ("localhost:6379", None, "localhost:6379"),
        ] {
            assert_eq!(parts(url), (password, address), "{url}");
        }
    }

    #[test]
    fn commands_are_counted() {
        let line = "cmdstat_client|setinfo:calls=2,usec=31,usec_per_call=15.50,rejected_calls=0,failed_calls=0\r";
        let expected = Usage {
            name: "client|setinfo".to_owned(),
            calls: 2,
            us: 31,
        };
        assert_eq!(command(line), Some(expected));
        assert_eq!(command("# Commandstats"), None);
    }

    #[test]
    fn error_replies_are_errors() {
        let refused = line(&mut &b"-NOAUTH Authentication required.\r\n"[..]).unwrap_err();
        assert_eq!(refused.to_string(), "NOAUTH Authentication required.");
    }
}
