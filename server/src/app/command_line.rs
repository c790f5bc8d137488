//! The command line: commands, flags, help texts, and the settings that the flags override.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{config::Override, dev};

const ABOUT: &str = "A job-queue broker: gRPC in front, Redis behind";

const EXIT_CODES: &str = "\
Exit codes:
  0   success: ended after a drain, or the check passed
  1   failure while starting or running, or the check did not pass
  2   invalid command line
  3   healthcheck: the broker is unreachable
  78  the configuration is not valid";

const SERVE_EXAMPLES: &str = "\
Examples:
  bananas-broker serve --redis-url redis://127.0.0.1:6379/0
  REDIS_URL=rediss://redis:6380 REDIS_PASSWORD_FILE=/run/secrets/redis bananas-broker serve --listen 0.0.0.0:8080
  bananas-broker serve --config /etc/bananas/broker.toml --set jobs.max_attempts=5

Signals:
  SIGTERM, SIGINT, SIGQUIT   drain and exit within drain.grace; a second one exits at once
  SIGHUP                     reload the configuration: log.level at once, other settings at the next start";

const DEV_EXAMPLES: &str = "\
Examples:
  bananas-broker dev                       keeps its jobs in ~/.local/share/bananas/dev
  bananas-broker dev --fresh               deletes the jobs of the last run first
  bananas-broker dev --port 18080 --data-dir ./dev --set http.listen=127.0.0.1:19090

Ctrl-C, SIGTERM, SIGQUIT or a closed terminal (SIGHUP) stops the broker and the private Redis.";

const HEALTH_EXAMPLES: &str = "\
Examples:
  bananas-broker healthcheck
  bananas-broker healthcheck --address 10.0.0.7:8080 --service bananas.v1.BrokerService";

/// The command line of `bananas-broker`.
#[derive(Debug, Parser)]
#[command(name = "bananas-broker", version, about = ABOUT, after_help = EXIT_CODES, max_term_width = 120)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve on an existing Redis
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Serve),
    /// Serve on a private Redis that starts and stops with the broker
    #[command(after_help = DEV_EXAMPLES)]
    Dev(Dev),
    /// Show or check the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Check whether a running broker serves
    #[command(after_help = HEALTH_EXAMPLES)]
    Healthcheck(Healthcheck),
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man {
        /// Write a page for each command into this directory instead
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// Sources of settings other than the environment.
#[derive(Debug, Args)]
pub struct Settings {
    /// Configuration file (TOML); default /etc/bananas/broker.toml if it exists
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one setting; repeatable
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = parse_assignment)]
    assignments: Vec<(String, String)>,
    /// Lowest level that is logged: error, warn, info, debug, trace (log.level)
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

/// Options of `serve`.
#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// Address and port for gRPC (grpc.listen)
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Address of Redis (redis.url); put a password into REDIS_PASSWORD, not here
    #[arg(long, value_name = "URL")]
    redis_url: Option<String>,
    /// Start even if Redis may lose jobs (redis.allow_unsafe)
    #[arg(long)]
    allow_unsafe: bool,
}

/// Options of `dev`.
#[derive(Debug, Args)]
pub struct Dev {
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// Directory of the private Redis; default bananas/dev in $XDG_DATA_HOME or ~/.local/share
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Delete the jobs of the last run first
    #[arg(long)]
    fresh: bool,
    /// Port for gRPC on 127.0.0.1
    #[arg(long)]
    port: Option<u16>,
}

/// Subcommands of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print each value in force and its source, secrets redacted
    Show {
        /// Sources of settings
        #[command(flatten)]
        settings: Settings,
        /// Output format
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// Check every source; print nothing if all are valid
    Check {
        /// Sources of settings
        #[command(flatten)]
        settings: Settings,
    },
    /// Print a commented file of all defaults
    Defaults,
}

/// Output formats.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Options of `healthcheck`.
#[derive(Debug, Args)]
pub struct Healthcheck {
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// Address of the broker; default: grpc.listen of the configuration
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) address: Option<SocketAddr>,
    /// Check one service instead of the whole broker
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) service: String,
    /// How long to wait for the answer
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
}

impl Settings {
    /// The overrides, weakest first: the dedicated flags win over `--set`.
    fn overrides(&self) -> Vec<Override> {
        let assigned = self.assignments.iter().map(|(key, text)| over(key, text, "--set"));
        assigned
            .chain(
                self.log_level
                    .iter()
                    .map(|level| over("log.level", level, "--log-level")),
            )
            .collect()
    }
}

impl Command {
    /// The configuration file and the overrides of this command.
    pub fn sources(&self) -> (Option<PathBuf>, Vec<Override>) {
        let (settings, more) = match self {
            Self::Serve(serve) => (&serve.settings, serve.overrides()),
            Self::Dev(dev) => (&dev.settings, dev.overrides()),
            Self::Healthcheck(check) => (&check.settings, Vec::new()),
            Self::Config(ConfigCommand::Show { settings, .. } | ConfigCommand::Check { settings }) => {
                (settings, Vec::new())
            }
            Self::Config(ConfigCommand::Defaults) | Self::Completions { .. } | Self::Man { .. } => {
                return (None, Vec::new());
            }
        };
        (
            settings.config.clone(),
            settings.overrides().into_iter().chain(more).collect(),
        )
    }
}

impl Serve {
    fn overrides(&self) -> Vec<Override> {
        let listen = self.listen.iter().map(|text| over("grpc.listen", text, "--listen"));
        let url = self.redis_url.iter().map(|text| over("redis.url", text, "--redis-url"));
        let allow = self
            .allow_unsafe
            .then(|| over("redis.allow_unsafe", "true", "--allow-unsafe"));
        listen.chain(url).chain(allow).collect()
    }
}

impl Dev {
    fn overrides(&self) -> Vec<Override> {
        self.port
            .iter()
            .map(|port| over("grpc.listen", &format!("127.0.0.1:{port}"), "--port"))
            .collect()
    }

    /// The options of the private Redis.
    pub fn options(&self) -> dev::Options {
        dev::Options {
            data_dir: self.data_dir.clone(),
            fresh: self.fresh,
        }
    }
}

fn over(key: &str, text: &str, flag: &str) -> Override {
    Override {
        key: key.into(),
        text: text.into(),
        flag: flag.into(),
    }
}

fn parse_assignment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected SECTION.KEY=VALUE")?;
    Ok((key.trim().into(), value.into()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::{Config, Environment};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_become_settings_with_their_own_name_as_source() {
        let line = [
            "bananas-broker",
            "serve",
            "--listen",
            "0.0.0.0:1",
            "--set",
            "grpc.listen=0.0.0.0:2",
            "--set",
            "jobs.max_attempts=3",
            "--allow-unsafe",
        ];
        let (_, overrides) = Cli::parse_from(line).command.sources();
        let config = Config::from_parts(&Environment::default(), None, &overrides).unwrap();
        assert_eq!(config.grpc.listen.to_string(), "0.0.0.0:1");
        assert_eq!(config.source("grpc.listen").to_string(), "flag --listen");
        assert_eq!((config.jobs.max_attempts, config.redis.allow_unsafe), (3, true));
    }
}
