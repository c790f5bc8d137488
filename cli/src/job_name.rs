//! How commands name a job.

use bananas_client::JobId;
use clap::Args;

use crate::exit::{Failure, Result};

/// The job that a command is about.
#[derive(Debug, Args)]
pub(crate) struct JobName {
    /// The job, or only its UUID with --queue
    #[arg(value_name = "ROUTING_KEY/UUID")]
    job: String,
    /// The routing key of the job
    #[arg(short = 'q', long = "queue", value_name = "ROUTING_KEY")]
    queue: Option<String>,
}

impl JobName {
    pub(crate) fn parse(&self) -> Result<(String, JobId)> {
        let (queue, id) = match (self.job.rsplit_once('/'), &self.queue) {
            (Some((queue, id)), None) => (queue, id),
            (None, Some(queue)) => (queue.as_str(), self.job.as_str()),
            _ => {
                return Err(Failure::usage(
                    "name the job as ROUTING_KEY/UUID, or as --queue ROUTING_KEY UUID",
                ));
            }
        };
        Ok((queue.to_owned(), id.parse()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    fn name(job: &str, queue: Option<&str>) -> Result<(String, JobId)> {
        JobName {
            job: job.to_owned(),
            queue: queue.map(str::to_owned),
        }
        .parse()
    }

    #[test]
    fn a_job_is_named_by_path_or_by_queue_and_id() {
        let id = JobId::random();
        assert_eq!(name(&format!("email/{id}"), None).unwrap(), ("email".to_owned(), id));
        assert_eq!(name(&id.to_string(), Some("email")).unwrap(), ("email".to_owned(), id));
        for (job, queue) in [
            (id.to_string(), None),
            (format!("a/{id}"), Some("b")),
            ("a/b".to_owned(), None),
        ] {
            assert_eq!(name(&job, queue).unwrap_err().exit(), Exit::Usage);
        }
    }
}
