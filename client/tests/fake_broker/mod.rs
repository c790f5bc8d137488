//! A broker that stores nothing and answers what a test tells it to.
#![allow(unreachable_pub, reason = "part of a test")]

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use bananas_client::Client;
use bananas_proto::{server as api, v1::JobSpec};
use prost::Message;
use tokio::{net::TcpListener, runtime::Runtime, sync::Semaphore};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// One call of Enqueue or BatchEnqueue as it arrived.
#[derive(Debug, Clone)]
pub struct Call {
    pub jobs: Vec<JobSpec>,
    pub timeout: Option<String>,
}

/// What the fake has seen, and how it answers.
#[derive(Debug)]
pub struct Fake {
    pub calls: Mutex<Vec<Call>>,
    /// Taken from the front, one for each call; afterwards every call succeeds.
    pub failures: Mutex<VecDeque<Status>>,
    /// A job of this type gets this error.
    pub bad_job: Mutex<Option<(String, api::ItemError)>>,
    /// Calls with more jobs are BATCH_TOO_LARGE.
    pub max_batch_jobs: Mutex<usize>,
    /// A call is answered when it gets a permit.
    pub gate: Semaphore,
    /// So many waits fail as they do while Redis is away; those after them find a job that is done.
    pub failing_waits: AtomicU32,
}

pub struct Running {
    pub fake: Arc<Fake>,
    pub address: SocketAddr,
    /// Its own, so that killing it closes every connection.
    runtime: Option<Runtime>,
}

impl Running {
    /// A client of this broker that combines single enqueues, or does not.
    pub fn client(&self, combine: bool) -> Client {
        Client::builder()
            .addresses(self.address.to_string())
            .combine(combine)
            .build_lazy()
            .unwrap()
    }

    pub async fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.spawn(TcpListener::bind("127.0.0.1:0")).await.unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let fake = Arc::new(Fake {
            calls: Mutex::default(),
            failures: Mutex::default(),
            bad_job: Mutex::default(),
            max_batch_jobs: Mutex::new(usize::MAX),
            gate: Semaphore::new(1_000_000),
            failing_waits: AtomicU32::new(0),
        });
        let service = api::broker_service_server::BrokerServiceServer::from_arc(Arc::new(Service(fake.clone())));
        let jobs = api::job_service_server::JobServiceServer::from_arc(Arc::new(Service(fake.clone())));
        runtime.spawn(async move {
            Server::builder()
                .add_service(service)
                .add_service(jobs)
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
        });
        Self {
            fake,
            address,
            runtime: Some(runtime),
        }
    }

    pub fn calls(&self) -> Vec<Call> {
        self.fake.calls.lock().unwrap().clone()
    }

    /// Waits until so many calls have arrived.
    pub async fn saw_calls(&self, count: usize) {
        while self.calls().len() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Ends without a word to its clients.
    pub async fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(5)))
            .await
            .unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Service(Arc<Fake>);

impl Service {
    async fn admit<T>(&self, request: &Request<T>, jobs: &[bytes::Bytes]) -> Result<Vec<api::EnqueueResult>, Status> {
        let timeout = request
            .metadata()
            .get("grpc-timeout")
            .map(|value| value.to_str().unwrap().to_owned());
        let jobs: Vec<JobSpec> = jobs.iter().map(|job| JobSpec::decode(job.clone()).unwrap()).collect();
        self.0.calls.lock().unwrap().push(Call {
            jobs: jobs.clone(),
            timeout,
        });
        self.0.gate.acquire().await.unwrap().forget();
        if let Some(failure) = self.0.failures.lock().unwrap().pop_front() {
            return Err(failure);
        }
        if jobs.len() > *self.0.max_batch_jobs.lock().unwrap() {
            return Err(refusal(tonic::Code::InvalidArgument, "BATCH_TOO_LARGE"));
        }
        let bad_job = self.0.bad_job.lock().unwrap().clone();
        let alone = jobs.len() == 1;
        let result = |(place, job): (usize, JobSpec)| {
            let mut error = bad_job
                .as_ref()
                .filter(|(job_type, _)| *job_type == job.job_type)
                .map(|(_, e)| e.clone());
            if let Some(error) = error.as_mut().filter(|_| !alone)
                && let Some(field) = error.metadata.get_mut("field")
            {
                error.message = format!("jobs[{place}].{}", error.message);
                *field = format!("jobs[{place}].{field}");
            }
            let known = job.job_type == "known" && error.is_none();
            api::EnqueueResult {
                job_id: if error.is_none() { job.job_id } else { String::new() },
                error,
                deduplicated: known,
                state: if known { api::JobState::Dead.into() } else { 0 },
            }
        };
        Ok(jobs.into_iter().enumerate().map(result).collect())
    }
}

