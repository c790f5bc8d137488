//! How a command fails: its exit code and one line that says why.

use std::{fmt::Write as _, io, io::IsTerminal, process::ExitCode};

use bananas_client::Error;
use tonic::Code;

use crate::output::{self, escaped};

/// The result of a command.
pub(crate) type Result<T = (), E = Failure> = std::result::Result<T, E>;

/// The exit codes of a failure. `bananas --help` and docs/cli.md explain them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Failure = 1,
    Usage = 2,
    NotFound = 3,
    Precondition = 4,
    Unavailable = 5,
    Refused = 6,
    TimedOut = 7,
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    /// Empty if the reason has been printed already.
    message: String,
    hint: Option<&'static str>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// A task of this program panicked or was aborted.
    #[allow(clippy::needless_pass_by_value, reason = "for map_err")]
    pub(crate) fn of_task(error: tokio::task::JoinError) -> Self {
        Self::new(Exit::Failure, error.to_string())
    }

    /// Fails with `exit` and prints nothing more.
    pub(crate) fn silent(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    /// The exit code of the program.
    #[cfg(test)]
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// Prints the failure on stderr.
    pub(crate) fn report(self) -> ExitCode {
        if !self.message.is_empty() {
            output::print_error(format_args!("{} {}", paint_error("error:"), escaped(&self.message)));
        }
        if let Some(hint) = self.hint {
            output::print_error(format_args!(" hint: {hint}"));
        }
        ExitCode::from(self.exit as u8)
    }
}

fn paint_error(text: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) || !io::stderr().is_terminal();
    if plain {
        text.to_owned()
    } else {
        format!("\x1b[1;31m{text}\x1b[0m")
    }
}

/// The error as one line: reason, message, and what the message does not name yet.
pub(crate) fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    for violation in error.field_violations() {
        if !text.contains(&violation.field) {
            let _ = write!(text, " ({}: {})", violation.field, violation.description);
        }
    }
    if let Some(id) = error.existing_job_id().filter(|id| !text.contains(id)) {
        let _ = write!(text, " (job {id})");
    }
    if error.is_outcome_unknown() {
        text.push_str(" (the outcome is unknown)");
    }
    text
}

/// The exit code for an error of the broker.
pub(crate) fn exit_of(error: &Error) -> Exit {
    if error.is_unreachable() {
        return Exit::Unavailable;
    }
    match error.code() {
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::NotFound => Exit::NotFound,
        Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => Exit::Precondition,
        Code::Unavailable | Code::DeadlineExceeded => Exit::Unavailable,
        Code::ResourceExhausted | Code::PermissionDenied | Code::Unauthenticated => Exit::Refused,
        _ => Exit::Failure,
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let hint = error
            .is_unreachable()
            .then_some("is the broker running? `bananas-broker dev` starts one; --broker sets the address");
        Self {
            exit: exit_of(&error),
            message: describe(&error),
            hint,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // The reader of stdout has closed the pipe, for example `head`.
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(Exit::Failure);
        }
        Self::new(Exit::Failure, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn grpc_codes_map_to_exit_codes() {
        for (code, exit) in [
            (Code::InvalidArgument, 2),
            (Code::NotFound, 3),
            (Code::FailedPrecondition, 4),
            (Code::AlreadyExists, 4),
            (Code::Unavailable, 5),
            (Code::DeadlineExceeded, 5),
            (Code::ResourceExhausted, 6),
            (Code::PermissionDenied, 6),
            (Code::Internal, 1),
        ] {
            assert_eq!(
                Failure::from(Error::from(Status::new(code, "x"))).exit() as u8,
                exit,
                "{code:?}"
            );
        }
    }

    #[test]
    fn the_description_names_the_reason_and_the_field() {
        assert_eq!(
            describe(&Error::invalid_argument("priority", "above 9")),
            "INVALID_FIELD: priority: above 9"
        );
    }
}
