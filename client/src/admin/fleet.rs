//! Workers and the broker itself.

use bananas_proto::v1::{GetBrokerInfoRequest, GetBrokerInfoResponse, ListWorkersRequest, Worker};

use crate::{admin::queue::PAGE_SIZE, client::Client, error::Result};

impl Client {
    /// The workers with an open stream at any broker, by id; at most `limit`. With a routing key only those that ask for it.
    pub async fn list_workers(&self, routing_key: Option<&str>, limit: usize) -> Result<Vec<Worker>> {
        let mut workers = Vec::new();
        let mut page_token = String::new();
        while workers.len() < limit {
            let request = ListWorkersRequest {
                page_size: (limit - workers.len()).min(PAGE_SIZE) as u32,
                page_token,
                routing_key: routing_key.unwrap_or_default().to_owned(),
            };
            let send = |request| {
                let mut service = self.shared.settings.fleet_service(self.grpc());
                async move { service.list_workers(request).await }
            };
            let page = self.read(request, send).await?;
            workers.extend(page.workers);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        workers.truncate(limit);
        Ok(workers)
    }

    /// The broker that answers: version, limits, its Redis.
    pub async fn broker_info(&self) -> Result<GetBrokerInfoResponse> {
        let send = |request| {
            let mut service = self.shared.settings.fleet_service(self.grpc());
            async move { service.get_broker_info(request).await }
        };
        self.read(GetBrokerInfoRequest {}, send).await
    }
}
