"""The Lua of the way back: RQ's entries into our hash, and out of it. Every script compares stamp and token first.

KEYS and the first two ARGV as in :mod:`.rq_scripts`.
"""

from __future__ import annotations

from .rq_scripts import _GUARD

#: The fields of a job's hash that a claim answers with, after the id and the score.
_FIELDS = "'status', 'origin', 'data', 'retries_left', 'meta', 'ended_at'"

#: The fields of a job's hash; all of them missing where there is none, or a key of another type in its place.
_READ = f"""
local function fields(key)
  local found = redis.pcall('HMGET', key, {_FIELDS})
  if not found.err then return found end
  if not string.find(found.err, 'WRONGTYPE', 1, true) then error(found.err) end
  return {{{", ".join(["false"] * (_FIELDS.count(",") + 1))}}}
end
"""

#: ARGV: 3 this run's id; then the generations that may be there. Answers 'ours', 'adopted', 'missing' or 'foreign'.
ADOPT = """
local there = redis.call('GET', KEYS[1])
local known = tonumber(redis.call('GET', KEYS[2]) or '-1')
if there and known > tonumber(ARGV[2]) then return redis.error_reply('SLUICE token ' .. known) end
local word = 'missing'
if there then
  word = 'foreign'
  if there == ARGV[1] then word = 'ours' end
  for i = 4, #ARGV do if there == ARGV[i] and word == 'foreign' then word = 'adopted' end end
  if word == 'foreign' then return word end
end
local ours = string.sub(KEYS[1], 1, -string.len('generation') - 1)
redis.call('SET', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], ARGV[2])
redis.call('SET', ours .. 'run', ARGV[3])
return word
"""

#: ARGV: 3 job key prefix; 4 our hash; 5 the key to take from; 6 list or zset; 7 how many; 8 the registry's word; 9 its
#: queue. Answers the number of entries taken, then per job: id, score, fields. An entry goes in the same call as it is
#: remembered; a further one of a job that is claimed already goes without a word. What is remembered ends with a number
#: that rises from claim to claim, by the server's time: an undo needs the order. Remembered first, taken away last: a
#: command that the server refuses (full memory, a key of another type) then leaves every entry where it was.
CLAIM = (
    _GUARD
    + _READ
    + """
local taken = {}
if ARGV[6] == 'list' then
  for _, member in ipairs(redis.call('LRANGE', ARGV[5], 0, tonumber(ARGV[7]) - 1)) do
    taken[#taken + 1] = {member, '0'}
  end
else
  local flat = redis.call('ZRANGE', ARGV[5], 0, tonumber(ARGV[7]) - 1, 'WITHSCORES')
  for i = 1, #flat, 2 do taken[#taken + 1] = {flat[i], flat[i + 1]} end
end
local out = {#taken}
local time = redis.call('TIME')
for at, entry in ipairs(taken) do
  local id, score = entry[1], entry[2]
  local member = id
  if ARGV[8] == 'wip' then id = string.match(id, '^(.*):[^:]*$') or id end
  local number = string.format('%s%06d%04d', time[1], tonumber(time[2]), at)
  local words = {ARGV[8], ARGV[9], score, member, number}
  if redis.call('HSETNX', ARGV[4], id, table.concat(words, '|')) == 1 then
    local found = fields(ARGV[3] .. id)
    table.insert(found, 1, score)
    table.insert(found, 1, id)
    out[#out + 1] = found
  end
end
if #taken > 0 and ARGV[6] == 'list' then redis.call('LTRIM', ARGV[5], #taken, -1) end
if #taken > 0 and ARGV[6] ~= 'list' then redis.call('ZREMRANGEBYRANK', ARGV[5], 0, #taken - 1) end
return out
"""
)

#: ARGV: 3 job key prefix; 4 our hash; then ids. Answers per job: id, what is remembered of it, fields.
LOOK = (
    _GUARD
    + _READ
    + """
local out = {}
for at = 5, #ARGV do
  local found = fields(ARGV[3] .. ARGV[at])
  table.insert(found, 1, redis.call('HGET', ARGV[4], ARGV[at]))
  table.insert(found, 1, ARGV[at])
  out[#out + 1] = found
end
return out
"""
)

#: ARGV: 3 job key prefix; 4 our hash; 5 our set; then ids of jobs that were seen to live nowhere.
CLAIM_ORPHANS = (
    _GUARD
    + _READ
    + """
local out = {}
for at = 6, #ARGV do
  local id = ARGV[at]
  if redis.call('EXISTS', ARGV[3] .. id) == 1 and redis.call('SISMEMBER', ARGV[5], id) == 0 then
    if redis.call('HSETNX', ARGV[4], id, 'orphan||0|' .. id .. '|0') == 1 then
      local found = fields(ARGV[3] .. id)
      table.insert(found, 1, '0')
      table.insert(found, 1, id)
      out[#out + 1] = found
    end
  end
end
return out
"""
)

#: ARGV: 3 our hash; 4 our set; then ids that are done with. Their marker goes: a later run may move them again.
DONE = (
    _GUARD
    + """
local count = 0
for at = 5, #ARGV do
  redis.call('HDEL', ARGV[3], ARGV[at])
  count = count + redis.call('SADD', ARGV[4], ARGV[at])
  redis.call('SREM', KEYS[3], ARGV[at])
end
return count
"""
)

#: ARGV: 3 RQ's prefix with its colon; 4 our hash; then pairs of id and what is remembered of it, last claimed first.
PUT_BACK = (
    _GUARD
    + """
local count = 0
for at = 5, #ARGV, 2 do
  local id = ARGV[at]
  local word, queue, score, member = string.match(ARGV[at + 1], '^([^|]*)|([^|]*)|([^|]*)|(.*)|%d+$')
  if redis.call('HDEL', ARGV[4], id) == 1 then
    if word == 'queue' then redis.call('LPUSH', ARGV[3] .. 'queue:' .. queue, member)
    elseif word == 'intermediate' then redis.call('LPUSH', ARGV[3] .. 'queue:' .. queue .. ':intermediate', member)
    elseif word ~= 'orphan' then redis.call('ZADD', ARGV[3] .. word .. ':' .. queue, score, member) end
    count = count + 1
  end
end
return count
"""
)

#: ARGV: 3 RQ's prefix with its colon; 4 our set; 5 now (epoch seconds); then ids of that set. Jobs that had ended are
#: in their registry again, up to the time at which RQ forgets them. Answers how many.
UNLEAVE = (
    _GUARD
    + """
local count = 0
local words = {finished = 'finished', failed = 'failed', stopped = 'failed', canceled = 'canceled'}
for at = 6, #ARGV do
  local key = ARGV[3] .. 'job:' .. ARGV[at]
  local found = redis.call('HMGET', key, 'status', 'origin')
  if redis.call('SREM', ARGV[4], ARGV[at]) == 1 and found[1] and words[found[1]] and found[2] then
    local score = tonumber(ARGV[5])
    if found[1] ~= 'canceled' then
      local left = redis.call('TTL', key)
      score = left < 0 and '+inf' or score + left
    end
    redis.call('ZADD', ARGV[3] .. words[found[1]] .. ':' .. found[2], 'NX', score, ARGV[at])
    count = count + 1
  end
end
return count
"""
)

#: ARGV: 3 our hash; 4 our set. Answers how many of our two keys there were.
CLEAR = (
    _GUARD
    + """
return redis.call('DEL', ARGV[3], ARGV[4])
"""
)
