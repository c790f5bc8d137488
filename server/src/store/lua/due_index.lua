-- The list of queues: which there are, and when each is to be looked after. Takes up what is told of them, and hands out what is due to one broker only.
-- KEYS  names (every score 0), due times: a whole number of ms; with half a ms on top, nothing falls due then, and the queue may be forgotten if nothing is left in it
-- ARGV  queues to take at most, ms that a queue is left to whoever took it, ms until a queue that is used is looked after, then what is told, each with the name of a queue:
--         'u', name: it is used, a job is about to be stored
--         'k', name: it is there
--         'd', name, ms: something falls due in it so many ms from now
--         'v', name, score when taken or '', ms of the visit, next score or '': it was looked after, and is gone if there is no next score
-- RETURNS {now ms, number of queues, ms until the first is due or -1, name and score of each queue that was taken...}
-- MOVES  -
local take, left_ms, use_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
touch(KEYS[1], KEYS[2])
local function plan(name, score) call('ZADD', KEYS[2], score, name) end

local at = 4
while ARGV[at] do
  local kind, name = ARGV[at], ARGV[at + 1]
  local score = tonumber(call('ZSCORE', KEYS[2], name) or nil)
  if kind == 'u' then
    call('ZADD', KEYS[1], '0', name)
    if not score or score > now + use_ms then
      plan(name, now + use_ms)
    elseif score % 1 > 0 then
      -- Used since it was planned: not to be forgotten then, nor by whoever has taken it.
      plan(name, floor(score))
    end
    at = at + 2
  elseif kind == 'k' then
    call('ZADD', KEYS[1], '0', name)
    if not score then plan(name, now + use_ms) end
    at = at + 2
  elseif kind == 'd' then
    local due = now + tonumber(ARGV[at + 2])
    if not score then call('ZADD', KEYS[1], '0', name) end
    if not score or due < score then
      plan(name, due)
    elseif score <= now + left_ms then
      -- Somebody may look after it right now and not have seen this: what that visit plans is not to count.
      plan(name, score - 1)
    end
    at = at + 3
  else
    local taken, visited, next_score = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
    if not next_score then
      if score and score == taken then
        call('ZREM', KEYS[2], name)
        call('ZREM', KEYS[1], name)
      end
    else
      if not score then call('ZADD', KEYS[1], '0', name) end
      -- What was told since the visit is sooner than it knew.
      if not score or score == taken or score <= visited or next_score < score then plan(name, next_score) end
    end
    at = at + 5
  end
end

local answer = { now, 0, -1 }
if take > 0 then
  local due = call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'WITHSCORES', 'LIMIT', 0, take)
  for k = 1, #due, 2 do
    local score = now + left_ms + tonumber(due[k + 1]) % 1
    plan(due[k], score)
    answer[#answer + 1] = due[k]
    answer[#answer + 1] = string.format('%.1f', score)
  end
end
answer[2] = call('ZCARD', KEYS[2])
local first = call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
if first then answer[3] = max(0, floor(tonumber(first) - now)) end
return answer
