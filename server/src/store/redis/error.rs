//! Maps errors of Redis, and of the connection to it, to a class and to what the caller gets.

use std::io::ErrorKind as Io;

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::domain::Error;

/// What kind of failure an error of Redis is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Class {
    /// The connection broke or cannot be made.
    Unreachable,
    /// No reply in time: the command may have run.
    Timeout,
    /// A replica, or a primary that may not write.
    WrongNode,
    /// It will take the command later: loading, busy, too few replicas, disk trouble, slot on the move.
    NotNow,
    /// maxmemory reached.
    OutOfMemory,
    /// The script has to be loaded again.
    NoScript,
    /// Credentials or rights.
    Denied,
    /// The server is no Redis, or has no such database: retrying does not help.
    WrongAddress,
    /// A defect here or foreign data there.
    Unexpected,
}

impl Class {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::WrongNode => "wrong_node",
            Self::NotNow => "not_now",
            Self::OutOfMemory => "out_of_memory",
            Self::NoScript => "no_script",
            Self::Denied => "denied",
            Self::WrongAddress => "wrong_address",
            Self::Unexpected => "unexpected",
        }
    }

    pub(super) const fn is_outage(self) -> bool {
        matches!(
            self,
            Self::Unreachable | Self::Timeout | Self::WrongNode | Self::NotNow | Self::Denied | Self::WrongAddress
        )
    }
}

/// A command that failed, or whose outcome is unknown.
#[derive(Clone, Debug)]
pub(in crate::store) struct Failure {
    /// Its class.
    pub(in crate::store) class: Class,
    /// The error that the caller gets.
    pub(in crate::store) error: Error,
    /// The error of Redis or of the system, for the log and for errors at the start.
    pub(in crate::store) detail: String,
}

impl Failure {
    fn new(class: Class, what: &'static str, unknown: bool, detail: &(impl ToString + ?Sized)) -> Self {
        Self {
            class,
            error: Error::StoreUnavailable { what, unknown },
            detail: detail.to_string(),
        }
    }

    /// The same failure, of a command that was not applied.
    pub(in crate::store) fn not_applied(mut self) -> Self {
        self.error = self.error.not_applied();
        self
    }

    /// The reason, in a few words.
    pub(super) fn what(&self) -> &'static str {
        match self.error {
            Error::StoreUnavailable { what, .. } => what,
            _ => "not as expected",
        }
    }
}

/// The failure of a command that was handed to a connection.
pub(in crate::store) fn failure(error: &RedisError) -> Failure {
    use ServerErrorKind as Server;
    let failure = |class, what| Failure::new(class, what, false, error);
    if error.is_timeout() {
        return Failure::new(Class::Timeout, "no answer in time", true, error);
    }
    if error.is_io_error() || error.is_connection_dropped() {
        return Failure::new(Class::Unreachable, "connection lost", true, error);
    }
    match error.kind() {
        ErrorKind::Server(Server::NoScript) => failure(Class::NoScript, "script not loaded"),
        ErrorKind::Server(Server::ReadOnly | Server::MasterDown) => failure(Class::WrongNode, "not a primary"),
        ErrorKind::Server(Server::BusyLoading) => failure(Class::NotNow, "loading"),
        ErrorKind::Server(Server::TryAgain | Server::ClusterDown | Server::Moved | Server::Ask) => {
            failure(Class::NotNow, "cluster is changing")
        }
        ErrorKind::Server(Server::NoPerm) | ErrorKind::AuthenticationFailed => failure(Class::Denied, "access denied"),
        _ => match error.code() {
            Some("OOM") => Failure {
                class: Class::OutOfMemory,
                error: Error::StoreOutOfMemory,
                detail: error.to_string(),
            },
            Some("BUSY") => failure(Class::NotNow, "busy"),
            Some("NOREPLICAS") => failure(Class::NotNow, "too few replicas"),
            Some("MISCONF") => failure(Class::NotNow, "disk trouble"),
            Some("NOAUTH" | "WRONGPASS") => failure(Class::Denied, "access denied"),
            // A right is missing in the middle of a script: the commands before it have been applied.
            _ if is_denied_in_a_script(error) => Failure::new(Class::Denied, "access denied", true, error),
            _ => Failure {
                class: Class::Unexpected,
                error: Error::Bug(error.to_string()),
                detail: error.to_string(),
            },
        },
    }
}

fn is_denied_in_a_script(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default();
    detail.contains("The user executing the script can't") || detail.contains("ACL failure in script")
}

/// The failure of a connection that could not be made: no command was sent, and the detail is a whole sentence.
pub(super) fn of_dialling(error: &RedisError) -> Failure {
    let unreachable = |what, detail: String| Failure::new(Class::Unreachable, what, false, &detail);
    if error.is_timeout() {
        let detail = "no answer within redis.connect_timeout: is the address right, and is a firewall in between?";
        return Failure::new(Class::Timeout, "no answer in time", false, detail);
    }
    if error.is_connection_refusal() {
        return unreachable("connection refused", format!("{error}: nothing listens there"));
    }
    if error.is_io_error() {
        let text = error.to_string();
        if text.contains("lookup address") || text.contains("No address found") {
            return unreachable("unknown host", format!("the host name cannot be resolved: {text}"));
        }
        let cut = [Io::BrokenPipe, Io::ConnectionReset, Io::UnexpectedEof].map(|kind| kind.to_string());
        return unreachable(
            "connection lost",
            if cut.iter().any(|cut| text.to_lowercase().contains(cut)) {
                format!(
                    "{text}: it closed the connection at once. Is its maxclients reached, or does the port want TLS \
                     (rediss://)?"
                )
            } else {
                text
            },
        );
    }
    let text = error.to_string();
    if text.contains("switch database") {
        let detail = format!(
            "redis.url: there is no such database: {}",
            error.detail().unwrap_or(&text)
        );
        return Failure::new(Class::WrongAddress, "no such database", false, &detail);
    }
    if matches!(error.kind(), ErrorKind::Parse | ErrorKind::UnexpectedReturnType) {
        let detail = "redis.url: what answers there is no Redis: is it the right port?";
        return Failure::new(Class::WrongAddress, "no Redis there", false, detail);
    }
    let failure = failure(error).not_applied();
    match failure.class {
        Class::Unexpected => Failure::new(Class::Unexpected, "cannot log in", false, &failure.detail),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_leave_the_outcome_open_say_so() {
        let unavailable = |what, unknown| Error::StoreUnavailable { what, unknown };
        let io = |kind: Io| RedisError::from(std::io::Error::from(kind));
        assert_eq!(failure(&io(Io::TimedOut)).error, unavailable("no answer in time", true));
        assert_eq!(failure(&io(Io::BrokenPipe)).error, unavailable("connection lost", true));
        let oom = redis::make_extension_error("OOM".into(), Some("command not allowed".into()));
        assert_eq!(failure(&oom).error, Error::StoreOutOfMemory);
    }

    #[test]
    fn what_fails_before_anything_is_sent_was_not_applied() {
        for kind in [
            Io::TimedOut,
            Io::ConnectionRefused,
            Io::ConnectionReset,
            Io::BrokenPipe,
            Io::Other,
        ] {
            let failure = of_dialling(&RedisError::from(std::io::Error::from(kind)));
            assert!(
                matches!(failure.error, Error::StoreUnavailable { unknown: false, .. }),
                "{kind:?}: {failure:?}"
            );
        }
    }
}
