//! Looks at every key of a queue, in one moment, and says what does not fit: a job in two places or in none, a body without a place, a
//! place without a body, a lock without an owner. What each key is, is written in the broker's store/keys.rs.
use std::collections::{BTreeMap, BTreeSet};

use redis::{Value, aio::MultiplexedConnection};

/// The default of `redis.key_prefix`.
const PREFIX: &str = "bn";

/// Everything under a pattern, as it is in one moment: key, type, time to live, content.
const DUMP: &str = r"
local out = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  local kind, content = redis.call('TYPE', key).ok, {}
  if kind == 'list' then content = redis.call('LRANGE', key, 0, -1) end
  if kind == 'hash' then content = redis.call('HGETALL', key) end
  if kind == 'zset' then content = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end
  out[#out + 1] = { key, kind, redis.call('PTTL', key), content }
end
return out";

/// A job's id as it is in Redis.
type Id = Vec<u8>;

/// How many jobs are where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// In a lane, and to be delivered.
    pub ready: usize,
    /// Waiting for their time.
    pub scheduled: usize,
    /// Leased.
    pub leased: usize,
    /// Dead letters.
    pub dead: usize,
    /// Settled and retained.
    pub settled: usize,
    /// Set aside.
    pub quarantined: usize,
    /// What does not fit.
    pub violations: Vec<String>,
}

#[derive(Debug)]
struct Dumped {
    name: Vec<u8>,
    kind: String,
    expires: bool,
    content: Vec<Vec<u8>>,
}

/// Audits one queue. Nothing may be wrong.
pub async fn audit(connection: &mut MultiplexedConnection, routing_key: &str) -> Audit {
    let found = inspect(connection, routing_key).await;
    assert!(
        found.violations.is_empty(),
        "the keys of {routing_key} do not fit: {found:#?}"
    );
    found
}

/// Audits one queue and says what is wrong.
pub async fn inspect(connection: &mut MultiplexedConnection, routing_key: &str) -> Audit {
    let base = format!("{PREFIX}:{{{routing_key}}}:");
    let dumped = dump(connection, &format!("{base}*")).await;
    Queue::read(base.as_bytes(), dumped).audit()
}

async fn dump(connection: &mut MultiplexedConnection, pattern: &str) -> Vec<Dumped> {
    let reply: Vec<Value> = redis::cmd("EVAL")
        .arg(DUMP)
        .arg(0)
        .arg(pattern)
        .query_async(connection)
        .await
        .expect("Redis answers");
    reply
        .into_iter()
        .map(|row| {
            let (name, kind, ttl_ms, content): (Vec<u8>, String, i64, Vec<Vec<u8>>) =
                redis::from_redis_value(row).expect("a row of the dump");
            Dumped {
                name,
                kind,
                expires: ttl_ms >= 0,
                content,
            }
        })
        .collect()
}

/// The keys of a queue, sorted by what they are.
#[derive(Debug, Default)]
struct Queue {
    bodies: BTreeSet<Id>,
    states: BTreeMap<Id, BTreeMap<Vec<u8>, Vec<u8>>>,
    /// Lane name to the ids in it, and how often each.
    lanes: BTreeMap<Vec<u8>, Vec<Id>>,
    hashes: BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>,
    sets: BTreeMap<String, BTreeSet<Vec<u8>>>,
    violations: Vec<String>,
}

impl Queue {
    fn read(base: &[u8], dumped: Vec<Dumped>) -> Self {
        let mut queue = Self::default();
        for key in dumped {
            let part = key.name[base.len()..].to_vec();
            let text = String::from_utf8_lossy(&part).into_owned();
            if key.expires && !text.starts_with("rq:") {
                queue
                    .violations
                    .push(format!("{text} expires, and with it what it holds"));
            }
            match (key.kind.as_str(), part.first()) {
                ("string", Some(b'j')) => drop(queue.bodies.insert(part[1..].to_vec())),
                ("hash", Some(b's')) => drop(queue.states.insert(part[1..].to_vec(), pairs(key.content))),
                ("list", Some(b'r')) => {
                    let ids = key
                        .content
                        .iter()
                        .map(|entry| entry.get(7..).unwrap_or_default().to_vec())
                        .collect();
                    queue.lanes.insert(part[2..].to_vec(), ids);
                }
                ("hash", _) => drop(queue.hashes.insert(text, pairs(key.content))),
                ("zset", _) => drop(queue.sets.insert(text, pairs(key.content).into_keys().collect())),
                (kind, _) => queue.violations.push(format!("{text} is a {kind}")),
            }
        }
        queue
    }

    fn set(&self, part: &str) -> BTreeSet<Vec<u8>> {
        self.sets.get(part).cloned().unwrap_or_default()
    }

