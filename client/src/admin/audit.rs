//! The audit of a queue.

use bananas_proto::v1::{AuditQueueRequest, AuditQueueResponse, audit_queue_response::Event};
use tonic::{Request, Streaming};

use crate::{
    client::Client,
    error::{Error, Result},
};

/// An audit at work. It ends when this is dropped.
#[derive(Debug)]
pub struct Audit {
    events: Streaming<AuditQueueResponse>,
    has_ended: bool,
}

impl Client {
    /// Compares all keys of a queue with each other; with `repair`, the broker repairs what it can. It has no deadline:
    /// the audit of a large queue takes minutes.
    pub async fn audit_queue(&self, routing_key: &str, repair: bool) -> Result<Audit> {
        let request = AuditQueueRequest {
            routing_key: routing_key.to_owned(),
            repair,
        };
        let response = self.queue_service().audit_queue(Request::new(request)).await?;
        Ok(Audit {
            events: response.into_inner(),
            has_ended: false,
        })
    }
}

impl Audit {
    /// What the audit tells next: progress and findings, at last the summary; then `None`.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            match self.events.message().await? {
                Some(AuditQueueResponse { event: Some(event) }) => {
                    self.has_ended |= matches!(event, Event::Summary(_));
                    return Ok(Some(event));
                }
                // An event of a newer broker.
                Some(AuditQueueResponse { event: None }) => {}
                None if self.has_ended => return Ok(None),
                None => return Err(Error::interrupted("the audit was interrupted")),
            }
        }
    }
}
