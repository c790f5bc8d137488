-- Times and flags as they are stored.

-- Times in members and values are 6 bytes, big-endian milliseconds.
local function pack_ms(ms) return struct.pack('>I6', ms) end
local function unpack_ms(text, at) return (struct.unpack('>I6', text, at)) end

local function has(flags, flag) return flags % (flag * 2) >= flag end
