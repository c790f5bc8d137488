-- The wait before the next attempt.

-- How long to wait after `failures` failures; `random` is in [0, 1). `defaults` has what a job does not set.
local function backoff_ms(head, failures, defaults, random)
  local initial = head.initial_ms and head.initial_ms > 0 and head.initial_ms or defaults.initial_ms
  local longest = head.max_ms and head.max_ms > 0 and head.max_ms or max(defaults.max_ms, initial)
  local multiplier = (head.multiplier and head.multiplier > 0 and head.multiplier or defaults.multiplier) / 1000
  local jitter = head.jitter and head.jitter ~= JITTER_UNSET and head.jitter or defaults.jitter
  local wait = min(initial * multiplier ^ min(failures - 1, 64), longest)
  return floor(wait + wait * jitter / 1000 * random)
end
