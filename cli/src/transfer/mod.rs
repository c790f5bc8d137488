//! `bananas job export|import`: writes jobs to a file and reads them from it.

pub(crate) mod export;
pub(crate) mod import;
mod record;
