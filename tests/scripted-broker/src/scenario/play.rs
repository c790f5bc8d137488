//! Plays a scenario: does its steps one after the other and says which one the worker did not follow.
use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, anyhow, bail, ensure};
use bananas_proto::server as wire;
use serde_json::{Map, Value, json};
use tokio::time::timeout;
use tonic::{Code, Status};

use super::{Accept, Action, Scenario, Step, frame};
use crate::{broker::ScriptedBroker, frames, stream::Stream};

/// How long the worker may take for a step.
const PATIENCE: Duration = Duration::from_secs(15);

/// Frames that a worker sends when it likes.
const PASSED_OVER: [&str; 3] = ["heartbeat", "received", "flow"];

/// What the test that runs the worker has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Ask the worker to stop, as SIGTERM does.
    Stop,
}

/// Plays a scenario on this broker. The error says at which step the worker did something else, and what.
pub async fn play(
    broker: &mut ScriptedBroker,
    scenario: &Scenario,
    tell: &mut (dyn FnMut(Event) + Send),
) -> anyhow::Result<()> {
    let mut player = Player {
        broker,
        tell,
        streams: Vec::new(),
    };
    for (number, step) in scenario.steps.iter().enumerate() {
        let done = player.step(step).await;
        done.with_context(|| format!("step {}, {:?}", number + 1, step.action))?;
    }
    Ok(())
}

struct Player<'a> {
    broker: &'a mut ScriptedBroker,
    tell: &'a mut (dyn FnMut(Event) + Send),
    streams: Vec<Played>,
}

/// A stream of the worker.
struct Played {
    name: String,
    stream: Stream,
    /// The sequence of the frame that was expected last, and how many items it had.
    replied_to: Option<(Value, usize)>,
}

impl Player<'_> {
    async fn step(&mut self, step: &Step) -> anyhow::Result<()> {
        match &step.action {
            Action::Accept(accept) => return self.accept(accept).await,
            Action::Stop(_) => {
                (self.tell)(Event::Stop);
                return Ok(());
            }
            _ => {}
        }
        let place = match &step.on {
            Some(name) => self.streams.iter().position(|played| played.name == *name),
            None => self.streams.len().checked_sub(1),
        };
        let place = place.ok_or_else(|| anyhow!("no such stream"))?;
        if let Action::Break(code) = &step.action {
            let played = self.streams.remove(place);
            let status = Status::new(code_named(code)?, "ended by the scenario");
            let _ = played.stream.outbound.send(Err(status)).await;
            return Ok(());
        }
        let played = &mut self.streams[place];
        match &step.action {
            Action::Send(frame) => played.send(frame.clone()).await,
            Action::Deliver(jobs) => played.deliver(jobs).await,
            Action::Expect(expected) => played.expect(expected).await,
            Action::Reply(reply) => played.reply(reply).await,
            Action::Settled(expected) => played.settled(expected).await,
            Action::HalfClosed(_) => match played.next("").await? {
                None => Ok(()),
                Some(other) => bail!("the worker sent {other}"),
            },
            Action::Quiet(time) => match timeout(*time, played.next("")).await {
                Err(_) => Ok(()),
                Ok(sent) => bail!("the worker sent {:?}", sent?),
            },
            Action::Accept(_) | Action::Break(_) | Action::Stop(_) => Ok(()),
        }
    }

    async fn accept(&mut self, accept: &Accept) -> anyhow::Result<()> {
        let arrival = timeout(PATIENCE, self.broker.next_stream()).await;
        let arrival = arrival.map_err(|_| anyhow!("the worker opens no stream"))?;
        let (stream, open) = arrival.map_err(|first| anyhow!("the first frame is {first:?}"))?;
        let mut played = Played {
            name: accept.name.clone().unwrap_or_default(),
            stream,
            replied_to: None,
        };
        let shown = frame::show("Open", &open)?;
        same("open", &Value::Object(accept.open.clone()), &shown)?;
        if let Some(code) = &accept.refuse {
            let status = Status::new(code_named(code)?, "refused by the scenario");
            let _ = played.stream.outbound.send(Err(status)).await;
            return Ok(());
        }
        if !accept.leave {
            let held = vec![wire::ExtendResult::default(); open.held_tokens.len()];
            let usual = frame::show("Opened", &frames::opened(held))?;
            let opened = frame::over(usual, &accept.opened);
            played.send(json!({ "opened": opened })).await?;
        }
        self.streams.push(played);
        Ok(())
    }
}

