-- Questions for wrk: `-- json|binary DIRECTORY PROMPTS [wait]`; DIRECTORY has the bodies, so that a thread begins at once. Each thread has one
-- connection, so that what lies between a request and the next answer is that request's time; answers of 503 are counted apart. With
-- `wait` whoever got one waits for as long as it says.
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

local bodies, sent, turn, patient, pause = {}, 0, 0, false, 0
accepted, refused, wrong, first, last = {}, 0, 0, 0, 0

function init(args)
    local form, directory, prompts = args[1], args[2], tonumber(args[3])
    local path = form == "binary" and "/v1/score?model=m" or "/v1/score"
    local kind = form == "binary" and "application/octet-stream" or "application/json"
    for prompt = 0, prompts - 1 do
        local file = assert(io.open(directory .. "/" .. prompt, "rb"))
        bodies[prompt + 1] = wrk.format("POST", path, { ["Content-Type"] = kind }, file:read("*a"))
        file:close()
    end
    patient, turn = args[4] == "wait", number
end

function delay()
    local wait = pause
    pause = 0
    return wait
end

function request()
    turn = turn % #bodies + 1
    sent = micros()
    if first == 0 then first = sent end
    return bodies[turn]
end

function response(status, headers)
    last = micros()
    local took = last - sent
    if status == 200 then
        -- Buckets of 2 %.
        local bucket = math.floor(math.log(took) / math.log(1.02))
        accepted[bucket] = (accepted[bucket] or 0) + 1
    elseif status == 503 then
        refused = refused + 1
        if patient then pause = 1000 * tonumber(headers["retry-after"]) end
    else
        wrong = wrong + 1
    end
end

function done(summary)
    local counts, total, refused, wrong, highest = {}, 0, 0, 0, 0
    local first, last = math.huge, 0
    for _, thread in ipairs(threads) do
        first, last = math.min(first, thread:get("first")), math.max(last, thread:get("last"))
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
    local seconds = (last - first) / 1e6
    print(string.format("accepted/s %.0f p50_us %.0f p99_us %.0f refused/s %.0f wrong %d", total / seconds,
        quantile(0.5), quantile(0.99), refused / seconds, wrong + summary.errors.connect + summary.errors.read
        + summary.errors.write + summary.errors.timeout))
end
