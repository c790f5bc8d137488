//! The connection to a broker: the options that all commands share.

use std::time::Duration;

use bananas_client::{Client, ClientBuilder};
use clap::Args;

/// The address of the broker and the time limit of a call.
#[derive(Debug, Clone, Args)]
pub(crate) struct Connection {
    /// Address of the broker: http://host:port; several are separated by commas
    #[arg(
        long,
        global = true,
        env = "BANANAS_BROKER",
        hide_env_values = true,
        default_value = "http://127.0.0.1:8080",
        value_name = "ADDRESS",
        help_heading = "Global options"
    )]
    pub broker: String,
    /// How long one call may take, including its retries
    #[arg(
        long,
        global = true,
        default_value = "10s",
        value_parser = time_limit,
        value_name = "DURATION",
        help_heading = "Global options"
    )]
    pub timeout: Duration,
}

impl Connection {
    pub(crate) fn builder(&self) -> ClientBuilder {
        Client::builder().addresses(&self.broker).timeout(self.timeout)
    }
}

fn time_limit(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be above zero, for example 10s".to_owned()),
        other => other.map_err(|error| error.to_string()),
    }
}
