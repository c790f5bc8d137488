-- Where a job is.

-- The letter of the state of a job that has a record, and whether that state is final. nil: there is no record.
local function state_of(id)
  if call('EXISTS', base .. KEY_RECORD .. id) == 0 then return nil end
  local settled = try('HGET', base .. KEY_STATE .. id, FIELD_FINAL_STATE)
  if settled then return settled, true end
  if call('HEXISTS', base .. KEY_LEASES, id) == 1 then return STATE_LEASED end
  return call('ZSCORE', base .. KEY_SCHEDULED, id) and STATE_SCHEDULED or STATE_READY
end
