-- The memory of settled ids (the deduplication window), in two generations: the current one and the one before. The
-- bytes of a memory: store/layout.rs.

-- What is remembered of these ids: nil if nothing is.
local function remembered(meta_gen, ids)
  local gen = tonumber(meta_gen)
  if not gen or #ids == 0 then return nil end
  local found = call('HMGET', base .. KEY_MEMORY .. gen, unpack(ids))
  local older = call('HMGET', base .. KEY_MEMORY .. (gen - 1), unpack(ids))
  local any
  for k = 1, #ids do
    if found[k] or older[k] then
      found[k], any = found[k] or older[k], true
    end
  end
  return any and found
end

-- How a job ended of which only the id is left: the letter of its final state, or nil. A nack is remembered with the
-- state that it led to, and the job went on.
local function remembered_end(meta_gen, id)
  local found = remembered(meta_gen, { id })
  local letter = found and found[1] and sub(found[1], 1, 1)
  local is_final = letter == STATE_SUCCEEDED or letter == STATE_DEAD or letter == STATE_CANCELLED
    or letter == STATE_EXPIRED
  return is_final and letter or nil
end

-- Whether a memory is that of a lease with this nonce, and of an end that its holder was told. (A job that no worker
-- got went back without a reply.)
local function was_settled(memory, nonce)
  return memory and sub(memory, MEMORY_NONCE_AT, MEMORY_NONCE_END) == sub(nonce, 1, MEMORY_NONCE_BYTES)
    and sub(memory, MEMORY_ACTION_AT, MEMORY_ACTION_AT) ~= NACK_UNDELIVERED
    and sub(memory, MEMORY_ACTION_AT, MEMORY_ACTION_AT) ~= NACK_UNCONFIRMED
end

-- A new generation after that one.
local function next_generation(gen, start, window_ms)
  gen = (gen or 0) + 1
  local key, before = base .. KEY_MEMORY .. gen, base .. KEY_MEMORY .. (gen - 1)
  touch(key, before, base .. KEY_MEMORY .. (gen - 2))
  return { key = key, number = gen, before = before, forget_before = start and now - start >= 2 * window_ms }
end

-- Which generation to write to: the current one, or a new one when the window is over. Names its keys, writes nothing.
-- (Maintenance ends a full one.)
local function generation(meta_gen, meta_start, window_ms)
  local gen, start = tonumber(meta_gen), tonumber(meta_start)
  if gen and start and now - start < window_ms then
    touch(base .. KEY_MEMORY .. gen)
    return { key = base .. KEY_MEMORY .. gen }
  end
  return next_generation(gen, start, window_ms)
end

-- Begins a new generation, if that was decided, and forgets the one before the last. Returns the key to write to.
local function begin(chosen)
  if chosen.number then
    call('HSET', base .. KEY_META, META_GENERATION, chosen.number, META_GENERATION_START, now)
    call('UNLINK', base .. KEY_MEMORY .. (chosen.number - 2))
    if chosen.forget_before then call('UNLINK', chosen.before) end
  end
  return chosen.key
end
