//! `AuditQueue`: runs an audit in a task and streams what it tells.

use std::{pin::Pin, sync::Arc};

use bananas_proto::server::{self as pb, audit_queue_response::Event};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::{
    broker::Broker,
    domain::{Error, RoutingKey},
    store::{AuditEvent, AuditOptions, AuditProgress, AuditSummary, Finding, FindingKind},
};

/// Events that wait for a slow caller: then the audit waits, too.
const MOST_UNSENT: usize = 64;

/// What the caller gets.
pub(super) type Events = Pin<Box<dyn Stream<Item = Result<pb::AuditQueueResponse, Status>> + Send>>;

/// Starts an audit. It ends when its caller goes away or the broker drains.
pub(super) fn start(broker: &Arc<Broker>, request: &pb::AuditQueueRequest) -> Result<Events, Error> {
    let name = RoutingKey::parse(&request.routing_key)?;
    if broker.draining.is_cancelled() {
        return Err(Error::ShuttingDown);
    }
    let place = broker.audits.begin(&name);
    let place = place.ok_or_else(|| Error::AuditRunning(name.to_string()))?;
    let (events, told) = mpsc::channel(MOST_UNSENT);
    let (end, ended) = oneshot::channel();
    let (broker, repair) = (broker.clone(), request.repair);
    tokio::spawn(async move {
        let _place = place;
        let result = tokio::select! {
            () = events.closed() => return,
            () = broker.draining.cancelled() => Err(Error::ShuttingDown),
            result = audit(&broker, &name, repair, &events) => result,
        };
        // The caller may have gone away just now.
        let _ = end.send(result);
    });
    let events = ReceiverStream::new(told).map(|event| Ok(response(event_of(event))));
    let last = stream::once(async move {
        let result = ended.await.unwrap_or(Err(Error::ShuttingDown));
        Ok(response(Event::Summary(summary_of(&result?))))
    });
    Ok(Box::pin(events.chain(last)))
}

async fn audit(
    broker: &Broker,
    name: &RoutingKey,
    repair: bool,
    events: &mpsc::Sender<AuditEvent>,
) -> Result<AuditSummary, Error> {
    let options = AuditOptions {
        repair,
        ..AuditOptions::default()
    };
    let summary = broker.store.audit(&broker.store.keys(name), options, events).await?;
    if summary.progress.keys == 0 && !broker.store.is_registered(name).await? {
        return Err(Error::QueueNotFound(name.to_string()));
    }
    let findings: u64 = summary.found.values().sum();
    tracing::info!(queue = %name, findings, repaired = summary.repaired, "queue audited");
    if summary.repaired > 0 {
        // What was put back may be due, and consumers wait for it.
        let queue = broker.queues.get(name);
        queue.ensure_registered().await?;
        queue.due_within(0);
        queue.waiters().missed();
    }
    Ok(summary)
}

fn response(event: Event) -> pb::AuditQueueResponse {
    pb::AuditQueueResponse { event: Some(event) }
}

fn event_of(event: AuditEvent) -> Event {
    match event {
        AuditEvent::Progress(progress) => Event::Progress(progress_of(progress)),
        AuditEvent::Finding(finding) => Event::Finding(finding_of(finding)),
    }
}

const fn progress_of(progress: AuditProgress) -> pb::AuditProgress {
    pb::AuditProgress {
        pass: progress.pass,
        passes: progress.passes,
        keys: progress.keys,
        entries: progress.entries,
    }
}

fn finding_of(finding: Finding) -> pb::AuditFinding {
    pb::AuditFinding {
        kind: kind_of(finding.kind).into(),
        job_id: finding.job_id.map(|id| id.to_string()).unwrap_or_default(),
        name: finding.name,
        detail: finding.detail,
        remedy: finding.remedy.unwrap_or_default(),
        repaired: finding.repaired,
    }
}

fn summary_of(summary: &AuditSummary) -> pb::AuditSummary {
    let found = summary.found.iter().map(|(kind, findings)| pb::FindingCount {
        kind: kind_of(*kind).into(),
        findings: *findings,
    });
    pb::AuditSummary {
        seen: Some(progress_of(summary.progress)),
        found: found.collect(),
        repaired: summary.repaired,
    }
}

const fn kind_of(kind: FindingKind) -> pb::FindingKind {
    match kind {
        FindingKind::NoPlace => pb::FindingKind::NoPlace,
        FindingKind::NoRecord => pb::FindingKind::NoRecord,
        FindingKind::SeveralPlaces => pb::FindingKind::SeveralPlaces,
        FindingKind::WrongLane => pb::FindingKind::WrongLane,
        FindingKind::UnreadableRecord => pb::FindingKind::UnreadableRecord,
        FindingKind::WrongFinalState => pb::FindingKind::WrongFinalState,
        FindingKind::StateWithoutJob => pb::FindingKind::StateWithoutJob,
        FindingKind::LogWithoutJob => pb::FindingKind::LogWithoutJob,
        FindingKind::UnmarkedState => pb::FindingKind::UnmarkedState,
        FindingKind::NoDeadline => pb::FindingKind::NoDeadline,
        FindingKind::DeadlineWithoutLease => pb::FindingKind::DeadlineWithoutLease,
        FindingKind::StrayStartBy => pb::FindingKind::StrayStartBy,
        FindingKind::UniqueKeyOfNobody => pb::FindingKind::UniqueKeyOfNobody,
        FindingKind::UniqueKeyWindow => pb::FindingKind::UniqueKeyWindow,
        FindingKind::UniqueKeyLost => pb::FindingKind::UniqueKeyLost,
        FindingKind::LaneIndex => pb::FindingKind::LaneIndex,
        FindingKind::Tombstones => pb::FindingKind::Tombstones,
        FindingKind::TombstoneCount => pb::FindingKind::TombstoneCount,
        FindingKind::Policy => pb::FindingKind::Policy,
        FindingKind::OldMemory => pb::FindingKind::OldMemory,
        FindingKind::Quarantine => pb::FindingKind::Quarantine,
        FindingKind::Expiry => pb::FindingKind::Expiry,
        FindingKind::ForeignType => pb::FindingKind::ForeignType,
        FindingKind::MalformedEntry => pb::FindingKind::MalformedEntry,
        FindingKind::UnknownKey => pb::FindingKind::UnknownKey,
    }
}
