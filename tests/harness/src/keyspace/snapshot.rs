//! All keys of one queue in one moment, decoded (layout: server/src/store/keys.rs).

use std::collections::{BTreeMap, BTreeSet};

use redis::{Value, aio::MultiplexedConnection};

/// Every key under a pattern: name, type, time to live, content. One script, so that nothing changes meanwhile.
const DUMP: &str = r"
local out = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  local kind, content = redis.call('TYPE', key).ok, {}
  if kind == 'string' then content = { redis.call('GET', key) } end
  if kind == 'list' then content = redis.call('LRANGE', key, 0, -1) end
  if kind == 'hash' then content = redis.call('HGETALL', key) end
  if kind == 'zset' then content = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end
  out[#out + 1] = { key, kind, redis.call('PTTL', key), content }
end
return out";

/// The id of a job as it is in Redis; damaged ones too.
pub type Id = Vec<u8>;

/// The state hash of a job.
pub type Fields = BTreeMap<String, Vec<u8>>;

/// An entry of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The flags of the record.
    pub flags: u8,
    /// When the job became ready.
    pub ms: u64,
    /// Which job.
    pub id: Id,
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The nonce of the fetch.
    pub nonce: Vec<u8>,
    /// When the lease was made.
    pub ms: u64,
    /// The flags of the record.
    pub flags: u8,
    /// Whether the worker has confirmed the job.
    pub confirmed: bool,
    /// The name of the worker.
    pub holder: String,
}

/// The keys of a queue.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Records of jobs.
    pub bodies: BTreeMap<Id, Vec<u8>>,
    /// State hashes.
    pub states: BTreeMap<Id, Fields>,
    /// Log lines of jobs, with the time of each.
    pub logs: BTreeMap<Id, Vec<(u64, Vec<u8>)>>,
    /// Entries of each lane, in order.
    pub lanes: BTreeMap<String, Vec<Entry>>,
    /// Lanes that are not empty, with their score.
    pub index: BTreeMap<String, f64>,
    /// Scheduled jobs by due time.
    pub scheduled: BTreeMap<Id, u64>,
    /// Leased jobs.
    pub leases: BTreeMap<Id, Lease>,
    /// Deadlines of leases.
    pub deadlines: BTreeMap<Id, u64>,
    /// Jobs with a `start_by`.
    pub start_by: BTreeMap<Id, u64>,
    /// Dead letters by time.
    pub dead: BTreeMap<Id, u64>,
    /// Settled jobs that are kept, by end of retention.
    pub settled: BTreeMap<Id, u64>,
    /// How many entries of a lane no longer count, by job and lane.
    pub tombstones: BTreeMap<(Id, String), u64>,
    /// Tombstones of each lane.
    pub tombstone_counts: BTreeMap<String, u64>,
    /// Settled ids of the deduplication window, by generation.
    pub memory: BTreeMap<u64, BTreeMap<Id, Vec<u8>>>,
    /// Unique keys and the jobs that hold them.
    pub unique: BTreeMap<String, Id>,
    /// Unique keys that windows hold, their jobs, and when the windows end.
    pub windows: BTreeMap<String, (Id, u64)>,
    /// When the windows of unique keys end, as the set says.
    pub window_ends: BTreeMap<String, u64>,
    /// Jobs in quarantine and the reason.
    pub quarantine: BTreeMap<Id, Vec<u8>>,
    /// Records of jobs in quarantine.
    pub set_aside: BTreeMap<Id, Vec<u8>>,
    /// Entries of jobs that a newer version stored.
    pub newer: Vec<Entry>,
    /// Jobs for whose end a caller waits, and until when.
    pub waiters: BTreeMap<Id, u64>,
    /// Operations.
    pub operations: BTreeMap<String, Fields>,
    /// Operations by when they were started.
    pub operation_index: BTreeMap<String, u64>,
    /// Request ids that are remembered.
    pub requests: BTreeSet<String>,
    /// The meta hash.
    pub meta: Fields,
    /// The version of the policy.
    pub policy: Option<u64>,
    /// Keys of another form.
    pub strange: Vec<String>,
}

