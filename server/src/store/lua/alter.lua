-- Does one act on jobs by their ids, one whole move after the other.
-- KEYS  meta
-- ARGV  broker, act (ACT_), deduplication window ms, failure retention ms, two parameters (of REDRIVE: priority digit
--       or '', delay ms; of CANCEL: reason, grace ms; of REPRIORITIZE: priority digit; of EXPIRE_LEASE: '1' if the job
--       goes back as if it had not been delivered; else ''), then per job: id; of EDIT and RESTAMP also etag, record
-- RETURNS {per job: outcome (OUTCOME_), letter of its state or '', id of the job that has its unique key or ''}
-- MOVES  READY → READY, READY → CANCELLED, SCHEDULED → READY, SCHEDULED → CANCELLED, LEASED → READY, DEAD → READY,
--        DEAD → SCHEDULED, CANCELLED → READY, CANCELLED → SCHEDULED, EXPIRED → READY, EXPIRED → SCHEDULED,
--        READY → -, SCHEDULED → -, SUCCEEDED → -, DEAD → -, CANCELLED → -, EXPIRED → -
local kind, one, other = ARGV[2], ARGV[5], ARGV[6]
local params = {
  broker = ARGV[1], window_ms = tonumber(ARGV[3]), failure_retention = tonumber(ARGV[4]),
  priority = one, delay_ms = other, reason = one, grace_ms = tonumber(other), without_loss = one == '1',
}
local stride = (kind == ACT_EDIT or kind == ACT_RESTAMP) and 3 or 1
local reply = {}
for at = 7, #ARGV, stride do
  params.etag, params.record = ARGV[at + 1], ARGV[at + 2]
  local n = #reply
  reply[n + 1], reply[n + 2], reply[n + 3] = act(kind, ARGV[at], params)
end
return reply
