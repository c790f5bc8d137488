//! The arguments of `bananas jobs`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::list::ListArgs;
use crate::filter::FilterArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum JobsCommand {
    /// List jobs
    List(Box<ListArgs>),
    #[command(flatten)]
    Act(Box<JobsAct>),
}

/// What starts an operation.
#[derive(Debug, Subcommand)]
pub(crate) enum JobsAct {
    /// Put settled jobs back to READY: their attempts start again, and the last failure is kept (default: DEAD jobs)
    Redrive {
        #[command(flatten)]
        common: Common,
        /// Give them this priority, 1 to 9; each keeps its own without it
        #[arg(long, value_name = "PRIORITY", value_parser = clap::value_parser!(u32).range(1..=9))]
        to_priority: Option<u32>,
        /// Let them wait this long first
        #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
        delay: Option<Duration>,
    },
    /// Cancel jobs: at once if no worker holds them, otherwise by asking their workers
    Cancel {
        #[command(flatten)]
        common: Common,
        /// How long a worker may take to settle a job that it holds
        #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
        grace: Option<Duration>,
    },
    /// Delete jobs for good; needs --confirm with the routing key
    Delete {
        #[command(flatten)]
        common: Common,
        /// Spare so many of the newest jobs of that state
        #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "COUNT")]
        keep_newest: u64,
        /// The routing key once more
        #[arg(long, default_value = "", hide_default_value = true, value_name = "ROUTING_KEY")]
        confirm: String,
    },
    /// Change the priority of jobs (default: READY jobs)
    Reprioritize {
        #[command(flatten)]
        common: Common,
        /// The new priority, 1 to 9
        #[arg(long, value_name = "PRIORITY", value_parser = clap::value_parser!(u32).range(1..=9))]
        to_priority: u32,
    },
    /// Make scheduled jobs READY now
    Run {
        #[command(flatten)]
        common: Common,
    },
    /// End leases as if their deadlines had passed; the workers get LEASE_LOST
    ExpireLeases {
        #[command(flatten)]
        common: Common,
        /// Do not count a lost lease
        #[arg(long)]
        without_loss: bool,
    },
    /// Count jobs by type, failure, message and hour; changes nothing (default: DEAD jobs)
    Analyze {
        #[command(flatten)]
        common: Common,
    },
}

/// What all these commands have.
#[derive(Debug, Args)]
pub(crate) struct Common {
    #[command(flatten)]
    pub queues: Queues,
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Act on at most so many jobs a second
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "JOBS")]
    pub rate: u32,
    /// Why; shown with the operation
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub reason: String,
    /// Show how many jobs match and some of them; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Start the operation and do not wait for its end
    #[arg(long)]
    pub detach: bool,
}

/// The queues of the jobs.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Queues {
    /// The routing key; several with commas
    #[arg(short, long = "queue", value_name = "ROUTING_KEYS", value_delimiter = ',')]
    pub queues: Vec<String>,
    /// Every queue
    #[arg(long)]
    pub all_queues: bool,
}
