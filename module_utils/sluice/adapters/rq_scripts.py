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
-- A field of a job; a word that no job has where the key is of another type: nobody's job, and no place for ours.
local function field(key, name)
  local found = redis.pcall('HGET', key, name)
  if type(found) ~= 'table' then return found end
  if not string.find(found.err, 'WRONGTYPE', 1, true) then error(found.err) end
  return '(no job)'
end
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
      if field(key, 'status') == 'created' and field(key, 'data') == data
        then redis.call('DEL', key) else foreign = true end
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
#: queue, ETA in epoch seconds ('' = due). Whether an ETA has passed goes by Redis' clock: that of the host which calls
#: may be off. RQ keeps whole seconds, so it is rounded up. A store behind the caller's knowledge was restarted without
#: its last writes: it is refused.
#: Answers: the number made runnable, then the ids whose staged hash is gone.
ACTIVATE = (
    _GUARD
    + """
if tonumber(redis.call('GET', ARGV[9]) or '0') < tonumber(ARGV[10]) then return redis.error_reply('SLUICE behind') end
local out, count = {0}, 0
local lists, order, members = {}, {}, {}
local marked = {}
local moment = redis.call('TIME')
local now = tonumber(moment[1]) + tonumber(moment[2]) / 1000000
for from = 11, #ARGV, 3000 do
  local ids = {}
  for at = from, math.min(from + 2999, #ARGV), 3 do ids[#ids + 1] = ARGV[at] end
  for _, word in ipairs(redis.call('SMISMEMBER', KEYS[3], unpack(ids))) do marked[#marked + 1] = word end
end
for at = 11, #ARGV, 3 do
  local id, queue, eta = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if marked[(at - 8) / 3] == 0 then
    local key = ARGV[3] .. id
    if field(key, 'status') == 'created' then
      if lists[queue] == nil then lists[queue] = {}; order[#order + 1] = queue end
      if eta == '' or tonumber(eta) <= now then
        redis.call('HSET', key, 'status', 'queued', 'enqueued_at', ARGV[7])
        lists[queue][#lists[queue] + 1] = id
      else
        redis.call('HSET', key, 'status', 'scheduled')
        redis.call('ZADD', ARGV[5] .. queue, math.ceil(tonumber(eta)), id)
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
  if redis.call('SISMEMBER', KEYS[3], ARGV[at]) == 0 and field(key, 'status') == 'created' then
    redis.call('DEL', key)
    count = count + 1
  end
end
return count
"""
)

#: ARGV: 3 RQ's prefix with its colon; then job ids. Removes what is left of jobs that have ended, and their markers.
#: Answers the ids that are free now.
SUPERSEDE = (
    _GUARD
    + """
local out = {}
local registries = {finished = 'finished', failed = 'failed', stopped = 'failed', canceled = 'canceled'}
for at = 4, #ARGV do
  local id = ARGV[at]
  local key = ARGV[3] .. 'job:' .. id
  local status = field(key, 'status')
  if not status or registries[status] then
    if status then
      local origin = redis.call('HGET', key, 'origin') or ''
      redis.call('ZREM', ARGV[3] .. registries[status] .. ':' .. origin, id)
      redis.call('DEL', key, ARGV[3] .. 'results:' .. id)
    end
    redis.call('SREM', KEYS[3], id)
    out[#out + 1] = id
  end
end
return out
"""
)

#: ARGV: 3 job key prefix; 4 number of digest fields; their names; job ids. Reads only. KEYS as above, not compared.
DIGEST = """
local d = tonumber(ARGV[4])
local digest = {}
for i = 1, d do digest[i] = ARGV[4 + i] end
local out = {}
for at = 5 + d, #ARGV do
  local values = redis.pcall('HMGET', ARGV[3] .. ARGV[at], unpack(digest))
  if values.err and not string.find(values.err, 'WRONGTYPE', 1, true) then error(values.err) end
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

#: ARGV: 3 RQ's prefix with its colon; 4 number of the mapping's queues; their names; job ids. Deletes these jobs with
#: all that RQ keeps of them, except jobs of other queues. Answers kinds and numbers in turns, then '' and the ids of
#: those that were let be.
PURGE = (
    _GUARD
    + """