    fn hash(&self, part: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
        self.hashes.get(part).cloned().unwrap_or_default()
    }

    fn audit(mut self) -> Audit {
        let (scheduled, dead, settled) = (self.set("z"), self.set("x"), self.set("f"));
        let leased: BTreeSet<Id> = self.hash("t").into_keys().collect();
        let mut wrong = std::mem::take(&mut self.violations);

        // A settled entry that is still in its lane has a tombstone: its id and lane, and how many such entries there are.
        let mut graves: BTreeMap<Vec<u8>, usize> = self
            .hash("c")
            .into_iter()
            .map(|(entry, count)| (entry, number(&count)))
            .collect();
        let buried: usize = graves.values().sum();
        let mut places: BTreeMap<&Id, Vec<&str>> = BTreeMap::new();
        for (lane, ids) in &self.lanes {
            for id in ids {
                // The entries of one id in one lane: those that came first are the dead ones.
                match graves.get_mut(&[id.as_slice(), lane].concat()) {
                    Some(left) if *left > 0 => *left -= 1,
                    _ => places.entry(id).or_default().push("a lane"),
                }
            }
        }
        let ready = places.len();
        for (place, ids) in [
            ("scheduled", &scheduled),
            ("leased", &leased),
            ("dead", &dead),
            ("settled", &settled),
        ] {
            for id in ids {
                places.entry(id).or_default().push(place);
            }
        }
        for (id, found) in &places {
            if found.len() > 1 {
                wrong.push(format!("{} is in {} places: {found:?}", hex(id), found.len()));
            }
            if !self.bodies.contains(*id) {
                wrong.push(format!("{} is in {found:?} and has no body", hex(id)));
            }
        }
        for id in &self.bodies {
            if !places.contains_key(id) {
                wrong.push(format!("{} has a body and is nowhere", hex(id)));
            }
        }

        // One member is no job: it keeps the set out of its small encoding.
        let deadlines: BTreeSet<Vec<u8>> = self.set("l").into_iter().filter(|id| id.len() == 16).collect();
        if deadlines != leased {
            wrong.push(format!(
                "{} leases and {} deadlines, not of the same jobs",
                leased.len(),
                deadlines.len()
            ));
        }
        let indexed = self.set("i");
        let lanes: BTreeSet<Vec<u8>> = self.lanes.keys().cloned().collect();
        if indexed != lanes {
            wrong.push(format!(
                "lanes {} and their index {} differ",
                names(&lanes),
                names(&indexed)
            ));
        }
        let missing: usize = graves.values().sum();
        if missing > 0 {
            wrong.push(format!("{missing} of {buried} tombstones have no entry in their lane"));
        }
        let counted: usize = self.hash("cn").values().map(|count| number(count)).sum();
        if counted != buried {
            wrong.push(format!("{buried} tombstones, and {counted} are counted"));
        }

        let final_places = [&dead, &settled];
        for (id, state) in &self.states {
            if !self.bodies.contains(id) {
                wrong.push(format!("{} has a state hash and no body", hex(id)));
            }
            let is_final = final_places.iter().any(|place| place.contains(id));
            if state.contains_key(&b"st"[..]) != is_final {
                wrong.push(format!(
                    "{} is in a final place: {is_final}, and its state hash says otherwise",
                    hex(id)
                ));
            }
        }
        for (key, id) in self.hash("u") {
            let lives = places.contains_key(&id) && !final_places.iter().any(|place| place.contains(&id));
            if !lives {
                wrong.push(format!(
                    "the unique key {} is held by {}, which does not live",
                    names(&[key].into()),
                    hex(&id)
                ));
            }
        }
        for id in self.set("b") {
            if !(scheduled.contains(&id) || self.lanes.values().flatten().any(|other| *other == id)) {
                wrong.push(format!("{} has a start_by and does not wait to be started", hex(&id)));
            }
        }
        Audit {
            ready,
            scheduled: scheduled.len(),
            leased: leased.len(),
            dead: dead.len(),
            settled: settled.len(),
            quarantined: self.hash("q").len(),
            violations: wrong,
        }
    }
}

fn pairs(flat: Vec<Vec<u8>>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut flat = flat.into_iter();
    let mut pairs = BTreeMap::new();
    while let (Some(field), Some(value)) = (flat.next(), flat.next()) {
        pairs.insert(field, value);
    }
    pairs
}

fn number(text: &[u8]) -> usize {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .expect("a count is a number")
}

fn hex(id: &[u8]) -> String {
    uuid::Uuid::from_slice(id).map_or_else(|_| format!("{id:02x?}"), |id| id.to_string())
}

fn names(names: &BTreeSet<Vec<u8>>) -> String {
    let names: Vec<_> = names.iter().map(|name| String::from_utf8_lossy(name)).collect();
    format!("{names:?}")
}