/// A key with its content.
#[derive(Debug, PartialEq, Eq)]
pub struct Dumped {
    /// The name of the key.
    pub name: Vec<u8>,
    /// The type of Redis.
    pub kind: String,
    /// Whether it has a time to live.
    pub expires: bool,
    /// Elements, or fields and values, or members and scores.
    pub content: Vec<Vec<u8>>,
}

/// Reads every key whose name begins with `start`.
pub async fn dump(connection: &mut MultiplexedConnection, start: &str) -> Vec<Dumped> {
    let rows: Vec<Value> = redis::cmd("EVAL")
        .arg(DUMP)
        .arg(0)
        .arg(format!("{start}*"))
        .query_async(connection)
        .await
        .expect("Redis answers");
    let mut keys: Vec<Dumped> = rows
        .into_iter()
        .map(|row| {
            let (name, kind, ttl_ms, mut content): (Vec<u8>, String, i64, Vec<Vec<u8>>) =
                redis::from_redis_value(row).expect("a row of the dump");
            if kind == "hash" {
                // Redis gives the fields in any order.
                let mut sorted = pairs(&content);
                sorted.sort();
                content = sorted.into_iter().flat_map(|(field, value)| [field, value]).collect();
            }
            Dumped {
                name,
                kind,
                expires: ttl_ms >= 0,
                content,
            }
        })
        .collect();
    keys.sort_by(|a, b| a.name.cmp(&b.name));
    keys
}

impl Snapshot {
    /// The queue whose keys begin with `base`.
    pub async fn take(connection: &mut MultiplexedConnection, base: &str) -> Self {
        let keys = dump(connection, base).await;
        Self::read(base, &keys)
    }

    /// Decodes the keys of a queue.
    pub fn read(base: &str, keys: &[Dumped]) -> Self {
        let mut all = Self::default();
        for key in keys {
            all.add(&key.name[base.len()..], key);
        }
        all
    }

    /// Adds a key of an operation; false: it is none.
    fn add_operation(&mut self, part: &[u8], key: &Dumped) -> bool {
        match (part, key.kind.as_str()) {
            (b"os", "zset") => {
                let listed = scores(&key.content).into_iter().map(|(id, ms)| (text(&id), ms as u64));
                self.operation_index = listed.collect();
            }
            ([b'o', id @ ..], "hash") if id.len() == 36 => {
                self.operations.insert(text(id), fields(&key.content));
            }
            _ => return false,
        }
        true
    }