local p, n = ARGV[3], tonumber(ARGV[4])
local queues, ours = {}, {}
for i = 1, n do queues[i] = ARGV[4 + i]; ours[ARGV[4 + i]] = true end
local counts, kinds = {}, {}
local function add(kind, number)
  if number > 0 then
    if not counts[kind] then counts[kind] = 0; kinds[#kinds + 1] = kind end
    counts[kind] = counts[kind] + number
  end
end
local function forget(id, execution)
  local key = p .. 'execution:' .. id .. ':' .. execution
  local worker = redis.call('HGET', key, 'worker_name')
  if worker and worker ~= '' then
    add('entries of workers', redis.call('SREM', p .. 'worker:' .. worker .. ':executions', id .. ':' .. execution))
  end
  add('executions', redis.call('DEL', key))
end
local ids, chosen, others = {}, {}, {}
for at = 5 + n, #ARGV do
  local id = ARGV[at]
  local origin = field(p .. 'job:' .. id, 'origin')
  if origin and not ours[origin] then others[#others + 1] = id
  elseif not chosen[id] then chosen[id] = true; ids[#ids + 1] = id end
end
for _, queue in ipairs(queues) do
  for _, member in ipairs(redis.call('ZRANGE', p .. 'wip:' .. queue, 0, -1)) do
    local id, execution = string.match(member, '^(.*):([^:]*)$')
    if chosen[member] or (id and chosen[id]) then
      add('entries of registries', redis.call('ZREM', p .. 'wip:' .. queue, member))
      if id and chosen[id] then forget(id, execution) end
    end
  end
end
local crons = redis.call('ZRANGE', p .. 'cron_jobs', 0, -1)
for _, id in ipairs(ids) do
  local key = p .. 'job:' .. id
  local links = redis.call('HMGET', key, 'rate_limit_key', 'group_id', 'worker_name')
  for _, execution in ipairs(redis.call('ZRANGE', p .. 'executions:' .. id, 0, -1)) do forget(id, execution) end
  add('executions', redis.call('DEL', p .. 'executions:' .. id))
  if links[3] and links[3] ~= '' then
    local set = p .. 'worker:' .. links[3] .. ':executions'
    for _, member in ipairs(redis.call('SMEMBERS', set)) do
      if string.match(member, '^(.*):[^:]*$') == id then
        add('entries of workers', redis.call('SREM', set, member))
      end
    end
  end
  for _, parent in ipairs(redis.call('SMEMBERS', p .. 'job::' .. id .. ':dependencies')) do
    if not chosen[parent] then
      add('entries of dependents', redis.call('SREM', p .. 'job:' .. parent .. ':dependents', id))
    end
  end
  for _, child in ipairs(redis.call('SMEMBERS', key .. ':dependents')) do
    local origin = field(p .. 'job:' .. child, 'origin')
    if origin and not ours[origin] then add('jobs of other queues that waited for one of these', 1) end
  end
  for _, queue in ipairs(queues) do
    local list = p .. 'queue:' .. queue
    add('entries of queues', redis.call('LREM', list, 0, id))
    add('entries of queues', redis.call('LREM', list .. ':intermediate', 0, id))
    add('marks of intermediate queues', redis.call('DEL', list .. ':intermediate:first_seen:' .. id))
    for _, word in ipairs({'scheduled', 'deferred', 'ready', 'finished', 'failed', 'canceled'}) do
      add('entries of registries', redis.call('ZREM', p .. word .. ':' .. queue, id))
    end
  end
  if links[1] and links[1] ~= '' then
    local limit = p .. 'rl:' .. links[1]
    add('entries of rate limits', redis.call('ZREM', limit .. ':allowed', id))
    add('entries of rate limits', redis.call('ZREM', limit .. ':rate_limited', id))
    if redis.call('EXISTS', limit .. ':allowed', limit .. ':rate_limited') == 0 then
      redis.call('SREM', p .. 'rl-keys', links[1])
      add('rate limits', redis.call('DEL', limit))
    end
  end
  if links[2] and links[2] ~= '' then
    local group = p .. 'group:' .. links[2]
    add('entries of groups', redis.call('SREM', group, id))
    if redis.call('EXISTS', group) == 0 then add('groups', redis.call('SREM', p .. 'groups', links[2])) end
  end
  for _, name in ipairs(crons) do
    add('entries of cron jobs', redis.call('ZREM', p .. 'cron_job:' .. name .. ':jobs', id))
  end
  add('dependency sets', redis.call('DEL', key .. ':dependents', p .. 'job::' .. id .. ':dependencies'))
  add('results', redis.call('DEL', p .. 'results:' .. id))
  add('jobs', redis.call('DEL', key))
end
local out = {}
for _, kind in ipairs(kinds) do out[#out + 1] = kind; out[#out + 1] = counts[kind] end
out[#out + 1] = ''
for _, id in ipairs(others) do out[#out + 1] = id end
return out
"""
)

#: ARGV: 3 job key prefix; 4 a list of RQ's; 5 number of the mapping's queues; their names; ids in the order from its
#: tail. Takes each out once, from the tail, unless its job belongs to another queue. Answers their number.
UNLIST = (
    _GUARD
    + """
local ours = {}
for i = 1, tonumber(ARGV[5]) do ours[ARGV[5 + i]] = true end
local count = 0
for at = 6 + tonumber(ARGV[5]), #ARGV do
  local origin = field(ARGV[3] .. ARGV[at], 'origin')
  if not origin or ours[origin] then count = count + redis.call('LREM', ARGV[4], -1, ARGV[at]) end
end
return count
"""
)

#: ARGV: 3 RQ's prefix with its colon; 4 number of the mapping's queues; their names; then '1' when the caller has
#: proved every worker of these queues dead, else ''; the time (ISO) before which a last heartbeat is too old for a
#: worker, and the one for a scheduler; then keys of workers and schedulers. Removes those that are dead and serve these
#: queues only; a dead one that serves others too leaves these queues' sets. Without such keys: what RQ keeps of these
#: queues although nothing is in them. Answers kinds and numbers in turns.
SWEEP = (
    _GUARD
    + """
local p, n = ARGV[3], tonumber(ARGV[4])
local queues, ours = {}, {}
for i = 1, n do queues[i] = ARGV[4 + i]; ours[ARGV[4 + i]] = true end
local proved = ARGV[5 + n] == '1'
local worker_cutoff, scheduler_cutoff = ARGV[6 + n], ARGV[7 + n]
local counts, kinds = {}, {}
local function add(kind, number)
  if number > 0 then
    if not counts[kind] then counts[kind] = 0; kinds[#kinds + 1] = kind end
    counts[kind] = counts[kind] + number
  end
end
local function unlist(key)
  for _, queue in ipairs(queues) do
    add('entries of worker sets', redis.call('SREM', p .. 'workers:' .. queue, key))
  end
end
local worker, scheduler = p .. 'worker:', p .. 'scheduler:'
for at = 8 + n, #ARGV do
  local key = ARGV[at]
  local kind = redis.call('TYPE', key)['ok']
  if kind == 'none' and string.sub(key, 1, #worker) == worker then
    local listed = 0
    for _, queue in ipairs(queues) do listed = listed + redis.call('SISMEMBER', p .. 'workers:' .. queue, key) end
    if listed > 0 then
      unlist(key)
      add('entries of worker sets', redis.call('SREM', p .. 'workers', key))
      add('workers', redis.call('DEL', key .. ':executions'))
    end
  elseif kind == 'hash' then
    local values = redis.call('HMGET', key, 'queues', 'last_heartbeat', 'death')
    local mine, others = false, false
    for queue in string.gmatch(values[1] or '', '[^,]+') do
      if ours[queue] then mine = true else others = true end
    end
    local is_worker = string.sub(key, 1, #worker) == worker
    local cutoff = is_worker and worker_cutoff or scheduler_cutoff
    local dead = proved or (values[3] and values[3] ~= '') or (values[2] or '') < cutoff
    if mine and not dead then
      add(is_worker and 'workers alive' or 'schedulers alive', 1)
    elseif mine and others then
      if is_worker then unlist(key) end
    elseif mine and is_worker then
      unlist(key)
      add('entries of worker sets', redis.call('SREM', p .. 'workers', key))
      add('workers', redis.call('DEL', key))
      redis.call('DEL', key .. ':executions')
    elseif mine and string.sub(key, 1, #scheduler) == scheduler then
      add('schedulers', redis.call('DEL', key))
    end
  end
end
if #ARGV >= 8 + n then
  local out = {}
  for _, kind in ipairs(kinds) do out[#out + 1] = kind; out[#out + 1] = counts[kind] end
  return out
end
for _, queue in ipairs(queues) do
  local list = p .. 'queue:' .. queue
  if redis.call('EXISTS', list, list .. ':intermediate') == 0 then
    add('queues', redis.call('SREM', p .. 'queues', list))
    add('locks', redis.call('DEL', p .. 'clean_registries:' .. queue))
    local lock = p .. 'scheduler-lock:' .. queue
    local holder = redis.call('GET', lock)
    -- The holder's hash has just been looked at; RQ 2 keeps none, and its lock ends by itself.
    if holder and (proved or redis.call('PTTL', lock) < 0) then add('locks', redis.call('DEL', lock)) end
  end
end
local out = {}
for _, kind in ipairs(kinds) do out[#out + 1] = kind; out[#out + 1] = counts[kind] end
return out
"""
)
