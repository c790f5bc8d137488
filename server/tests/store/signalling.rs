//! Who is told what over pub/sub.

use std::time::Duration;

use bananas_broker::store::Interest;
use futures_util::StreamExt as _;
use tokio::{sync::oneshot, time::timeout};

use crate::{
    redis_process::RedisProcess,
    space::{Space, plain},
};

/// Everything that is published, until a message of the test's own.
async fn published(space: &Space, mut heard: redis::aio::PubSubStream) -> (Vec<Vec<u8>>, redis::aio::PubSubStream) {
    let () = space.command("PUBLISH", &[b"end", b"end"]).await;
    let mut messages = Vec::new();
    loop {
        let message = timeout(Duration::from_secs(10), heard.next()).await.unwrap().unwrap();
        if message.get_channel_name() == "end" {
            return (messages, heard);
        }
        messages.push(message.get_payload_bytes().to_vec());
    }
}

#[tokio::test]
async fn a_new_job_is_told_to_other_brokers_and_not_to_ourselves() {
    let server = RedisProcess::start(&[]);
    let space = Space::new(&server).await;
    let ear = redis::Client::open(server.url())
        .unwrap()
        .get_async_pubsub()
        .await
        .unwrap();
    let (mut ear, heard) = ear.split();
    // A pattern is not counted among those who listen to a channel.
    ear.psubscribe("*").await.unwrap();

    space.fill(&plain(1)).await;
    space.lease_one().await;
    let (messages, heard) = published(&space, heard).await;
    assert!(messages.is_empty(), "nobody listens: {messages:?}");

    let listen = async |space: &Space| {
        let signals = space.store.listen();
        let (sure, listening) = oneshot::channel();
        signals
            .interest
            .send(Interest::Listen(space.keys.channel(), sure))
            .unwrap();
        timeout(Duration::from_secs(10), listening).await.unwrap().unwrap();
        signals
    };
    let _ours = listen(&space).await;
    space.fill(&plain(1)).await;
    space.lease_one().await;
    let (messages, heard) = published(&space, heard).await;
    assert!(messages.is_empty(), "only we listen: {messages:?}");

    let other = space.with("main", |_| {}).await;
    let mut theirs = listen(&other).await;
    space.fill(&plain(1)).await;
    let (messages, _heard) = published(&space, heard).await;
    assert_eq!(messages.len(), 1, "{messages:?}");
    loop {
        let (channel, signal) = timeout(Duration::from_secs(10), theirs.incoming.recv())
            .await
            .unwrap()
            .unwrap();
        if channel == other.keys.channel() {
            println!("{signal:?}");
            break;
        }
    }
}
