//! `bananas job import`: reads jobs from a file.

pub(crate) mod import;
mod record;
