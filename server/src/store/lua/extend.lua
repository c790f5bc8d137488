-- Prolongs (or shortens) leases and keeps progress.
-- KEYS  meta, leases, lease deadlines
-- ARGV  default attempt timeout ms, then per lease: id, nonce, duration ms, only if the deadline is this ms ('' always), progress ('' none, else percent), progress message, checkpoint
-- RETURNS {now ms, per lease: remaining ms, or -1 lost, or -2 attempt timeout reached; {number of the lease, cancel reason}...}
-- MOVES  -
local default_timeout = tonumber(ARGV[1])
local count = (#ARGV - 1) / 7
local ids = {}
for k = 1, count do ids[k] = ARGV[7 * k - 5] end

-- decide
local values = call('HMGET', KEYS[2], unpack(ids))
touch(KEYS[3])
local remaining, cancels, scores, progress, marks = {}, {}, {}, {}, {}
for k = 1, count do
  local value = values[k]
  local at = 7 * k - 5
  if not value or sub(value, 1, 16) ~= ARGV[at + 1] then
    remaining[k] = -1
  else
    local flags = byte(value, 23)
    local limit = default_timeout
    if has(flags, FLAG_ATTEMPT_TIMEOUT) then limit = attempt_timeout(read_head(ids[k]), default_timeout) end
    local deadline = min(now + tonumber(ARGV[at + 2]), unpack_ms(value, 17) + limit)
    if has(flags, FLAG_STATE) then
      local state = call('HMGET', base .. 's' .. ids[k], 'cr', 'cd')
      if state[1] then
        cancels[#cancels + 1] = { k, state[1] }
        deadline = min(deadline, tonumber(state[2]))
      end
    end
    local expected = ARGV[at + 3]
    local moved = expected ~= '' and call('ZSCORE', KEYS[3], ids[k])
    if moved and tonumber(moved) ~= tonumber(expected) then
      remaining[k] = max(1, tonumber(moved) - now)
    elseif deadline <= now then
      remaining[k] = -2
    else
      remaining[k] = deadline - now
      scores[#scores + 1] = string.format('%d', deadline)
      scores[#scores + 1] = ids[k]
      if ARGV[at + 4] ~= '' then
        local fields = { 'pp', ARGV[at + 4], 'pm', ARGV[at + 5] }
        if ARGV[at + 6] ~= '' then
          fields[5], fields[6] = 'cp', ARGV[at + 6]
        end
        progress[#progress + 1] = { ids[k], fields }
        touch(base .. 's' .. ids[k])
        if not has(flags, FLAG_STATE) then
          marks[#marks + 1] = ids[k]
          marks[#marks + 1] = sub(value, 1, 22) .. char(flags + FLAG_STATE) .. sub(value, 24)
        end
      end
    end
  end
end

-- act
if #scores > 0 then call('ZADD', KEYS[3], unpack(scores)) end
for _, item in ipairs(progress) do call('HSET', base .. 's' .. item[1], unpack(item[2])) end
if #marks > 0 then call('HSET', KEYS[2], unpack(marks)) end
return { now, remaining, cancels }
