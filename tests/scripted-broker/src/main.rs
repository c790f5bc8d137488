//! `scripted-broker FILE`: plays a scenario to a worker that connects to the printed port.
//!
//! Prints lines of JSON: first `{"address": "127.0.0.1:PORT", "worker": {..}}`, the worker that the scenario needs;
//! later `{"event": "stop"}` when the worker is to be asked to stop. Ends with 0 if the worker did as expected, with 1
//! and the difference on stderr if not, and with 2 if there is no such scenario.
use std::{io::Write as _, path::Path, process::ExitCode};

use bananas_scripted_broker::{
    broker::ScriptedBroker,
    scenario::{Event, Scenario, play},
};
use serde_json::{Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: scripted-broker FILE");
        return ExitCode::from(2);
    };
    let scenario = match Scenario::read(Path::new(&path)) {
        Ok(scenario) => scenario,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::from(2);
        }
    };
    let mut broker = ScriptedBroker::start().await;
    print(&json!({ "address": broker.address().to_string(), "worker": &scenario.worker }));
    let mut tell = |event| match event {
        Event::Stop => print(&json!({ "event": "stop" })),
    };
    match play(&mut broker, &scenario, &mut tell).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}\n{error:#}", scenario.fact);
            ExitCode::FAILURE
        }
    }
}

/// The caller reads it at once. Without a reader, the scenario shows what the worker does anyway.
fn print(line: &Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
