//! Reads the counters of script calls from the metrics page of the broker.

use bytes::Bytes;
use http::Uri;
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

use super::usage::Usage;
use crate::exit::{Failure, Result};

const HISTOGRAM: &str = "bananas_script_duration_seconds_";

/// Calls and time of each script since the start of the broker, with the round trip.
pub(super) async fn scripts(url: &str) -> Result<Vec<Usage>> {
    let failed = |error: &dyn std::fmt::Display| Failure::usage(format!("--metrics-url {url}: {error}"));
    let parsed: Uri = url.parse().map_err(|error| failed(&error))?;
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let response = client.get(parsed).await.map_err(|error| failed(&error))?;
    if !response.status().is_success() {
        return Err(failed(&response.status()));
    }
    let body = response.into_body().collect().await.map_err(|error| failed(&error))?;
    Ok(parse(&String::from_utf8_lossy(&body.to_bytes())))
}

/// Parses lines such as `bananas_script_duration_seconds_sum{script="lease"} 0.25`, and those of `count`.
fn parse(metrics: &str) -> Vec<Usage> {
    let mut scripts: Vec<Usage> = Vec::new();
    for line in metrics.lines().filter_map(|line| line.strip_prefix(HISTOGRAM)) {
        let Some((what, name, value)) = sample(line) else {
            continue;
        };
        let at = scripts
            .iter()
            .position(|script| script.name == name)
            .unwrap_or_else(|| {
                scripts.push(Usage {
                    name: name.to_owned(),
                    calls: 0,
                    us: 0,
                });
                scripts.len() - 1
            });
        match what {
            "count" => scripts[at].calls = value as u64,
            "sum" => scripts[at].us = (value * 1e6) as u64,
            _ => {}
        }
    }
    scripts
}

/// The kind of a sample, its script and its value.
fn sample(line: &str) -> Option<(&str, &str, f64)> {
    let (what, rest) = line.split_once("{script=\"")?;
    let (name, value) = rest.split_once("\"} ")?;
    Some((what, name, value.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_parsed_from_the_metrics_page() {
        let metrics = "\
# TYPE bananas_script_duration_seconds histogram
bananas_script_duration_seconds_sum{script=\"lease\"} 0.25
bananas_script_duration_seconds_count{script=\"lease\"} 100
bananas_script_duration_seconds_bucket{le=\"0.00005\",script=\"lease\"} 7
bananas_open_streams 1
";
        let expected = Usage {
            name: "lease".to_owned(),
            calls: 100,
            us: 250_000,
        };
        assert_eq!(parse(metrics), [expected]);
    }
}
