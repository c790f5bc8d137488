//! `bananas info`: shows a broker.

use std::time::Duration;

use bananas_client::{Client, proto::GetBrokerInfoResponse};
use serde_json::{Value, json};

use crate::{
    exit::Result,
    output::{Output, age, rows, since, timestamp},
};

pub(crate) async fn run(client: &Client, output: Output) -> Result {
    let info = client.broker_info().await?;
    output.value(|| as_json(&info), || describe(&info))?;
    Ok(())
}

fn seconds(value: Option<prost_types::Duration>) -> Option<f64> {
    Duration::try_from(value?).ok().map(|value| value.as_secs_f64())
}

fn as_json(info: &GetBrokerInfoResponse) -> Value {
    let limits = info.limits.unwrap_or_default();
    let redis = info.redis.clone().unwrap_or_default();
    json!({
        "broker_id": info.broker_id,
        "version": info.version,
        "start_time": info.start_time.as_ref().map(timestamp),
        "streams": info.streams,
        "redis": {
            "server": redis.server_name,
            "version": redis.version,
            "address": redis.address,
            "role": redis.role,
            "connected": redis.connected,
            "eviction_policy": redis.eviction_policy,
            "append_fsync": redis.append_fsync,
        },
        "limits": {
            "max_payload_bytes": limits.max_payload_bytes,
            "max_batch_items": limits.max_batch_items,
            "max_batch_bytes": limits.max_batch_bytes,
            "max_window_jobs": limits.max_window_jobs,
            "max_page_size": limits.max_page_size,
            "max_wait_seconds": seconds(limits.max_wait),
            "min_lease_seconds": seconds(limits.min_lease),
            "max_lease_seconds": seconds(limits.max_lease),
            "dedupe_window_seconds": seconds(limits.dedupe_window),
        },
    })
}

fn describe(info: &GetBrokerInfoResponse) -> String {
    let limits = info.limits.unwrap_or_default();
    let redis = info.redis.clone().unwrap_or_default();
    let connected = if redis.connected { "connected" } else { "NOT CONNECTED" };
    let lines = [
        ("broker", format!("{} version {}", info.broker_id, info.version)),
        ("up", age(info.start_time.as_ref())),
        ("streams", info.streams.to_string()),
        (
            "redis",
            format!(
                "{} {}version {}, {}, {connected}",
                redis.address,
                // A broker before 0.2 does not report the server program.
                if redis.server_name.is_empty() {
                    String::new()
                } else {
                    format!("{} ", redis.server_name)
                },
                redis.version,
                redis.role
            ),
        ),
        (
            "",
            format!(
                "maxmemory-policy {}, appendfsync {}",
                redis.eviction_policy, redis.append_fsync
            ),
        ),
        ("limits", format!("payload {} bytes", limits.max_payload_bytes)),
        (
            "",
            format!(
                "batch {} items, {} bytes",
                limits.max_batch_items, limits.max_batch_bytes
            ),
        ),
        (
            "",
            format!(
                "window {} jobs, page {} entries",
                limits.max_window_jobs, limits.max_page_size
            ),
        ),
        (
            "",
            format!(
                "lease {} to {}",
                since(limits.min_lease.as_ref()),
                since(limits.max_lease.as_ref())
            ),
        ),
        ("", format!("wait {}", since(limits.max_wait.as_ref()))),
        (
            "",
            format!(
                "the id of a settled job is remembered for {}",
                since(limits.dedupe_window.as_ref())
            ),
        ),
    ];
    rows(10, lines)
}
