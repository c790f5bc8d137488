//! One attempt at one job: the handler, what it knows about its job, and the slot in which it runs.

pub(crate) mod context;
pub(crate) mod event;
pub(crate) mod handler;
pub(crate) mod panics;
pub(crate) mod runner;
pub(crate) mod slots;
