-- Wireshark dissector for Brier: frames over TCP, packets over UDP and inside frames.
--
-- Use it: wireshark -X lua_script:FILE, or put it into the folder of personal Lua plugins. Packets
-- are known by their magic, connections by their greeting or by the default ports; for others there
-- is "Decode As". Every field of a message can be filtered by, such as brier.order_id == 7.
--
-- What messages there are, and the layouts, come from the pages in protocol/spec, by
-- `exchange dissector`; what follows them is the same for every version of the pages.

--@TABLES@

local brier = Proto("brier", "Brier")
local fields = {}
local error_seen = ProtoExpert.new(
  "brier.error", "not as the pages say", expert.group.MALFORMED, expert.severity.ERROR)
local newer_seen = ProtoExpert.new(
  "brier.newer", "unknown tag or field: a newer minor", expert.group.PROTOCOL,
  expert.severity.NOTE)
brier.experts = {error_seen, newer_seen}

local FIELD_TYPES = {
  uint = ProtoField.uint64, int = ProtoField.int64, text = ProtoField.string,
  bytes = ProtoField.bytes, ids = ProtoField.uint64, rows = ProtoField.string,
  message = ProtoField.bytes,
}
local HEAD_TYPES = {
  [1] = ProtoField.uint8, [2] = ProtoField.uint16, [4] = ProtoField.uint32,
  [8] = ProtoField.uint64,
}

local function add_field(key, make, label)
  fields[key] = make("brier." .. key, label)
end

for name, class in pairs(CLASSES) do add_field(name, FIELD_TYPES[class], name) end
for head, rows in pairs(LAYOUTS) do
  for _, row in ipairs(rows) do
    local key = head .. "." .. row.name
    if not fields[key] then add_field(key, HEAD_TYPES[row.size], row.name) end
  end
end
add_field("message", ProtoField.string, "message")
add_field("tag", ProtoField.uint32, "tag")
add_field("channel_number", ProtoField.uint64, "number in the channel or in the snapshots")
add_field("packet", ProtoField.none, "packet")
add_field("frame", ProtoField.none, "frame")
add_field("log", ProtoField.bytes, "piece of the event log")
brier.fields = fields

-- MessagePack ------------------------------------------------------------------------------------

-- First byte -> what it begins, and how many bytes its number takes. A number is the value of an
-- integer, the length of a text, binary or other value, or how many values are inside.
local OPCODES = {
  [0xc4] = {"bytes", 1}, [0xc5] = {"bytes", 2}, [0xc6] = {"bytes", 4},
  [0xcc] = {"integer", 1}, [0xcd] = {"integer", 2}, [0xce] = {"integer", 4},
  [0xcf] = {"integer", 8}, [0xd0] = {"integer", 1, true}, [0xd1] = {"integer", 2, true},
  [0xd2] = {"integer", 4, true}, [0xd3] = {"integer", 8, true},
  [0xd9] = {"text", 1}, [0xda] = {"text", 2}, [0xdb] = {"text", 4},
  [0xdc] = {"array", 2}, [0xdd] = {"array", 4}, [0xde] = {"map", 2}, [0xdf] = {"map", 4},
}
local OTHER_SIZES = {  -- Nil, booleans, floats, extensions of one size: bytes behind the first.
  [0xc0] = 0, [0xc2] = 0, [0xc3] = 0, [0xca] = 4, [0xcb] = 8,
  [0xd4] = 2, [0xd5] = 3, [0xd6] = 5, [0xd7] = 9, [0xd8] = 17,
}
local EXTENSION_WIDTHS = {[0xc7] = 1, [0xc8] = 2, [0xc9] = 4}

