//! Operations: bulk work on the jobs of one queue, done by the brokers.

use std::time::Duration;

use bananas_proto::v1::{
    CancelOperationRequest, GetOperationRequest, ListOperationsRequest, Operation, OperationState,
    PauseOperationRequest, PreviewOperationRequest, PreviewOperationResponse, ResumeOperationRequest,
    StartOperationRequest, WatchOperationRequest,
};
use tokio::time::Instant;
use tonic::Request;

use super::{Page, pages};
use crate::{
    client::Client,
    error::{Error, Result},
    id::JobId,
    retry::Repeat,
};

/// Before a stream that broke is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(200);

impl Client {
    /// Starts an operation and returns it at once. Without an id it gets one here, so that a repeated call starts
    /// nothing twice.
    pub async fn start_operation(&self, mut request: StartOperationRequest) -> Result<Operation> {
        if request.operation_id.is_empty() {
            request.operation_id = JobId::random().to_string();
        }
        let response = self
            .repeatable(
                request,
                |r| async move { self.operation_service().start_operation(r).await },
            )
            .await?;
        present(response.operation)
    }

    /// Applies the filter of an operation without acting.
    pub async fn preview_operation(&self, request: PreviewOperationRequest) -> Result<PreviewOperationResponse> {
        self.read(request, |r| async move {
            self.operation_service().preview_operation(r).await
        })
        .await
    }

    /// Reads an operation.
    pub async fn operation(&self, routing_key: &str, operation_id: &str) -> Result<Operation> {
        let request = GetOperationRequest {
            routing_key: routing_key.to_owned(),
            operation_id: operation_id.to_owned(),
        };
        let response = self
            .read(
                request,
                |r| async move { self.operation_service().get_operation(r).await },
            )
            .await?;
        present(response.operation)
    }

    /// The operations of a queue, the newest first; at most `limit`.
    pub async fn list_operations(&self, routing_key: &str, limit: usize) -> Result<Vec<Operation>> {
        pages(limit, |page_size, page_token| async move {
            let request = ListOperationsRequest {
                routing_key: routing_key.to_owned(),
                page_size,
                page_token,
            };
            let page = self
                .read(
                    request,
                    |r| async move { self.operation_service().list_operations(r).await },
                )
                .await?;
            Ok(Page {
                entries: page.operations,
                next_token: page.next_page_token,
            })
        })
        .await
    }

    /// Pauses an operation that has not ended.
    pub async fn pause_operation(&self, routing_key: &str, operation_id: &str) -> Result<Operation> {
        let request = PauseOperationRequest {
            routing_key: routing_key.to_owned(),
            operation_id: operation_id.to_owned(),
        };
        let response = self
            .repeatable(
                request,
                |r| async move { self.operation_service().pause_operation(r).await },
            )
            .await?;
        present(response.operation)
    }

    /// Undoes [`Client::pause_operation`].
    pub async fn resume_operation(&self, routing_key: &str, operation_id: &str) -> Result<Operation> {
        let request = ResumeOperationRequest {
            routing_key: routing_key.to_owned(),
            operation_id: operation_id.to_owned(),
        };
        let response = self
            .repeatable(request, |r| async move {
                self.operation_service().resume_operation(r).await
            })
            .await?;
        present(response.operation)
    }

    /// Ends an operation. What it has done stays done.
    pub async fn cancel_operation(&self, routing_key: &str, operation_id: &str) -> Result<Operation> {
        let request = CancelOperationRequest {
            routing_key: routing_key.to_owned(),
            operation_id: operation_id.to_owned(),
        };
        let response = self
            .repeatable(request, |r| async move {
                self.operation_service().cancel_operation(r).await
            })
            .await?;
        present(response.operation)
    }

    /// Calls `show` with an operation at each change, and returns it when it has ended. Opens the stream again if it
    /// breaks; an outage of the broker that lasts longer than the timeout of this client ends the wait with its error.
    pub async fn watch_operation(
        &self,
        routing_key: &str,
        operation_id: &str,
        mut show: impl FnMut(&Operation),
    ) -> Result<Operation> {
        let request = WatchOperationRequest {
            routing_key: routing_key.to_owned(),
            operation_id: operation_id.to_owned(),
        };
        let mut last = None;
        let mut pause = Duration::ZERO;
        loop {
            tokio::time::sleep(std::mem::replace(&mut pause, REOPEN_PAUSE)).await;
            let open = || {
                let request = Request::new(request.clone());
                let mut service = self.operation_service();
                async move { Ok(Box::pin(service.watch_operation(request)).await?.into_inner()) }
            };
            let until = Instant::now() + self.timeout;
            let mut changes = match self.attempts(Repeat::Always, until, None, open).await {
                Ok(changes) => changes,
                // It deleted its queue, and was gone before the stream was open again.
                Err(error) => match last.filter(|last| error.code() == tonic::Code::NotFound && deletes_queue(last)) {
                    Some(last) => return Ok(last),
                    None => return Err(error.of_read()),
                },
            };
            loop {
                match changes.message().await {
                    Ok(Some(change)) => {
                        let operation = present(change.operation)?;
                        show(&operation);
                        if has_ended(&operation) {
                            return Ok(operation);
                        }
                        last = Some(operation);
                    }
                    Ok(None) => break,
                    Err(status) => {
                        let error = Error::from(status);
                        if error.is_retryable() {
                            break;
                        }
                        return Err(error.of_read());
                    }
                }
            }
        }
    }
}

/// Whether an operation does nothing any more.
fn has_ended(operation: &Operation) -> bool {
    !matches!(operation.state(), OperationState::Running | OperationState::Paused)
}

fn deletes_queue(operation: &Operation) -> bool {
    matches!(
        operation.action,
        Some(bananas_proto::v1::operation::Action::DeleteQueue(_))
    )
}

fn present(operation: Option<Operation>) -> Result<Operation> {
    operation.ok_or_else(|| Error::protocol("the broker's response has no operation"))
}