impl Played {
    async fn send(&mut self, value: Value) -> anyhow::Result<()> {
        let response: wire::SubscribeResponse = frame::parse("SubscribeResponse", value)?;
        let sent = self.stream.outbound.send(Ok(response)).await;
        sent.map_err(|_| anyhow!("the worker has ended the stream"))
    }

    async fn deliver(&mut self, jobs: &[Map<String, Value>]) -> anyhow::Result<()> {
        self.stream.delivery += 1;
        let mut all = Vec::new();
        for fields in jobs {
            let token = fields
                .get("lease_token")
                .and_then(Value::as_str)
                .ok_or_else(|| anyhow!("a job needs a lease_token"))?;
            let usual = frame::show("LeasedJob", &frames::job(token, "echo"))?;
            all.push(frame::over(usual, fields));
        }
        self.send(json!({ "jobs": { "jobs": all, "delivery": self.stream.delivery } }))
            .await
    }

    /// The next frame that matters: not one of [`PASSED_OVER`], unless its kind is wanted. Heartbeats are returned.
    async fn next(&mut self, wanted: &str) -> anyhow::Result<Option<Value>> {
        loop {
            let next = timeout(PATIENCE, self.stream.inbound.message()).await;
            let next = next.map_err(|_| anyhow!("the worker sends nothing"))?;
            let Ok(Some(request)) = next else { return Ok(None) };
            let value = frame::show("SubscribeRequest", &request)?;
            let (kind, _) = frame::one(&value)?;
            if kind == "heartbeat" {
                self.send(json!({ "heartbeat": {} })).await?;
            }
            if kind == wanted || !PASSED_OVER.contains(&kind) {
                return Ok(Some(value));
            }
        }
    }

    async fn expect(&mut self, expected: &Value) -> anyhow::Result<()> {
        let (kind, _) = frame::one(expected)?;
        let actual = self.next(kind).await?;
        let actual = actual.ok_or_else(|| anyhow!("the worker has ended the stream"))?;
        same("frame", expected, &actual)?;
        let (_, content) = frame::one(&actual)?;
        let items = ["settlements", "leases"]
            .iter()
            .find_map(|name| content[*name].as_array());
        self.replied_to = Some((content["sequence"].clone(), items.map_or(0, Vec::len)));
        Ok(())
    }

    async fn reply(&mut self, reply: &Value) -> anyhow::Result<()> {
        let (kind, fields) = frame::one(reply)?;
        let fields = fields.as_object().ok_or_else(|| anyhow!("{reply} is no frame"))?;
        let (sequence, items) = self.replied_to.take().ok_or_else(|| anyhow!("no frame to reply to"))?;
        let usual = json!({ "sequence": sequence, "results": vec![json!({}); items] });
        let content = frame::over(usual, fields);
        self.send(json!({ kind: content })).await
    }

    async fn settled(&mut self, expected: &Map<String, Value>) -> anyhow::Result<()> {
        let mut missing: BTreeSet<&str> = expected.keys().map(String::as_str).collect();
        while !missing.is_empty() {
            let next = self.next("").await?;
            let next = next.ok_or_else(|| anyhow!("the worker has ended the stream; {missing:?} are not settled"))?;
            let (kind, settle) = frame::one(&next)?;
            ensure!(
                kind == "settle",
                "{missing:?} are not settled, and the worker sent {next}"
            );
            let settlements = settle["settlements"].as_array().cloned().unwrap_or_default();
            for settlement in &settlements {
                let token = settlement["lease_token"].as_str().unwrap_or_default();
                ensure!(missing.remove(token), "{settlement} was not expected");
                same(token, &expected[token], settlement)?;
            }
            let results = vec![json!({}); settlements.len()];
            self.send(json!({ "settle_results": { "sequence": settle["sequence"], "results": results } }))
                .await?;
        }
        Ok(())
    }
}

fn same(place: &str, expected: &Value, actual: &Value) -> anyhow::Result<()> {
    match frame::difference(place, expected, actual) {
        None => Ok(()),
        Some(text) => bail!("{text}\nall of it: {actual}"),
    }
}

/// A status code by its name in the gRPC specification.
fn code_named(name: &str) -> anyhow::Result<Code> {
    Ok(match name {
        "INVALID_ARGUMENT" => Code::InvalidArgument,
        "UNAVAILABLE" => Code::Unavailable,
        "INTERNAL" => Code::Internal,
        "RESOURCE_EXHAUSTED" => Code::ResourceExhausted,
        "PERMISSION_DENIED" => Code::PermissionDenied,
        "UNAUTHENTICATED" => Code::Unauthenticated,
        "UNIMPLEMENTED" => Code::Unimplemented,
        _ => bail!("{name} is no status code that a scenario may use"),
    })
}