-- The value whose first byte is at `at`: {kind, value, first, next, count}. `next` is where the
-- next one begins, for an array or map where its first one does; `count` how many are inside. An
-- integer of 64 bits is an Int64 or UInt64. Nil when it is cut off at `limit` or is not valid.
local function read_value(buffer, at, limit)
  if at >= limit then return nil end
  local byte = buffer(at, 1):uint()
  local function value(kind, number, first, next_at, count)
    if next_at > limit then return nil end
    return {kind = kind, value = number, first = first, next = next_at, count = count or 0}
  end
  if byte <= 0x7f then return value("integer", byte, at, at + 1) end
  if byte >= 0xe0 then return value("integer", byte - 256, at, at + 1) end
  if byte <= 0x8f then return value("map", nil, at + 1, at + 1, 2 * (byte - 0x80)) end
  if byte <= 0x9f then return value("array", nil, at + 1, at + 1, byte - 0x90) end
  if byte <= 0xbf then return value("text", nil, at + 1, at + 1 + byte - 0xa0) end
  if OTHER_SIZES[byte] then return value("other", nil, at, at + 1 + OTHER_SIZES[byte]) end
  local width = EXTENSION_WIDTHS[byte]
  if width then
    if at + 1 + width > limit then return nil end
    return value("other", nil, at, at + 2 + width + buffer(at + 1, width):uint())
  end
  local opcode = OPCODES[byte]
  if not opcode or at + 1 + opcode[2] > limit then return nil end
  local kind, size, is_signed = opcode[1], opcode[2], opcode[3]
  local range, behind = buffer(at + 1, size), at + 1 + size
  if kind == "integer" then
    local number
    if size == 8 then number = is_signed and range:int64() or range:uint64()
    else number = is_signed and range:int() or range:uint() end
    return value(kind, number, at, behind)
  end
  local number = range:uint()
  if kind == "array" then return value(kind, nil, behind, behind, number) end
  if kind == "map" then return value(kind, nil, behind, behind, 2 * number) end
  return value(kind, nil, behind, behind + number)
end

-- Where the value at `at` ends, whatever is in it; nil when it is not valid.
local function skip_value(buffer, at, limit)
  local open_count = 1
  while open_count > 0 do
    local found = read_value(buffer, at, limit)
    if not found then return nil end
    open_count = open_count - 1 + found.count
    at = found.next
  end
  return at
end

-- Messages ---------------------------------------------------------------------------------------

-- Of an integer, which is a number, an Int64 or a UInt64.
local function is_negative(number)
  if type(number) == "number" then return number < 0 end
  return typeof(number) == "Int64" and number < Int64.new(0)
end

