//! Bytes that are no gRPC, and gRPC frames that are no message: the connection ends, and the broker goes on.
use std::{collections::HashMap, time::Duration};

use bananas_harness::{
    api::{spec, unique_key},
    refusal::assert_field_refused,
    stand::Stand,
};
use bananas_proto::v1::{EnqueueResponse, GetJobRequest};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};

use super::{assert_alive, assert_untouched};
use crate::arranged;

/// A codec that sends any bytes as a message.
#[derive(Debug, Clone, Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

const METHODS: [&str; 21] = [
    "/bananas.v1.BrokerService/Enqueue",
    "/bananas.v1.BrokerService/BatchEnqueue",
    "/bananas.v1.BrokerService/Lease",
    "/bananas.v1.BrokerService/Ack",
    "/bananas.v1.BrokerService/Nack",
    "/bananas.v1.BrokerService/Extend",
    "/bananas.v1.BrokerService/BatchSettle",
    "/bananas.v1.JobService/GetJob",
    "/bananas.v1.JobService/WaitJob",
    "/bananas.v1.JobService/CancelJob",
    "/bananas.v1.JobService/RedriveJob",
    "/bananas.v1.JobService/RunJobNow",
    "/bananas.v1.JobService/UpdateJob",
    "/bananas.v1.JobService/DeleteJob",
    "/bananas.v1.JobService/ExpireLease",
    "/bananas.v1.QueueService/ListQueues",
    "/bananas.v1.QueueService/GetQueue",
    "/bananas.v1.QueueService/PauseQueue",
    "/bananas.v1.QueueService/ResumeQueue",
    "/bananas.v1.FleetService/ListWorkers",
    "/bananas.v1.FleetService/GetBrokerInfo",
];

#[tokio::test]
async fn messages_of_random_bytes_are_answered_and_harm_nothing() {
    let (_stand, api, key) = arranged("random").await;
    let mut client = Grpc::new(api.channel.clone());
    // Printed if the test fails, so that it can be repeated with the same bytes.
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..20 {
        for method in METHODS {
            let mut message = vec![0; random.usize(1..200)];
            random.fill(&mut message);
            client.ready().await.unwrap();
            let path = PathAndQuery::from_static(method);
            let mut request = Request::new(Bytes::from(message));
            request.set_timeout(Duration::from_secs(20));
            if let Err(status) = client.unary(request, path, RawCodec).await {
                // gRPC libraries report a message that cannot be decoded as INTERNAL; a bug would be UNKNOWN or a
                // broken connection.
                let expected = [
                    Code::InvalidArgument,
                    Code::Internal,
                    Code::NotFound,
                    Code::FailedPrecondition,
                ];
                assert!(expected.contains(&status.code()), "{method}: {status:?}");
            }
        }
    }
    assert_alive(&api, &key).await;
}

/// Calls a method with these bytes; returns the bytes of the response.
async fn call_raw(channel: &Channel, method: &'static str, request: Bytes) -> Result<Bytes, Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static(method);
    let answer = client.unary(Request::new(request), path, RawCodec).await?;
    Ok(answer.into_inner())
}

/// Enqueues a job of these bytes; returns its id.
async fn enqueue_raw(channel: &Channel, spec: &[u8]) -> Result<String, Status> {
    let mut message = BytesMut::new();
    prost::encoding::bytes::encode(1, &spec.to_vec(), &mut message);
    let answer = call_raw(channel, "/bananas.v1.BrokerService/Enqueue", message.freeze()).await?;
    Ok(EnqueueResponse::decode(answer).unwrap().job_id)
}

#[tokio::test]
async fn a_job_with_repeated_fields_is_stored_with_each_once() {
    let (stand, api, key) = arranged("again").await;
    let with = |payload: &[u8], header: &str| {
        let mut job = spec(&key);
        job.payload = Bytes::copy_from_slice(payload);
        job.headers = HashMap::from([("h".to_owned(), header.to_owned())]);
        job.encode_to_vec()
    };
    let mut bytes = with(&vec![7; 1 << 20], "first").repeat(3);
    bytes.extend(with(b"hi", "last").repeat(500));
    let id = enqueue_raw(&api.channel, &bytes).await.unwrap();
    let request = GetJobRequest {
        routing_key: key.clone(),
        job_id: id.clone(),
        full: true,
    };
    let read = call_raw(
        &api.channel,
        "/bananas.v1.JobService/GetJob",
        request.encode_to_vec().into(),
    )
    .await;
    let bytes = read.unwrap().len();
    assert!(bytes < 300, "{bytes} bytes were stored");
    let leased = api.leased(&key).await;
    assert_eq!(
        (leased.job_id, &leased.payload[..], leased.headers["h"].as_str()),
        (id, &b"hi"[..], "last")
    );
    api.ack(&leased.lease_token).await.unwrap();
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_job_is_bounded_beside_its_payload_too() {
    let (stand, api, key) = arranged("beside").await;
    let mut bytes = spec(&key).encode_to_vec();
    // A field of a newer version, for which this version has no bound.
    prost::encoding::bytes::encode(40, &vec![0; 1 << 20], &mut bytes);
    assert_field_refused(enqueue_raw(&api.channel, &bytes).await, "job");
    assert_untouched(&stand, &key).await;
    assert_alive(&api, &key).await;
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let (_stand, api, _key) = arranged("none").await;
    let mut client = Grpc::new(api.channel.clone());
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/bananas.v1.BrokerService/Nothing");
    let status = client
        .unary(Request::new(Bytes::new()), path, RawCodec)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn garbage_on_the_port_ends_that_connection_only() {
    let (stand, api, key) = arranged("garbage").await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let flood: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(100_000).collect();
    let mut after_preface = preface.to_vec();
    after_preface.extend(&flood[..10_000]);
    let mut huge_frame = preface.to_vec();
    huge_frame.extend([0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]);
    let attacks: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0x16, 3, 1, 2, 0, 1, 0],
        &[0; 1_000],
        &flood,
        &after_preface,
        &huge_frame,
    ];
    for bytes in attacks {
        assert!(
            is_closed_after(&stand, bytes).await,
            "the connection stays open after {:?}",
            &bytes[..bytes.len().min(30)]
        );
    }
    assert_alive(&api, &key).await;
}

/// Whether the broker closes a connection that sends these bytes.
async fn is_closed_after(stand: &Stand, bytes: &[u8]) -> bool {
    let mut stream = TcpStream::connect(("127.0.0.1", stand.brokers[0].api_port()))
        .await
        .unwrap();
    // It may close before all bytes are sent.
    let _ = stream.write_all(bytes).await;
    let mut answer = vec![0; 4_096];
    let closed = async { while stream.read(&mut answer).await.is_ok_and(|read| read > 0) {} };
    timeout(Duration::from_secs(15), closed).await.is_ok()
}

#[tokio::test]
async fn a_message_larger_than_the_broker_reads_is_refused() {
    let (_stand, api, key) = arranged("huge").await;
    let mut client = Grpc::new(api.channel.clone());
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/bananas.v1.BrokerService/Enqueue");
    let huge = Bytes::from(vec![0; 20 << 20]);
    let status = client.unary(Request::new(huge), path, RawCodec).await.unwrap_err();
    let refused = [
        Code::OutOfRange,
        Code::ResourceExhausted,
        Code::InvalidArgument,
        Code::Internal,
        Code::Unavailable,
    ];
    assert!(refused.contains(&status.code()), "{status:?}");
    assert_alive(&api, &unique_key("after")).await;
    assert_alive(&api, &key).await;
}
