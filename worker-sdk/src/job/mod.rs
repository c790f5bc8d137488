//! A job as the modules of this library pass it to each other: leased, finished by its handler, settled.

pub(crate) mod finished;
pub(crate) mod lease;
pub(crate) mod outcome;
pub(crate) mod priority;
