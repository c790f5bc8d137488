-- Leases. The bytes of a lease: store/layout.rs.

-- Puts jobs back to the heads of their lanes. `front` lists them ({id, flags, lane, ms}) in the order in which they
-- were leased: the last goes to the head first, so that they stand there in that order.
local function put_back(front)
  local last_first = {}
  for k = #front, 1, -1 do last_first[#last_first + 1] = front[k] end
  make_ready(last_first, true)
end

-- Ends leases. What the jobs become is written before.
local function end_leases(ids)
  call('ZREM', base .. KEY_DEADLINES, unpack(ids))
  call('HDEL', base .. KEY_LEASES, unpack(ids))
end

-- What the state hashes of some jobs say: `jobs` is a list of {number, id}; number, attempts, losses and checkpoint of
-- each.
local function states_of(jobs)
  local states = {}
  for k, job in ipairs(jobs) do
    local state = try('HMGET', base .. KEY_STATE .. job[2], FIELD_ATTEMPTS, FIELD_LOSSES, FIELD_CHECKPOINT) or {}
    states[k] = { job[1], (tonumber(state[1]) or 0), (tonumber(state[2]) or 0), state[3] or '' }
  end
  return states
end