/// The same as an error of a call.
fn status_of(item: api::ItemError) -> Status {
    use tonic_types::{ErrorDetails, StatusExt};
    let mut details = ErrorDetails::new();
    if let Some(field) = item.metadata.get("field") {
        let description = item.message.trim_start_matches(field.as_str()).trim_start();
        details.add_bad_request_violation(field, description);
    }
    details.set_retry_info(item.retry_after.map(|after| after.try_into().unwrap()));
    details.set_error_info(item.reason, bananas_proto::reason::DOMAIN, item.metadata);
    Status::with_error_details(tonic::Code::from_i32(item.code), item.message, details)
}

/// An error as a broker would make it.
pub fn refusal(code: tonic::Code, reason: &str) -> Status {
    use tonic_types::{ErrorDetails, StatusExt};
    let details = ErrorDetails::with_error_info(reason, bananas_proto::reason::DOMAIN, []);
    Status::with_error_details(code, reason, details)
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl api::broker_service_server::BrokerService for Service {
    async fn enqueue(&self, request: Request<api::EnqueueRequest>) -> Answer<api::EnqueueResponse> {
        let job = request.get_ref().job.clone();
        let mut results = self.admit(&request, &[job]).await?;
        let api::EnqueueResult {
            job_id,
            deduplicated,
            error,
            state,
        } = results.remove(0);
        match error {
            Some(error) => Err(status_of(error)),
            None => Ok(Response::new(api::EnqueueResponse {
                job_id,
                deduplicated,
                state,
            })),
        }
    }

    async fn batch_enqueue(&self, request: Request<api::BatchEnqueueRequest>) -> Answer<api::BatchEnqueueResponse> {
        let jobs = request.get_ref().jobs.clone();
        Ok(Response::new(api::BatchEnqueueResponse {
            results: self.admit(&request, &jobs).await?,
        }))
    }

    async fn ack(&self, request: Request<api::AckRequest>) -> Answer<api::AckResponse> {
        self.admit(&request, &[]).await?;
        Ok(Response::new(api::AckResponse::default()))
    }

    async fn lease(&self, _: Request<api::LeaseRequest>) -> Answer<api::LeaseResponse> {
        Err(Status::unimplemented("not part of the fake"))
    }

    type SubscribeStream = tokio_stream::Pending<Result<api::SubscribeResponse, Status>>;

    async fn subscribe(&self, _: Request<tonic::Streaming<api::SubscribeRequest>>) -> Answer<Self::SubscribeStream> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn nack(&self, _: Request<api::NackRequest>) -> Answer<api::NackResponse> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn extend(&self, _: Request<api::ExtendRequest>) -> Answer<api::ExtendResponse> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn batch_settle(&self, _: Request<api::BatchSettleRequest>) -> Answer<api::BatchSettleResponse> {
        Err(Status::unimplemented("not part of the fake"))
    }
}

#[tonic::async_trait]
impl api::job_service_server::JobService for Service {
    async fn get_job(&self, _: Request<api::GetJobRequest>) -> Answer<api::GetJobResponse> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn wait_job(&self, _: Request<api::WaitJobRequest>) -> Answer<api::WaitJobResponse> {
        let one_less = |left: u32| left.checked_sub(1);
        if self.0.failing_waits.fetch_update(Relaxed, Relaxed, one_less).is_ok() {
            return Err(refusal(tonic::Code::Unavailable, "STORE_UNAVAILABLE"));
        }
        Ok(Response::new(api::WaitJobResponse {
            job: Some(api::Job::default()),
            settled: true,
        }))
    }

    async fn cancel_job(&self, _: Request<api::CancelJobRequest>) -> Answer<api::CancelJobResponse> {
        Err(Status::unimplemented("not part of the fake"))
    }
}
