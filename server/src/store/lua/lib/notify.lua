-- Notifications over pub/sub: store/redis/pubsub.rs.

local function notify(message) call('PUBLISH', base .. KEY_CHANNEL, message) end

-- Notifies the other brokers, if one listens: a message that only the caller would get costs it and Redis more than the
-- rest of a small call. A broker that listens to a queue also listens to a channel of its own, which tells whether it
-- is among the listeners. (A node of a Cluster counts only its own.)
local function notify_others(broker, message)
  local counts = IN_CLUSTER or call('PUBSUB', 'NUMSUB', base .. KEY_CHANNEL, base .. KEY_CHANNEL .. broker)
  if IN_CLUSTER or counts[2] > counts[4] then notify(message) end
end

-- The earliest due time of the scheduled jobs, to be kept with schedule().
local function earliest_due(scheduled)
  local first = call('ZRANGE', scheduled, '0', '0', 'WITHSCORES')[2]
  return first and tonumber(first)
end

-- Schedules a job, and notifies if it is due before all others. Returns the new earliest due time.
local function schedule(scheduled, earliest, broker, id, due_ms)
  call('ZADD', scheduled, due_ms, id)
  if earliest and due_ms >= earliest then return earliest end
  notify(NOTIFY_DUE_EARLIER .. broker .. string.format('%d', due_ms))
  return due_ms
end

-- Whether a call may wait for the end of a job. `waited_until` is the field of the meta.
local function is_waited_for(waited_until) return waited_until and (tonumber(waited_until) or 0) > now end

-- Notifies the calls that wait for the end of one of these jobs.
local function notify_waiters(waited_until, ids)
  if is_waited_for(waited_until) and #ids > 0 then
    for k, score in ipairs(call('ZMSCORE', base .. KEY_WAITERS, unpack(ids))) do
      if score then notify(NOTIFY_SETTLED .. ids[k]) end
    end
  end
end