-- What people want to see behind a number: the name of its value, or the time.
local function explain(item, field, number)
  if field.enum then
    local names = ENUMERATIONS[field.enum]
    local key = tonumber(tostring(number))
    if field.is_set then
      local found = {}
      for bit, name in pairs(names) do
        if math.floor(key / bit) % 2 == 1 then found[#found + 1] = name end
      end
      table.sort(found)
      if #found > 0 then item:append_text(" (" .. table.concat(found, ", ") .. ")") end
    else
      item:append_text(" (" .. (names[key] or "unknown") .. ")")
    end
  elseif field.name:find("time_ns$") then
    local seconds = (number / 1000000000):tonumber()
    local rest = (number % 1000000000):tonumber()
    item:append_text(os.date("! (%Y-%m-%d %H:%M:%S", seconds)
      .. string.format(".%09d UTC)", rest))
  end
end

-- Adds an integer in the width that its field has. Returns false when it is none.
local function add_integer(buffer, tree, field, found, class)
  if found.kind ~= "integer" then return false end
  local range, number = buffer(found.first, found.next - found.first), found.value
  if class ~= "int" and is_negative(number) then return false end
  if type(number) == "number" then
    number = class == "int" and Int64.new(number) or UInt64.new(number)
  else
    local eight = buffer(found.first + 1, 8)
    number = class == "int" and eight:int64() or eight:uint64()
  end
  explain(tree:add(fields[field.name], range, number), field, number)
  return true
end

-- Adds the values of an array: one field for each id, one text for each row. Returns where it
-- ends, nil when it is not valid.
local function add_array(buffer, tree, field, found, limit)
  local at = found.next
  for _ = 1, found.count do
    local row = read_value(buffer, at, limit)
    if not row then return nil end
    if field.class == "ids" then
      if not add_integer(buffer, tree, field, row, "ids") then return nil end
      at = row.next
    else
      if row.kind ~= "array" then return nil end
      local words, first = {}, at
      at = row.next
      for _ = 1, row.count do
        local number = read_value(buffer, at, limit)
        if not number or number.kind ~= "integer" then return nil end
        words[#words + 1] = tostring(number.value)
        at = number.next
      end
      tree:add(fields[field.name], buffer(first, at - first), table.concat(words, ", "))
    end
  end
  return at
end

-- Adds one field of a message, whose value begins at `at`. Returns where it ends, nil when it is
-- not valid.
local function add_value(buffer, tree, field, at, limit, inner)
  local found = read_value(buffer, at, limit)
  if not found then return nil end
  if field.class == "uint" or field.class == "int" then
    return add_integer(buffer, tree, field, found, CLASSES[field.name]) and found.next or nil
  end
  if field.class == "text" or field.class == "bytes" then
    if found.kind ~= field.class then return nil end
    local size = found.next - found.first
    if size == 0 then tree:add(fields[field.name], buffer(at, 1), "")
    elseif field.class == "bytes" then tree:add(fields[field.name], buffer(found.first, size))
    else
      local range = buffer(found.first, size)
      tree:add(fields[field.name], range, range:string(ENC_UTF_8))
    end
    return found.next
  end
  if found.kind ~= "array" then return nil end
  if field.class ~= "message" then return add_array(buffer, tree, field, found, limit) end
  -- No message holds one that holds another: who nests them is not waited for.
  local stop = inner and skip_value(buffer, at, limit)
  if stop then
    inner[#inner + 1] = {
      at = at, limit = stop, tree = tree:add(fields[field.name], buffer(at, stop - at))}
  end
  return stop
end

-- Adds the message from `at` to before `limit`; what it holds of messages is put into `inner`, and
-- is not valid without it. Returns its name.
local function add_message(buffer, tree, at, limit, inner)
  local range = buffer(at, limit - at)
  local array = read_value(buffer, at, limit)
  local tag = array and array.kind == "array" and array.count > 0
    and read_value(buffer, array.next, limit)
  if not tag or tag.kind ~= "integer" or is_negative(tag.value) then
    tree:add_proto_expert_info(error_seen, "no message: not an array that begins with a tag")
    return "?"
  end
  local number = tonumber(tostring(tag.value))
  local message = MESSAGES[number]
  local name = message and message.name or ("tag " .. number)
  local item = tree:add(fields.message, range, name)
  item:add(fields.tag, buffer(tag.first, tag.next - tag.first), number)
  if not message then
    item:add_proto_expert_info(newer_seen, "unknown tag " .. number)
    if skip_value(buffer, at, limit) ~= limit then
      item:add_proto_expert_info(error_seen, name .. ": no value that fills its room")
    end
    return name
  end
  at = tag.next
  for index = 1, array.count - 1 do
    local field = message.fields[index]
    if field then at = add_value(buffer, item, field, at, limit, inner)
    else at = skip_value(buffer, at, limit) end
    if not at then
      local what = field and field.name or ("field " .. index)
      item:add_proto_expert_info(error_seen, name .. "." .. what .. " is not valid")
      return name
    end
  end
  if array.count - 1 < message.required then
    item:add_proto_expert_info(error_seen, name .. ": fields are missing")
  elseif array.count - 1 > #message.fields then
    item:add_proto_expert_info(newer_seen, name .. " has more fields than the page")
  end
  if at ~= limit then item:add_proto_expert_info(error_seen, name .. ": bytes behind it") end
  return name
end

-- Adds a message and those inside it. Returns the name of the outer one.
local function add_messages(buffer, tree, at, limit)
  local inner = {}
  local name = add_message(buffer, tree, at, limit, inner)
  for _, one in ipairs(inner) do add_message(buffer, one.tree, one.at, one.limit) end
  return name
end

-- Heads ------------------------------------------------------------------------------------------

-- Adds the fields of a fixed head at `at`; returns their values by name.
local function add_head(buffer, tree, head, at)
  local values = {}
  for _, row in ipairs(LAYOUTS[head]) do
    local range = buffer(at + row.offset, row.size)
    local number = row.size == 8 and range:le_uint64() or range:le_uint()
    local item = tree:add_le(fields[head .. "." .. row.name], range)
    values[row.name] = number
    explain(item, row, number)
  end
  return values
end

local function size_of(head)
  local last = LAYOUTS[head][#LAYOUTS[head]]
  return last.offset + last.size
end

local FRAME_SIZE, PACKET_SIZE = size_of("frame"), size_of("packet")

-- A line for people: the names, not all of them when there are many.
local function summary(names)
  local count = #names
  if count <= 8 then return table.concat(names, ", ") end
  return table.concat(names, ", ", 1, 8) .. " and " .. (count - 8) .. " more"
end

-- Packets ----------------------------------------------------------------------------------------

local function is_packet(buffer)
  return buffer:len() >= PACKET_SIZE and buffer(0, 2):le_uint() == PACKET_MAGIC
    and buffer(2, 1):uint() == PACKET_VERSION
end

-- Adds the blocks of a packet; returns the names of their messages.
local function add_blocks(buffer, tree, head)
  local is_selected = head.kind == PACKET_SELECTED
  local layout = is_selected and "selected" or "block"
  local at, names = PACKET_SIZE, {}
  for index = 1, head.count do
    if buffer:len() - at < size_of(layout) then
      tree:add_proto_expert_info(error_seen, "cut short before message " .. index)
      return names
    end
    local branch = tree:add(brier, buffer(at), "Block " .. index)
    local block = add_head(buffer, branch, layout, at)
    at = at + size_of(layout)
    local stop = at + block.length
    if block.length == 0 or stop > buffer:len() then
      branch:add_proto_expert_info(error_seen, "message " .. index .. " is empty or cut short")
      return names
    end
    branch:set_len(size_of(layout) + block.length)
    local number = head.number + (is_selected and block.offset or index - 1)
    branch:add(fields.channel_number, buffer(at, block.length), number):set_generated()
    names[#names + 1] = add_messages(buffer, branch, at, stop)
    branch:append_text(": " .. names[#names])
    at = stop
  end
  if at ~= buffer:len() then
    tree:add_proto_expert_info(error_seen, "bytes behind the last message")
  end
  return names
end

-- Adds a whole packet; returns what to say about it in one line.
local function add_packet(buffer, tree)
  local head = add_head(buffer, tree, "packet", 0)
  local kind = ENUMERATIONS.PacketKinds[head.kind]
  if not kind then
    tree:add_proto_expert_info(error_seen, "packet kind " .. head.kind .. " is unknown")
    return "unknown packet"
  end
  if (kind == "HEARTBEAT") ~= (head.count == 0) then
    tree:add_proto_expert_info(error_seen, head.count .. " messages in a packet of this kind")
  end
  local names = add_blocks(buffer, tree, head)
  local line = kind .. " " .. head.channel .. " #" .. tostring(head.number)
  if #names > 0 then line = line .. " " .. summary(names) end
  return line
end

-- Frames -----------------------------------------------------------------------------------------

-- Adds a whole frame; returns what to say about it in one line.
local function add_frame(buffer, tree)
  local head = add_head(buffer, tree, "frame", 0)
  local rest = buffer:len() - FRAME_SIZE
  if head.kind == FRAME_LOG then
    if rest > 0 then tree:add(fields.log, buffer(FRAME_SIZE)) end
    return "log #" .. tostring(head.number)
  end
  if head.kind == FRAME_PACKET then
    local packet = rest > 0 and buffer(FRAME_SIZE):tvb()
    if packet and is_packet(packet) then
      return add_packet(packet, tree:add(fields.packet, packet()))
    end
    tree:add_proto_expert_info(error_seen, "no packet")
    return "no packet"
  end
  if not ENUMERATIONS.FrameKinds[head.kind] then
    tree:add_proto_expert_info(error_seen, "frame kind " .. head.kind .. " is unknown")
    return "unknown frame"
  end
  return add_messages(buffer, tree, FRAME_SIZE, buffer:len())
end

-- What TCP has brought: whole frames, and perhaps the beginning of another one.
function brier.dissector(buffer, pinfo, root)
  pinfo.cols.protocol = "BRIER"
  local at, names = 0, {}
  while at < buffer:len() do
    local left = buffer:len() - at
    local length = left >= 2 and buffer(at, 2):le_uint() or FRAME_SIZE
    if length < FRAME_SIZE then
      local item = root:add(brier, buffer(at))
      item:add_proto_expert_info(error_seen, "frame length " .. length)
      break
    end
    if left < length or left < 2 then
      pinfo.desegment_offset = at
      pinfo.desegment_len = left < 2 and DESEGMENT_ONE_MORE_SEGMENT or length - left
      break
    end
    local frame = buffer(at, length):tvb()
    local item = root:add(brier, frame(), "Brier frame")
    names[#names + 1] = add_frame(frame, item)
    item:append_text(": " .. names[#names])
    at = at + length
  end
  if #names > 0 then pinfo.cols.info = summary(names) end
  return buffer:len()
end

-- Any datagram that begins as a packet does.
local function datagram(buffer, pinfo, root)
  if not is_packet(buffer) then return false end
  pinfo.cols.protocol = "BRIER"
  local item = root:add(brier, buffer(), "Brier packet")
  pinfo.cols.info = add_packet(buffer, item)
  return true
end

-- A connection that begins with the venue's, or the feed's, greeting.
local function connection(buffer, pinfo, root)
  if buffer:len() < FRAME_SIZE + 2 or buffer(2, 1):uint() ~= FRAME_SESSION then return false end
  local array, tag = buffer(FRAME_SIZE, 1):uint(), buffer(FRAME_SIZE + 1, 1):uint()
  if array < 0x90 or array > 0x9f or tag ~= HELLO_TAG then return false end
  if buffer(0, 2):le_uint() < FRAME_SIZE + 2 then return false end
  pinfo.conversation = brier
  brier.dissector(buffer, pinfo, root)
  return true
end

brier:register_heuristic("udp", datagram)
brier:register_heuristic("tcp", connection)
DissectorTable.get("tcp.port"):add(PORTS, brier)
