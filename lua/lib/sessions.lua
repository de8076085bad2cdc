-- The sessions inside a presence key: fields `s:<sid>` (or `admin` alone, a presence that an administrator lent). A value is
-- the session's last heartbeat in ms (0 for a lent presence, which no heartbeat made), followed by ` away` where its last word
-- was away.

-- The member of `ended` that names a session: it is the user's own, whatever names other users' sessions have.
local function ended_session(user, sid)
  return user .. ':' .. sid
end

local function is_session(field)
  return field == 'admin' or string.sub(field, 1, 2) == 's:'
end

local function session_value(status, seen)
  return status == 'away' and string.format('%d away', seen) or seen
end

local function session_status(value)
  return string.sub(value, -4) == 'away' and 'away' or 'online'
end

local function session_seen(value)
  return tonumber(string.match(value, '^%d+'))
end

-- Looks over all sessions of a key but `except`. A session lives as long as the key would after its heartbeat: the
-- lifetime follows from the key itself (its deadline is the latest heartbeat plus the TTL of then), so that a changed TTL
-- counts from the next heartbeat on. Returns a table: `status` that the sessions come to (nil where none is alive),
-- `latest` heartbeat among the live ones (0 for none), `lifetime_ms`, `dead` fields; and with `except` among them, `before`,
-- the status that all of them come to, and `online_until`, the ms at which the last dead one that was online died (nil for
-- none).
local function survey(key, now, except)
  local flat = redis.pcall('HGETALL', key)
  local found = { latest = 0, dead = {} }
  if flat.err or #flat == 0 then
    return found
  end
  local sessions, newest = {}, 0
  for i = 1, #flat, 2 do
    local field, value = flat[i], flat[i + 1]
    if is_session(field) then
      local seen = session_seen(value) or 0
      newest = math.max(newest, seen)
      sessions[#sessions + 1] = { field, seen, session_status(value) }
    end
  end
  local deadline = redis.call('PEXPIRETIME', key)
  found.lifetime_ms = deadline > 0 and deadline - newest or math.huge
  for _, session in ipairs(sessions) do
    local field, seen, said = session[1], session[2], session[3]
    local until_ms = seen + found.lifetime_ms
    local is_alive, is_other = until_ms >= now, field ~= except
    if is_alive then
      found.before = (said == 'online' or found.before == 'online') and 'online' or 'away'
    elseif said == 'online' then
      found.online_until = math.max(found.online_until or 0, until_ms)
    end
    if is_alive and is_other then
      found.latest = math.max(found.latest, seen)
      found.status = (said == 'online' or found.status == 'online') and 'online' or 'away'
    elseif is_other then
      found.dead[#found.dead + 1] = field
    end
  end
  return found
end

-- Why and since when a user is away of whom no session says online any more: the last one at work may have died before
-- `reason` came, now. `shard` as in expired_at.
local function away_since(shard, found, reason, now)
  local died = found.before == 'away' and found.online_until and expired_at(shard, found.online_until, now)
  if died then return 'expired', died end
  return reason, now
end

-- Takes sessions out of a key, few enough at a time for Lua's stack.
local function drop(key, fields)
  for i = 1, #fields, 1000 do
    redis.call('HDEL', key, unpack(fields, i, math.min(i + 999, #fields)))
  end
end

-- Whether any session of a key, alive or not, has said online. A status that its sessions come to stands until one of them
-- speaks, or the deadline passes, so a dead one still accounts for it.
local function ever_online(key)
  local flat = redis.call('HGETALL', key)
  for i = 1, #flat, 2 do
    if is_session(flat[i]) and session_status(flat[i + 1]) == 'online' then
      return true
    end
  end
  return false
end
