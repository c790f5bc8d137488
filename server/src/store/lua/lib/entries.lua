-- Lane entries, and the order of lanes. The bytes of an entry: store/layout.rs.

local function entry_of(flags, ms, id) return char(flags) .. pack_ms(ms) .. id end

-- Lanes are ordered by priority, most urgent first, then by the age of their head.
local function lane_score(lane, ms) return (DIGIT_9 - byte(lane, 1)) * PRIORITY_SPAN + ms end

-- The flags of a record that its lane entry carries: without POLICY and the one above it.
local function entry_flags(flags) return flags - floor(flags % (4 * FLAG_POLICY) / FLAG_POLICY) * FLAG_POLICY end
