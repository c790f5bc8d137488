//! `ListJobs`: pages of the jobs of a filter.

use std::time::{Duration, Instant};

use bananas_proto::server as pb;
use prost::Message as _;

use super::{
    Service, convert,
    job::job,
    pages::{page_size, read_bytes, token, wrong_token},
};
use crate::{
    domain::{Error, JobFilter, RoutingKey, filter::Place, limits as bound},
    store::{ListPart, Listed, View, is_cursor},
};

/// Script calls of one page, at most.
const CALLS: usize = 20;
/// A page that is not full after this long is returned as it is.
const LONGEST: Duration = Duration::from_millis(50);
/// The form of a page token: this byte, the fingerprint of the call (8), where the next page begins.
const TOKEN_VERSION: u8 = 1;
const FINGERPRINT_END: usize = 9;

impl Service {
    pub(super) async fn list(&self, request: pb::ListJobsRequest) -> Result<pb::ListJobsResponse, Error> {
        let key = RoutingKey::parse(&request.routing_key)?;
        let filter = convert::job_filter(request.filter.as_ref(), "filter")?;
        check_order(&filter, request.newest_first)?;
        let view = convert::view(request.view, View::Basic)?;
        let size = page_size(request.page_size)?;
        let fingerprint = fingerprint(&request);
        let mut cursor = read_token(&request.page_token, fingerprint)?;
        if !is_cursor(&filter, &cursor) {
            return Err(wrong_token());
        }
        let keys = self.0.store.keys(&key);
        let (mut found, mut examined, mut bytes, started) = (Vec::new(), 0, 0, Instant::now());
        for _ in 0..CALLS {
            let part = ListPart {
                filter: &filter,
                view,
                cursor: &cursor,
                newest_first: request.newest_first,
                most: size - found.len(),
                max_bytes: bound::LIST_BYTES - bytes,
            };
            let step = self.0.store.list(&keys, &part).await?;
            examined += step.looked as u64;
            for listed in step.jobs {
                let job = self.listed(&key, listed, view).await?;
                bytes += job.encoded_len();
                found.push(job);
            }
            cursor = step.cursor.to_vec();
            if cursor.is_empty() || found.len() >= size || bytes >= bound::LIST_BYTES || started.elapsed() >= LONGEST {
                break;
            }
        }
        let next_page_token = if cursor.is_empty() {
            String::new()
        } else {
            token(&[&[TOKEN_VERSION][..], &fingerprint.to_be_bytes(), &cursor].concat())
        };
        Ok(pb::ListJobsResponse {
            jobs: found,
            next_page_token,
            examined,
        })
    }

    /// A job of a list. If the beginning of its record is not enough for the view, this reads more of it.
    async fn listed(&self, key: &RoutingKey, mut listed: Listed, view: View) -> Result<pb::Job, Error> {
        let record = listed.job.record.as_ref();
        if view == View::Basic && record.is_some_and(|record| convert::spec(key, listed.id, record, view).is_none()) {
            let store = &self.0.store;
            listed.job.record = Some(store.record_without_payload(&store.keys(key), listed.id).await?);
        }
        Ok(job(key, listed.id, listed.job, view))
    }
}

/// The newest first is an order only where times do not change all the time.
fn check_order(filter: &JobFilter, newest_first: bool) -> Result<(), Error> {
    if newest_first && !filter.job_ids.is_empty() {
        return Err(Error::invalid(
            "newest_first",
            "is not possible with filter.job_ids: they come as given",
        ));
    }
    if newest_first && filter.place() == Some(Place::Leased) {
        let problem = "is not possible for LEASED jobs: their leases are renewed, so jobs would be left out";
        return Err(Error::invalid("newest_first", problem));
    }
    Ok(())
}

/// What a page token is valid for: the queue, the filter and the order. Brokers of two versions make the same one.
fn fingerprint(request: &pb::ListJobsRequest) -> u64 {
    let mut filter = request.filter.clone().unwrap_or_default();
    let mut labels: Vec<(String, String)> = std::mem::take(&mut filter.labels).into_iter().collect();
    labels.sort_unstable();
    let mut bytes = filter.encode_to_vec();
    for text in labels
        .iter()
        .flat_map(|(key, value)| [key, value])
        .chain([&request.routing_key])
    {
        bytes.extend((text.len() as u64).to_be_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes.push(request.newest_first.into());
    convert::hash(&bytes)
}

/// The cursor of a token.
fn read_token(token: &str, fingerprint: u64) -> Result<Vec<u8>, Error> {
    if token.is_empty() {
        return Ok(Vec::new());
    }
    let bytes = read_bytes(token)?;
    let (head, cursor) = bytes.split_at_checked(FINGERPRINT_END).ok_or_else(wrong_token)?;
    if head[0] != TOKEN_VERSION || head[1..] != fingerprint.to_be_bytes() || cursor.is_empty() {
        return Err(wrong_token());
    }
    Ok(cursor.to_vec())
}