    fn add(&mut self, part: &[u8], key: &Dumped) {
        let name = String::from_utf8_lossy(part).into_owned();
        if key.expires != name.starts_with("rq:") {
            self.strange
                .push(format!("{name}: only what a request id led to may, and must, expire"));
        }
        if self.add_operation(part, key) {
            return;
        }
        let content = &key.content;
        match (name.as_str(), key.kind.as_str()) {
            ("i", "zset") => {
                self.index = scores(content)
                    .into_iter()
                    .map(|(lane, ms)| (text(&lane), ms))
                    .collect();
            }
            ("z", "zset") => self.scheduled = times(content),
            ("t", "hash") => {
                self.leases = pairs(content)
                    .into_iter()
                    .map(|(id, value)| (id, lease(&value)))
                    .collect();
            }
            ("l", "zset") => {
                self.deadlines = times(content);
                // The member that is no job: keys.rs.
                self.deadlines.retain(|id, _| id.len() == 16);
            }
            ("b", "zset") => self.start_by = times(content),
            ("x", "zset") => self.dead = times(content),
            ("f", "zset") => self.settled = times(content),
            ("c", "hash") => {
                for (grave, count) in pairs(content) {
                    let (id, lane) = grave.split_at(16);
                    self.tombstones.insert((id.to_vec(), text(lane)), number(&count));
                }
            }
            ("cn", "hash") => {
                self.tombstone_counts = pairs(content)
                    .into_iter()
                    .map(|(lane, n)| (text(&lane), number(&n)))
                    .collect();
            }
            ("u", "hash") => {
                for (key, value) in pairs(content) {
                    match value.split_at_checked(16) {
                        Some((id, until)) if until.len() == 6 => {
                            self.windows.insert(text(&key), (id.to_vec(), big_endian(until)));
                        }
                        _ => drop(self.unique.insert(text(&key), value)),
                    }
                }
            }
            ("ue", "zset") => {
                let ends = scores(content).into_iter();
                self.window_ends = ends.map(|(key, ms)| (text(&key), ms as u64)).collect();
            }
            ("q", "hash") => self.quarantine = pairs(content).into_iter().collect(),
            ("wt", "zset") => self.waiters = times(content),
            ("m", "hash") => self.meta = fields(content),
            ("p", "string") => {
                let version = content[0].split(|byte| *byte == b' ').next().unwrap_or_default();
                self.policy = Some(number(version));
            }
            (_, "string") if part.len() == 17 && part[0] == b'j' => {
                self.bodies.insert(part[1..].to_vec(), content[0].clone());
            }
            (_, _) if part.len() == 18 && part.starts_with(b"qj") => {
                self.set_aside
                    .insert(part[2..].to_vec(), content.first().cloned().unwrap_or_default());
            }
            (_, _) if part.len() == 18 && part.starts_with(b"qs") => {}
            (_, _) if part.starts_with(b"qr:") => {}
            ("nv", "list") => self.newer = content.iter().map(|raw| entry(raw)).collect(),
            (_, "hash") if part.len() == 17 && part[0] == b's' => {
                self.states.insert(part[1..].to_vec(), fields(content));
            }
            (_, "list") if part.len() == 17 && part[0] == b'g' => {
                let line = |raw: &Vec<u8>| (big_endian(&raw[..6]), raw[6..].to_vec());
                self.logs.insert(part[1..].to_vec(), content.iter().map(line).collect());
            }
            (_, "list") if part.starts_with(b"r:") => {
                self.lanes
                    .insert(text(&part[2..]), content.iter().map(|raw| entry(raw)).collect());
            }
            (_, "hash") if part.starts_with(b"rq:") => {
                self.requests.insert(text(&part[3..]));
            }
            (_, "hash") if part[0] == b'd' && part[1..].iter().all(u8::is_ascii_digit) => {
                self.memory
                    .insert(number(&part[1..]), pairs(content).into_iter().collect());
            }
            (_, kind) => self
                .strange
                .push(format!("{name}: a {kind} that keys.rs does not know")),
        }
    }

    /// The entries of a lane without those that have a tombstone, in order.
    pub fn ready_in(&self, lane: &str) -> Vec<&Entry> {
        let mut buried: BTreeMap<&Id, u64> = BTreeMap::new();
        self.lanes
            .get(lane)
            .into_iter()
            .flatten()
            .filter(|entry| {
                let seen = buried.entry(&entry.id).or_default();
                *seen += 1;
                *seen
                    > self
                        .tombstones
                        .get(&(entry.id.clone(), lane.to_owned()))
                        .copied()
                        .unwrap_or(0)
            })
            .collect()
    }

    /// The entry of every ready job.
    pub fn ready(&self) -> Vec<&Entry> {
        self.lanes.keys().flat_map(|lane| self.ready_in(lane)).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A number as Redis writes it.
pub fn number(bytes: &[u8]) -> u64 {
    std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.parse().ok())
        .expect("a number")
}

fn pairs(flat: &[Vec<u8>]) -> Vec<(Vec<u8>, Vec<u8>)> {
    flat.chunks_exact(2)
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect()
}

fn scores(flat: &[Vec<u8>]) -> Vec<(Vec<u8>, f64)> {
    pairs(flat)
        .into_iter()
        .map(|(member, score)| (member, text(&score).parse().expect("a score")))
        .collect()
}

fn times(flat: &[Vec<u8>]) -> BTreeMap<Id, u64> {
    scores(flat).into_iter().map(|(id, score)| (id, score as u64)).collect()
}

fn fields(flat: &[Vec<u8>]) -> Fields {
    pairs(flat)
        .into_iter()
        .map(|(name, value)| (text(&name), value))
        .collect()
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

fn entry(raw: &[u8]) -> Entry {
    assert_eq!(raw.len(), 23, "a lane entry is flags, time and id");
    Entry {
        flags: raw[0],
        ms: big_endian(&raw[1..7]),
        id: raw[7..].to_vec(),
    }
}

fn lease(raw: &[u8]) -> Lease {
    Lease {
        nonce: raw[..16].to_vec(),
        ms: big_endian(&raw[16..22]),
        flags: raw[22],
        confirmed: raw[31] == b'1',
        holder: text(&raw[32..]),
    }
}
