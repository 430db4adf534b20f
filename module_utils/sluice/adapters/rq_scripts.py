"""The Lua that writes to RQ. Every script first compares the run's stamp and the mirrored token.

KEYS[1] generation, KEYS[2] token, KEYS[3] set of markers; ARGV[1] generation, ARGV[2] our token.
"""

from __future__ import annotations

_GUARD = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('SLUICE generation') end
local known = tonumber(redis.call('GET', KEYS[2]) or '-1')
local ours = tonumber(ARGV[2])
if known > ours then return redis.error_reply('SLUICE token ' .. known) end
if known < ours then redis.call('SET', KEYS[2], ARGV[2]) end
"""

#: ARGV: 3 job key prefix; 4 number of fields n; 5 number of varying fields v; 6 number of digest fields d;
#: then n field names (the varying ones last), n - v shared values, d digest field names, then per job: id, v values.
#: Answers per job: the SHA-1 of its digest fields as re-read, 'M' (marked before) or 'F' (a foreign job has this id).
STAGE = (
    _GUARD
    + """
local prefix, n, v, d = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local at = 7
local pairs_, digest = {}, {}
for i = 1, n do pairs_[2 * i - 1] = ARGV[at]; at = at + 1 end
for i = 1, n - v do pairs_[2 * i] = ARGV[at]; at = at + 1 end
for i = 1, d do digest[i] = ARGV[at]; at = at + 1 end
local out = {}
local count = 0
local first = 2 * (n - v)
local ids, keys = {}, {}
for i = at, #ARGV, v + 1 do
  ids[#ids + 1] = ARGV[i]
  keys[#keys + 1] = prefix .. ARGV[i]
end
-- One look for all: in the common case no id is marked and no key exists. Fewer than 1000 jobs come in one call.
local marked = redis.call('SMISMEMBER', KEYS[3], unpack(ids))
local looked = {}
local none = redis.call('EXISTS', unpack(keys)) == 0
while at <= #ARGV do
  local id = ARGV[at]
  local key = prefix .. id
  local data = nil
  for i = 1, v do
    pairs_[first + 2 * i] = ARGV[at + i]
    if pairs_[first + 2 * i - 1] == 'data' then data = ARGV[at + i] end
  end
  at = at + v + 1
  count = count + 1
  if marked[count] == 1 then
    out[count] = 'M'
  else
    local foreign = false
    if (not none or looked[id]) and redis.call('EXISTS', key) == 1 then
      local have = redis.call('HMGET', key, 'status', 'data')
      if have[1] == 'created' and have[2] == data then redis.call('DEL', key) else foreign = true end
    end
    looked[id] = true
    if foreign then
      out[count] = 'F'
    else
      redis.call('HSET', key, unpack(pairs_))
      out[count] = redis.sha1hex(table.concat(redis.call('HMGET', key, unpack(digest)), '\\31'))
    end
  end
end
return out
"""
)

#: ARGV: 3 job key prefix; 4 queue key prefix; 5 scheduled registry prefix; 6 key of the set of queues; 7 now (ISO);
#: 8 batch number; 9 key of the last batch; 10 the batch that the caller knows to be activated; then per job: id,
#: queue, score ('' = due). A store behind the caller's knowledge was restarted without its last writes: it is refused.
#: Answers: the number made runnable, then the ids whose staged hash is gone.
ACTIVATE = (
    _GUARD
    + """
if tonumber(redis.call('GET', ARGV[9]) or '0') < tonumber(ARGV[10]) then return redis.error_reply('SLUICE behind') end
local out, count = {0}, 0
local lists, order, members = {}, {}, {}
local marked = {}
for from = 11, #ARGV, 3000 do
  local ids = {}
  for at = from, math.min(from + 2999, #ARGV), 3 do ids[#ids + 1] = ARGV[at] end
  for _, word in ipairs(redis.call('SMISMEMBER', KEYS[3], unpack(ids))) do marked[#marked + 1] = word end
end
for at = 11, #ARGV, 3 do
  local id, queue, score = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if marked[(at - 8) / 3] == 0 then
    local key = ARGV[3] .. id
    if redis.call('HGET', key, 'status') == 'created' then
      if lists[queue] == nil then lists[queue] = {}; order[#order + 1] = queue end
      if score == '' then
        redis.call('HSET', key, 'status', 'queued', 'enqueued_at', ARGV[7])
        lists[queue][#lists[queue] + 1] = id
      else
        redis.call('HSET', key, 'status', 'scheduled')
        redis.call('ZADD', ARGV[5] .. queue, score, id)
      end
      members[#members + 1] = id
      count = count + 1
    else
      out[#out + 1] = id
    end
  end
end
for i = 1, #members, 1000 do redis.call('SADD', KEYS[3], unpack(members, i, math.min(i + 999, #members))) end
for _, queue in ipairs(order) do
  local list = lists[queue]
  redis.call('SADD', ARGV[6], ARGV[4] .. queue)
  for i = 1, #list, 1000 do redis.call('RPUSH', ARGV[4] .. queue, unpack(list, i, math.min(i + 999, #list))) end
end
if #out == 1 then redis.call('SET', ARGV[9], ARGV[8]) end
out[1] = count
return out
"""
)

#: ARGV: 3 job key prefix; then job ids. Deletes staged jobs that were never activated. Answers their number.
DISCARD = (
    _GUARD
    + """
local count = 0
for at = 4, #ARGV do
  local key = ARGV[3] .. ARGV[at]
  if redis.call('SISMEMBER', KEYS[3], ARGV[at]) == 0 and redis.call('HGET', key, 'status') == 'created' then
    redis.call('DEL', key)
    count = count + 1
  end
end
return count
"""
)

#: ARGV: 3 job key prefix; 4 number of digest fields; their names; job ids. Reads only. KEYS as above, not compared.
DIGEST = """
local d = tonumber(ARGV[4])
local digest = {}
for i = 1, d do digest[i] = ARGV[4 + i] end
local out = {}
for at = 5 + d, #ARGV do
  local values = redis.call('HMGET', ARGV[3] .. ARGV[at], unpack(digest))
  local complete = true
  for i = 1, d do if not values[i] then complete = false end end
  out[#out + 1] = complete and redis.sha1hex(table.concat(values, '\\31')) or ''
end
return out
"""

#: ARGV: from 3 on job ids. Takes markers back for ids that are to be placed again. Answers their number.
UNMARK = (
    _GUARD
    + """
local count = 0
for at = 3, #ARGV do count = count + redis.call('SREM', KEYS[3], ARGV[at]) end
return count
"""
)
