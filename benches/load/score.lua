-- Questions for wrk: `-- json|binary LENGTH PROMPTS`. Each thread has one connection, so that what lies between a request and the
-- next answer is that request's time; answers of 503 are counted apart.
local ffi = require("ffi")
ffi.cdef [[
typedef struct { long sec; long nsec; } timespec_t;
int clock_gettime(int clock, timespec_t *now);
]]
local now = ffi.new("timespec_t")

local function micros()
    ffi.C.clock_gettime(1, now)
    return tonumber(now.sec) * 1e6 + tonumber(now.nsec) / 1e3
end

local threads = {}

function setup(thread)
    table.insert(threads, thread)
    thread:set("number", #threads)
end

local bodies, path, kind, sent, turn = {}, nil, nil, 0, 0
accepted, refused, wrong = {}, 0, 0

function init(args)
    local form, length, prompts = args[1], tonumber(args[2]), tonumber(args[3])
    for prompt = 0, prompts - 1 do
        local parts = {}
        for i = 0, length - 1 do
            local token = (i * 7919 + prompt * 104729 + length) % 120000
            if form == "binary" then
                parts[i + 1] = string.char(token % 256, math.floor(token / 256) % 256, math.floor(token / 65536), 0)
            else
                parts[i + 1] = tostring(token)
            end
        end
        if form == "binary" then
            bodies[prompt + 1] = table.concat(parts)
        else
            bodies[prompt + 1] = '{"model":"m","token_ids":[' .. table.concat(parts, ",") .. "]}"
        end
    end
    path = form == "binary" and "/v1/score?model=m" or "/v1/score"
    kind = form == "binary" and "application/octet-stream" or "application/json"
    for n, body in ipairs(bodies) do
        bodies[n] = wrk.format("POST", path, { ["Content-Type"] = kind }, body)
    end
    turn = number
end

function request()
    turn = turn % #bodies + 1
    sent = micros()
    return bodies[turn]
end

function response(status)
    local took = micros() - sent
    if status == 200 then
        -- Buckets of 2 %.
        local bucket = math.floor(math.log(took) / math.log(1.02))
        accepted[bucket] = (accepted[bucket] or 0) + 1
    elseif status == 503 then
        refused = refused + 1
    else
        wrong = wrong + 1
    end
end

function done(summary)
    local counts, total, refused, wrong, highest = {}, 0, 0, 0, 0
    for _, thread in ipairs(threads) do
        refused = refused + thread:get("refused")
        wrong = wrong + thread:get("wrong")
        for bucket, count in pairs(thread:get("accepted")) do
            counts[bucket] = (counts[bucket] or 0) + count
            total = total + count
            highest = math.max(highest, bucket)
        end
    end
    local function quantile(share)
        local left = total * share
        for bucket = 0, highest do
            left = left - (counts[bucket] or 0)
            if left <= 0 then return 1.02 ^ (bucket + 0.5) end
        end
        return 0
    end
    local seconds = summary.duration / 1e6
    print(string.format("accepted/s %.0f p50_us %.0f p99_us %.0f refused/s %.0f wrong %d", total / seconds,
        quantile(0.5), quantile(0.99), refused / seconds, wrong + summary.errors.connect + summary.errors.read
        + summary.errors.write + summary.errors.timeout))
end
