-- The index of all operations, and the turn: one broker at a time runs one step of one operation, and all steps
-- together use at most a tenth of the time of Redis (docs/decisions/0017). Applies what a broker reports, then gives it
-- an operation whose next step is due, if it is time for one.
-- KEYS  operations of all queues: <routing key>:<id> by the ms of the next step; plus half a ms if the last step found
--       no operation to continue. TURN is no operation: its score is the microsecond from which the next step may begin
-- ARGV  1 to take a turn or 0, then reports, each with the member:
--         TURN_ADD, member: it is about to be started or resumed, or it exists
--         TURN_NEXT, member, microseconds of the step, ms until the next step
--         TURN_IDLE, member, microseconds of the step: there was no operation to continue
--         TURN_GONE, member, microseconds of the step: there is no such operation any more
-- RETURNS {microseconds until it is time to ask again or -1 if there is no operation, member or ''}
-- MOVES  -
local index = KEYS[1]
touch(index)
local before = tonumber(call('ZSCORE', index, TURN) or nil)
local free = before or 0

local at = 2
while ARGV[at] do
  local kind, member = ARGV[at], ARGV[at + 1]
  local used_us = tonumber(ARGV[at + 2])
  if kind == TURN_ADD then
    call('ZADD', index, now, member)
    at = at + 2
  else
    if before then free = free + used_us * TURN_PACE - TURN_RESERVED_US end
    if kind == TURN_NEXT then
      call('ZADD', index, now + tonumber(ARGV[at + 3]), member)
      at = at + 4
    else
      local score = tonumber(call('ZSCORE', index, member) or 0)
      if kind == TURN_IDLE and score > 0 and score % 1 == 0 then
        -- It may be about to be written.
        call('ZADD', index, now + TURN_IDLE_MS + 0.5, member)
      else
        call('ZREM', index, member)
      end
      at = at + 3
    end
  end
end

local first = call('ZRANGE', index, '0', '0', 'WITHSCORES')
local wait_us, member = -1, ''
if first[1] and first[1] ~= TURN then
  wait_us = max(0, floor((tonumber(first[2]) - now) * 1000), free - now_us)
  if wait_us == 0 and ARGV[1] == '1' then
    member = first[1]
    -- Another broker takes it if this one does not report.
    call('ZADD', index, now + TURN_LEFT_MS + tonumber(first[2]) % 1, member)
    free = now_us + TURN_RESERVED_US
  end
  if free ~= (before or 0) then call('ZADD', index, string.format('%d', free), TURN) end
elseif before then
  call('ZREM', index, TURN)
end
return { wait_us, member }
