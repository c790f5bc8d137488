-- The due index: which queues there are, and when maintenance of each is to run. Applies reports about queues, and
-- gives those that are due to one broker only.
-- KEYS  names (every score 0), due times: a whole number of ms; with half a ms on top, nothing falls due then, and the
--       queue may be forgotten if nothing is left in it
-- ARGV  queues to take at most, ms that a queue is left to the broker that took it, ms until a queue that is used is
--       due, then reports, each with the name of a queue:
--         DUE_USED, name: a job is about to be stored in it
--         DUE_KNOWN, name: it exists
--         DUE_WITHIN, name, ms: something falls due in it, so many ms from now
--         DUE_DELETED, name: an operation has deleted it
--         DUE_MAINTAINED, name, score when taken or '', ms of the run, next score or '': its maintenance has run;
--           without a next score the queue is gone
-- RETURNS {now ms, number of queues, ms until the first is due or -1, name and score of each queue that was taken...}
-- MOVES  -
local take, left_ms, use_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
touch(KEYS[1], KEYS[2])
local function list(name) call('ZADD', KEYS[1], '0', name) end
local function plan(name, score) call('ZADD', KEYS[2], score, name) end

local function note_used(name, score)
  list(name)
  if not score or score > now + use_ms then
    plan(name, now + use_ms)
  elseif score % 1 > 0 then
    -- Used since it was planned: it must not be forgotten then, nor by the broker that has taken it.
    plan(name, floor(score))
  end
end

local function note_known(name, score)
  list(name)
  if not score then plan(name, now + use_ms) end
end

local function note_due(name, score, due)
  if not score then list(name) end
  if not score or due < score then
    plan(name, due)
  elseif score <= now + left_ms then
    -- A broker may be at it right now and not have seen this: what that run plans must not count.
    plan(name, score - 1)
  end
end

local function note_maintained(name, score, taken, run_ms, next_score)
  if next_score then
    -- It was taken, is on no list any more, and nothing falls due in it: it was deleted meanwhile.
    if not score and taken and next_score % 1 > 0 then return end
    if not score then list(name) end
    -- What was reported since the run is sooner than the run knew.
    if not score or score == taken or score <= run_ms or next_score < score then plan(name, next_score) end
  elseif score and score == taken then
    call('ZREM', KEYS[2], name)
    call('ZREM', KEYS[1], name)
  end
end

local at = 4
while ARGV[at] do
  local kind, name = ARGV[at], ARGV[at + 1]
  local score = tonumber(call('ZSCORE', KEYS[2], name) or nil)
  if kind == DUE_USED then
    note_used(name, score)
    at = at + 2
  elseif kind == DUE_KNOWN then
    note_known(name, score)
    at = at + 2
  elseif kind == DUE_DELETED then
    call('ZREM', KEYS[2], name)
    call('ZREM', KEYS[1], name)
    at = at + 2
  elseif kind == DUE_WITHIN then
    note_due(name, score, now + tonumber(ARGV[at + 2]))
    at = at + 3
  else
    note_maintained(name, score, tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]))
    at = at + 5
  end
end

local reply = { now, 0, -1 }
if take > 0 then
  local due = call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'WITHSCORES', 'LIMIT', '0', take)
  for k = 1, #due, 2 do
    local score = now + left_ms + tonumber(due[k + 1]) % 1
    plan(due[k], score)
    reply[#reply + 1] = due[k]
    reply[#reply + 1] = string.format('%.1f', score)
  end
end
reply[2] = call('ZCARD', KEYS[2])
local first = call('ZRANGE', KEYS[2], '0', '0', 'WITHSCORES')[2]
if first then reply[3] = max(0, floor(tonumber(first) - now)) end
return reply
