//! Which notifications are published, and to whom.

use std::time::Duration;

use bananas_broker::store::{Interest, Notification};
use bananas_harness::redis_server::RedisServer;
use futures_util::StreamExt as _;
use tokio::{sync::oneshot, time::timeout};

use crate::space::{Space, plain};

/// Everything that is published, up to a message of the test.
async fn published(space: &Space, mut incoming: redis::aio::PubSubStream) -> (Vec<Vec<u8>>, redis::aio::PubSubStream) {
    let () = space.command("PUBLISH", &[b"end", b"end"]).await;
    let mut messages = Vec::new();
    loop {
        let message = timeout(Duration::from_secs(10), incoming.next())
            .await
            .unwrap()
            .unwrap();
        if message.get_channel_name() == "end" {
            return (messages, incoming);
        }
        messages.push(message.get_payload_bytes().to_vec());
    }
}

#[tokio::test]
async fn other_brokers_are_notified_of_a_new_job_and_its_own_is_not() {
    let server = RedisServer::start().await;
    let space = Space::new(&server).await;
    let sink = redis::Client::open(server.url())
        .unwrap()
        .get_async_pubsub()
        .await
        .unwrap();
    let (mut sink, incoming) = sink.split();
    // PUBSUB NUMSUB does not count subscribers to a pattern.
    sink.psubscribe("*").await.unwrap();

    space.fill(&plain(1)).await;
    space.lease_one().await;
    let (messages, incoming) = published(&space, incoming).await;
    assert!(messages.is_empty(), "nobody listens: {messages:?}");

    let listen = async |space: &Space| {
        let notifications = space.store.listen();
        let (sure, listening) = oneshot::channel();
        notifications
            .interest
            .send(Interest::Listen(space.keys.channel(), sure))
            .unwrap();
        timeout(Duration::from_secs(10), listening).await.unwrap().unwrap();
        notifications
    };
    let _ours = listen(&space).await;
    space.fill(&plain(1)).await;
    space.lease_one().await;
    let (messages, incoming) = published(&space, incoming).await;
    assert!(messages.is_empty(), "only we listen: {messages:?}");

    let other = space.with("main", |_| {}).await;
    let mut theirs = listen(&other).await;
    space.fill(&plain(1)).await;
    let (messages, _incoming) = published(&space, incoming).await;
    assert_eq!(messages.len(), 1, "{messages:?}");
    loop {
        let (channel, notification) = timeout(Duration::from_secs(10), theirs.incoming.recv())
            .await
            .unwrap()
            .unwrap();
        if channel == other.keys.channel() {
            println!("{notification:?}");
            break;
        }
    }
}

#[tokio::test]
async fn many_channels_are_subscribed_again_with_few_commands() {
    const CHANNELS: usize = 10_000;
    let server = RedisServer::start().await;
    let space = Space::new(&server).await;
    let mut notifications = space.store.listen();
    let channel = |number: usize| format!("test:{{queue{number}}}:w");
    let mut all_sure = Vec::new();
    for number in 0..CHANNELS {
        let (sure, listening) = oneshot::channel();
        notifications
            .interest
            .send(Interest::Listen(channel(number), sure))
            .unwrap();
        all_sure.push(listening);
    }
    for listening in all_sure {
        timeout(Duration::from_secs(10), listening).await.unwrap().unwrap();
    }
    let missed = async |notifications: &mut bananas_broker::store::Notifications| {
        let incoming = timeout(Duration::from_secs(10), notifications.incoming.recv()).await;
        assert_eq!(incoming.unwrap().unwrap().1, Notification::Missed);
    };
    missed(&mut notifications).await;

    let () = space.command("CONFIG", &[b"RESETSTAT"]).await;
    let _: i64 = space.command("CLIENT", &[b"KILL", b"TYPE", b"pubsub"]).await;
    // Said once every channel is subscribed again.
    missed(&mut notifications).await;
    for number in [0, 1, CHANNELS / 2, CHANNELS - 1] {
        let name = channel(number);
        let (_, listeners): (String, i64) = space.command("PUBSUB", &[b"NUMSUB", name.as_bytes()]).await;
        assert_eq!(listeners, 1, "{name}");
    }
    let info: String = space.command("INFO", &[b"commandstats"]).await;
    let line = info
        .lines()
        .find(|line| line.starts_with("cmdstat_subscribe:"))
        .unwrap();
    let calls: usize = line.split(['=', ',']).nth(1).unwrap().parse().unwrap();
    assert!(
        calls <= 2 * CHANNELS / 500 + 1,
        "{calls} commands: one round trip for each takes too long"
    );
    let () = space
        .command("PUBLISH", &[channel(7).as_bytes(), b"r00000000" as &[u8]])
        .await;
    let lane = [b"r--------5:send".as_slice()].concat();
    let () = space.command("PUBLISH", &[channel(7).as_bytes(), &lane]).await;
    let (incoming, _) = timeout(Duration::from_secs(10), notifications.incoming.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(incoming, channel(7));
}
