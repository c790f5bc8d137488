-- Gives back what a look leased whose answer never arrived: nobody has these jobs, so nothing is counted. One step of a walk over all leases.
-- KEYS  meta, leases, lease deadlines, lane index
-- ARGV  nonce of the look, cursor, leases in this step (about)
-- RETURNS {next cursor, jobs given back}
-- MOVES  LEASED → READY
local nonce = ARGV[1]

-- decide
local scan = call('HSCAN', KEYS[2], ARGV[2], 'COUNT', ARGV[3])
local found, front = {}, {}
for k = 1, #scan[2], 2 do
  local id, value = scan[2][k], scan[2][k + 1]
  if sub(value, 1, 16) == nonce then
    local head = read_head(id)
    -- A record that cannot be read is left to the end of its lease, which sets it aside.
    if head then
      touch(base .. 'r:' .. head.lane, base .. 'qr:' .. head.lane)
      found[#found + 1] = id
      front[#front + 1] = { id, byte(value, 23), head.lane, now }
    end
  end
end
if #found == 0 then return { scan[1], 0 } end
touch(KEYS[3], KEYS[4])

-- act
make_ready(front, true)
call('ZREM', KEYS[3], unpack(found))
call('HDEL', KEYS[2], unpack(found))
return { scan[1], #found }
