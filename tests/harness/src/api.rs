//! Raw clients of every service, and the few calls that tests make all the time.
use std::time::Duration;

use bananas_proto::v1::{
    AckRequest, AckResponse, EnqueueRequest, EnqueueResponse, ExtendRequest, ExtendResult, GetJobRequest,
    GetQueueRequest, Job, JobSpec, JobState, LeaseExtension, LeaseRequest, LeasedJob, NackAction, NackRequest,
    NackResponse, Queue, Selector, broker_service_client::BrokerServiceClient,
    fleet_service_client::FleetServiceClient, job_service_client::JobServiceClient,
    operation_service_client::OperationServiceClient, queue_service_client::QueueServiceClient,
};
use bytes::Bytes;
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

use crate::eventually::eventually;

/// More than any response in the tests has.
const LARGEST_MESSAGE: usize = 64 * 1024 * 1024;

/// Clients of one broker over one connection.
#[derive(Debug, Clone)]
pub struct Api {
    /// The hot path.
    pub broker: BrokerServiceClient<Channel>,
    /// One job at a time.
    pub jobs: JobServiceClient<Channel>,
    /// Queues.
    pub queues: QueueServiceClient<Channel>,
    /// Bulk work.
    pub operations: OperationServiceClient<Channel>,
    /// Workers and brokers.
    pub fleet: FleetServiceClient<Channel>,
    /// The connection, for services of other packages.
    pub channel: Channel,
}

impl Api {
    /// Clients that connect when they are first used, and again after the connection broke.
    pub fn to(endpoint: &str) -> Self {
        let channel = Endpoint::from_shared(endpoint.to_owned())
            .expect("a well-formed address")
            .connect_timeout(Duration::from_secs(2))
            .initial_connection_window_size(16 * 1024 * 1024)
            .connect_lazy();
        Self {
            broker: BrokerServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST_MESSAGE),
            jobs: JobServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST_MESSAGE),
            queues: QueueServiceClient::new(channel.clone()),
            operations: OperationServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST_MESSAGE),
            fleet: FleetServiceClient::new(channel.clone()),
            channel,
        }
    }

    /// Enqueue.
    pub async fn enqueue(&self, spec: JobSpec) -> Result<EnqueueResponse, Status> {
        let request = EnqueueRequest { job: Some(spec) };
        Ok(self.broker.clone().enqueue(request).await?.into_inner())
    }

    /// Enqueues a plain job, which has to succeed; returns its id.
    pub async fn enqueued(&self, routing_key: &str) -> String {
        self.enqueue(spec(routing_key)).await.expect("the job is stored").job_id
    }

    /// Lease without waiting.
    pub async fn lease(&self, routing_key: &str, max_jobs: u32) -> Result<Vec<LeasedJob>, Status> {
        self.lease_with(LeaseRequest {
            max_jobs,
            ..lease_request(routing_key)
        })
        .await
    }

    /// Lease with this request.
    pub async fn lease_with(&self, request: LeaseRequest) -> Result<Vec<LeasedJob>, Status> {
        Ok(self.broker.clone().lease(request).await?.into_inner().jobs)
    }

    /// The next job of the queue, within [`PATIENCE`](crate::eventually::PATIENCE).
    pub async fn leased(&self, routing_key: &str) -> LeasedJob {
        self.leased_with(LeaseRequest {
            wait: Some(seconds(2)),
            ..lease_request(routing_key)
        })
        .await
    }

    /// The next job, under a lease of that length, within [`PATIENCE`](crate::eventually::PATIENCE).
    pub async fn leased_for(&self, routing_key: &str, duration: Duration) -> LeasedJob {
        self.leased_with(LeaseRequest {
            lease_duration: Some(proto_duration(duration)),
            wait: Some(seconds(2)),
            ..lease_request(routing_key)
        })
        .await
    }

    async fn leased_with(&self, request: LeaseRequest) -> LeasedJob {
        eventually("a job to lease", || async {
            self.lease_with(request.clone()).await.expect("Lease answers").pop()
        })
        .await
    }

    /// Ack without a result.
    pub async fn ack(&self, lease_token: &Bytes) -> Result<AckResponse, Status> {
        let request = AckRequest {
            lease_token: lease_token.clone(),
            result: None,
        };
        Ok(self.broker.clone().ack(request).await?.into_inner())
    }

    /// Nack without a failure or a delay.
    pub async fn nack(&self, lease_token: &Bytes, action: NackAction) -> Result<NackResponse, Status> {
        self.nack_with(nack_request(lease_token, action)).await
    }

    /// Nack with this request.
    pub async fn nack_with(&self, request: NackRequest) -> Result<NackResponse, Status> {
        Ok(self.broker.clone().nack(request).await?.into_inner())
    }

    /// Extends one lease.
    pub async fn extend(&self, lease: LeaseExtension) -> Result<ExtendResult, Status> {
        let request = ExtendRequest { leases: vec![lease] };
        let mut results = self.broker.clone().extend(request).await?.into_inner().results;
        Ok(results.pop().expect("one answer for one lease"))
    }

    /// GetJob with payload and all details.
    pub async fn get(&self, routing_key: &str, job_id: &str) -> Result<Job, Status> {
        let request = GetJobRequest {
            routing_key: routing_key.to_owned(),
            job_id: job_id.to_owned(),
            full: true,
        };
        Ok(self
            .jobs
            .clone()
            .get_job(request)
            .await?
            .into_inner()
            .job
            .expect("an answer has its job"))
    }

    /// The state of a job that must exist.
    pub async fn state(&self, routing_key: &str, job_id: &str) -> JobState {
        self.get(routing_key, job_id).await.expect("the job exists").state()
    }

    /// GetQueue.
    pub async fn queue(&self, routing_key: &str) -> Result<Queue, Status> {
        let request = GetQueueRequest {
            routing_key: routing_key.to_owned(),
        };
        Ok(self
            .queues
            .clone()
            .get_queue(request)
            .await?
            .into_inner()
            .queue
            .expect("an answer has its queue"))
    }
}

