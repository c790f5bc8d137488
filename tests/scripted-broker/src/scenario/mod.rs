//! Scenarios: a conversation between a worker and a broker as data. `tests/conformance/README.md` describes the format.
mod frame;
mod play;

use std::{fs, path::Path, time::Duration};

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Map, Value};

pub use play::{Event, play};

/// A scenario.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The fact that it proves, in one sentence.
    pub fact: String,
    /// The worker that it needs.
    pub worker: WorkerSettings,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// The worker that a scenario needs. Its handlers are those of the conformance worker.
#[derive(Debug, Clone, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerSettings {
    /// The job types that it handles, each with the behaviour of that name.
    pub handlers: Vec<String>,
    /// How many jobs it runs at a time.
    #[serde(default = "ten")]
    pub concurrency: u32,
    /// Its queues; the default of the library if empty.
    #[serde(default)]
    pub routing_keys: Vec<String>,
}

fn ten() -> u32 {
    10
}

/// One step, on one stream.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct Step {
    /// The name of the stream (`accept` may give it one); the newest one if absent.
    pub on: Option<String>,
    /// What happens.
    pub action: Action,
}

impl TryFrom<Map<String, Value>> for Step {
    type Error = serde_json::Error;

    fn try_from(mut fields: Map<String, Value>) -> Result<Self, Self::Error> {
        let on = fields.remove("on").map(serde_json::from_value).transpose()?;
        let action = serde_json::from_value(Value::Object(fields))?;
        Ok(Self { on, action })
    }
}

/// What happens in a step.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The worker opens a stream, and the broker opens the session or refuses.
    Accept(Accept),
    /// The broker sends a frame.
    Send(Value),
    /// The broker delivers jobs: fields of `LeasedJob`, with defaults for those that are absent.
    Deliver(Vec<Map<String, Value>>),
    /// The next frame of the worker has these fields.
    Expect(Value),
    /// The broker replies to the frame that was expected last: its sequence, and an empty result for each item unless
    /// there are others.
    Reply(Value),
    /// The worker settles these leases, in any number of frames and in any order; each settlement is applied.
    Settled(Map<String, Value>),
    /// The broker ends the stream with this status code.
    Break(String),
    /// The worker closes its side, without another frame.
    HalfClosed(Nothing),
    /// For this time the worker sends nothing but heartbeats, confirmations and changes of its window.
    Quiet(#[serde(deserialize_with = "humane")] Duration),
    /// The test asks the worker to stop, as by SIGTERM.
    Stop(Nothing),
}

/// The value of an action that needs none: `{}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// A stream that the worker opens.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Accept {
    /// Its name, for later steps.
    pub name: Option<String>,
    /// Fields of the frame `open`.
    pub open: Map<String, Value>,
    /// Fields of the frame `opened` that the broker sends, beside the usual ones.
    pub opened: Map<String, Value>,
    /// End the stream with this status code, without opening the session.
    pub refuse: Option<String>,
    /// Do not open the session: a later step does, or nothing.
    pub leave: bool,
}

impl Scenario {
    /// Reads a scenario in YAML.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let value: Value = serde_saphyr::from_str(text)?;
        Ok(serde_json::from_value(value)?)
    }

    /// Reads a file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }
}

/// A time like `500ms` or `2s`.
fn humane<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = match text.strip_suffix("ms") {
        Some(number) => number.parse().ok().map(Duration::from_millis),
        None => text
            .strip_suffix('s')
            .and_then(|number| number.parse().ok())
            .map(Duration::from_secs),
    };
    parsed.ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no time like 500ms or 2s")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(step: &str) -> anyhow::Result<Scenario> {
        Scenario::parse(&format!("fact: f\nworker: {{ handlers: [] }}\nsteps:\n  - {step}\n"))
    }

    #[test]
    fn a_step_has_one_action_and_may_name_its_stream() {
        let step = scenario("{ on: first, break: UNAVAILABLE }").unwrap().steps.remove(0);
        assert_eq!(step.on.as_deref(), Some("first"));
        assert!(matches!(step.action, Action::Break(code) if code == "UNAVAILABLE"));
        for wrong in [
            "{ brake: UNAVAILABLE }",
            "{ stop: {}, quiet: 1s }",
            "{ quiet: soon }",
            "{ accept: { nam: x } }",
        ] {
            assert!(scenario(wrong).is_err(), "{wrong}");
        }
    }
}
