//! The fleet: workers, and the broker itself.

use bananas_proto::v1::{GetBrokerInfoRequest, GetBrokerInfoResponse, ListWorkersRequest, Worker};

use super::{Page, pages};
use crate::{client::Client, error::Result};

impl Client {
    /// The workers with an open stream to any broker, sorted by id; at most `limit`. With a routing key, only those
    /// that take jobs from it.
    pub async fn list_workers(&self, routing_key: Option<&str>, limit: usize) -> Result<Vec<Worker>> {
        pages(limit, |page_size, page_token| async move {
            let request = ListWorkersRequest {
                page_size,
                page_token,
                routing_key: routing_key.unwrap_or_default().to_owned(),
            };
            let page = self
                .read(request, |r| async move { self.fleet_service().list_workers(r).await })
                .await?;
            Ok(Page {
                entries: page.workers,
                next_token: page.next_page_token,
            })
        })
        .await
    }

    /// The broker that responds: its version, its limits, its Redis.
    pub async fn broker_info(&self) -> Result<GetBrokerInfoResponse> {
        self.read(GetBrokerInfoRequest {}, |r| async move {
            self.fleet_service().get_broker_info(r).await
        })
        .await
    }
}
