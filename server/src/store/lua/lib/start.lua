-- What every script begins with: short names, the time, the start of every key.

-- Redis writes a numeric argument out with 17 digits, which costs as much as the command: constant arguments are texts.
local call, sub, byte, char = redis.call, string.sub, string.byte, string.char
local floor, min, max = math.floor, math.min, math.max

-- KEYS[1] is the meta key of the queue, "<prefix>:{<routing key>}:m"; every other key of it is made from this base.
local base = sub(KEYS[1], 1, -2)

local time = call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = floor(now_us / 1000)
