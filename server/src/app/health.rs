//! The `healthcheck` command, for containers whose image has no other gRPC client.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use bananas_log::print_error;
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

const UNREACHABLE: u8 = 3;

/// Exit code 0 if the broker serves, 1 if it reports that it does not, 3 if it is unreachable.
pub(super) async fn check(address: SocketAddr, service: String, timeout: Duration) -> ExitCode {
    match tokio::time::timeout(timeout, ask(reachable(address), service)).await {
        Ok(Ok(ServingStatus::Serving)) => ExitCode::SUCCESS,
        Ok(Ok(state)) => {
            print_error(state.as_str_name());
            ExitCode::FAILURE
        }
        Ok(Err(error)) => {
            print_error(format!("{address}: {error:#}"));
            ExitCode::from(UNREACHABLE)
        }
        Err(_) => {
            print_error(format!(
                "{address}: no answer within {}",
                humantime::format_duration(timeout)
            ));
            ExitCode::from(UNREACHABLE)
        }
    }
}

async fn ask(address: SocketAddr, service: String) -> anyhow::Result<ServingStatus> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
    match HealthClient::new(channel).check(HealthCheckRequest { service }).await {
        Ok(answer) => Ok(answer.into_inner().status()),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(ServingStatus::ServiceUnknown),
        Err(status) => Err(status.into()),
    }
}

/// The loopback address for a broker that listens on all addresses.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, v6.port()).into(),
        address => address,
    }
}
