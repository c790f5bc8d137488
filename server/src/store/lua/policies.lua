-- Notes in the list of all queues with a policy that the policy of one changes.
-- KEYS  queues with a policy (every score 0), queues whose policy changed, by that time
-- ARGV  queue, '1' its policy is about to change, '0' it is removed
-- RETURNS {now ms}
-- MOVES  -
touch(KEYS[1], KEYS[2])
if ARGV[2] == '1' then call('ZADD', KEYS[1], '0', ARGV[1]) else call('ZREM', KEYS[1], ARGV[1]) end
call('ZADD', KEYS[2], now, ARGV[1])
call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - POLICY_CHANGES_MS)
return { now }
