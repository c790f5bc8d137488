//! A Redis with brokers: what a test runs against.
use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::{
    api::Api,
    broker::{BrokerOptions, BrokerProcess},
    keyspace::{self, Audit},
    redis_server::{RedisOptions, RedisServer},
};

/// The options of a stand.
#[derive(Debug, Clone)]
pub struct StandOptions {
    /// The number of brokers.
    pub brokers: usize,
    /// The Redis.
    pub redis: RedisOptions,
    /// Settings of every broker: `section.key` and value.
    pub settings: Vec<(&'static str, String)>,
}

impl Default for StandOptions {
    fn default() -> Self {
        Self {
            brokers: 1,
            redis: RedisOptions::default(),
            settings: Vec::new(),
        }
    }
}

/// A Redis and its brokers.
#[derive(Debug)]
pub struct Stand {
    /// The Redis.
    pub redis: RedisServer,
    /// The brokers.
    pub brokers: Vec<BrokerProcess>,
}

static SHARED: OnceCell<Arc<Stand>> = OnceCell::const_new();

impl Stand {
    /// Two brokers on one Redis for all tests that cause no faults; each test uses its own routing keys.
    pub async fn shared() -> Arc<Self> {
        SHARED
            .get_or_init(|| async {
                Arc::new(
                    Self::with(StandOptions {
                        brokers: 2,
                        ..StandOptions::default()
                    })
                    .await,
                )
            })
            .await
            .clone()
    }

    /// One broker on one Redis, for this test alone.
    pub async fn own() -> Self {
        Self::with(StandOptions::default()).await
    }

    /// With these options, for this test alone.
    pub async fn with(options: StandOptions) -> Self {
        let redis = RedisServer::start_with(options.redis.clone()).await;
        let mut brokers = Vec::new();
        for _ in 0..options.brokers {
            brokers.push(BrokerProcess::launched(BrokerOptions::on(&redis, &options.settings)));
        }
        for broker in &mut brokers {
            broker.wait_ready().await;
        }
        Self { redis, brokers }
    }

    /// Clients of the first broker, over a connection of their own.
    pub fn api(&self) -> Api {
        self.brokers[0].api()
    }

    /// Clients of the second broker, over a connection of their own.
    pub fn other_api(&self) -> Api {
        self.brokers[1].api()
    }

    /// Audits the keys of a queue; panics if something does not fit.
    pub async fn audit(&self, routing_key: &str) -> Audit {
        keyspace::audit(&mut self.redis.connection().await, routing_key).await
    }

    /// The addresses of the brokers.
    pub fn endpoints(&self) -> Vec<String> {
        self.brokers.iter().map(BrokerProcess::endpoint).collect()
    }
}