/// A plain job: READY at once, kept for an hour after it settled.
pub fn spec(routing_key: &str) -> JobSpec {
    JobSpec {
        routing_key: routing_key.to_owned(),
        job_type: "plain".into(),
        payload: Bytes::from_static(b"payload"),
        retention: Some(seconds(3_600)),
        ..JobSpec::default()
    }
}

/// A request for one job of one queue, without waiting.
pub fn lease_request(routing_key: &str) -> LeaseRequest {
    LeaseRequest {
        selector: Some(selector(routing_key)),
        max_jobs: 1,
        ..LeaseRequest::default()
    }
}

/// A selector of one queue, all priorities and types.
pub fn selector(routing_key: &str) -> Selector {
    Selector {
        routing_keys: vec![routing_key.to_owned()],
        ..Selector::default()
    }
}

/// A lease to extend, without progress.
pub fn extension(lease_token: &Bytes, duration: Option<prost_types::Duration>) -> LeaseExtension {
    LeaseExtension {
        lease_token: lease_token.clone(),
        duration,
        progress: None,
    }
}

/// A Nack without a failure or a delay.
pub fn nack_request(lease_token: &Bytes, action: NackAction) -> NackRequest {
    NackRequest {
        lease_token: lease_token.clone(),
        action: action.into(),
        ..NackRequest::default()
    }
}

/// A duration on the wire.
pub fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// A duration on the wire.
pub fn millis(millis: u64) -> prost_types::Duration {
    proto_duration(Duration::from_millis(millis))
}

/// A duration on the wire.
pub fn proto_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: duration.as_secs() as i64,
        nanos: duration.subsec_nanos() as i32,
    }
}

/// A call with a deadline, which travels as grpc-timeout.
pub fn with_deadline<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// A routing key that no other test uses.
pub fn unique_key(what: &str) -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    format!("{what}-{}", &id[..12])
}
