-- Commands on keys that may hold another type than ours, and the reads that name keys in a Cluster.

-- Runs a command. A key that holds another type is as good as absent: returns false, true.
local function try(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then
    if string.find(reply.err, 'WRONGTYPE', 1, true) then return false, true end
    return call(...)
  end
  return reply
end

-- Writes fields of a job's state hash. A key of another type there is set aside.
local function write_state(id, ...)
  local _, foreign = try('HSET', base .. KEY_STATE .. id, ...)
  if foreign then
    call('RENAME', base .. KEY_STATE .. id, base .. KEY_QUARANTINED_STATE .. id)
    call('HSET', base .. KEY_STATE .. id, ...)
  end
end

-- Adds to the number in a field of a hash. What is no number there counts as 0.
local function add(key, field, by)
  local sum = (tonumber(call('HGET', key, field)) or 0) + by
  call('HSET', key, field, sum)
  return sum
end

-- Names keys that are about to be written, with a read (README.md).
local function touch(...) call('EXISTS', ...) end
local function touch_all(start, ids)
  local keys = {}
  for k, id in ipairs(ids) do keys[k] = start .. id end
  touch(unpack(keys))
end
