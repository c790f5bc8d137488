//! Settlements and extensions of the API, and their results.

use bananas_proto::server as pb;

use super::convert;
use crate::{
    domain::{Error, Limits},
    session::settle::{ReadExtension, ReadSettlement, SettleResult},
    status::item_error,
    store::Extended,
};

/// Checks the settlements of one call or frame.
pub(super) fn read_settlements(settlements: Vec<pb::Settlement>, limits: &Limits) -> Vec<ReadSettlement> {
    let read =
        |(index, settlement)| convert::settlement(settlement, limits).map_err(|error| error.at("settlements", index));
    settlements.into_iter().enumerate().map(read).collect()
}

/// Checks the extensions of one call or frame.
pub(super) fn read_extensions(extensions: Vec<pb::LeaseExtension>) -> Vec<ReadExtension> {
    let read = |(index, extension)| convert::extension(extension).map_err(|error| error.at("leases", index));
    extensions.into_iter().enumerate().map(read).collect()
}

/// The result of one settlement.
pub(super) fn wire_settled(result: SettleResult) -> pb::SettleResult {
    match result.result {
        Ok(settled) => pb::SettleResult {
            error: None,
            already_settled: settled.already,
            state: settled.state.map_or(0, |state| convert::wire_state(state) as i32),
        },
        Err(error) => pb::SettleResult {
            error: Some(item_error(&error)),
            ..pb::SettleResult::default()
        },
    }
}

/// The result of one extension.
pub(super) fn wire_extended(result: Result<Extended, Error>) -> pb::ExtendResult {
    match result {
        Ok(extended) => pb::ExtendResult {
            error: None,
            remaining: Some(convert::duration(extended.remaining_ms)),
            cancel_requested: extended.cancel_reason.is_some(),
            cancel_reason: extended.cancel_reason.unwrap_or_default(),
        },
        Err(error) => pb::ExtendResult {
            error: Some(item_error(&error)),
            ..pb::ExtendResult::default()
        },
    }
}
