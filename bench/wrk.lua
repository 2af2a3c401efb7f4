-- With the argument `post` it sends the page's form, each time with a key of its own; at the end it prints the figures
-- as one line of JSON, after whatever wrk itself has to say.

local posts, key_head, number = false, nil, 0
local headers = { ["Content-Type"] = "application/x-www-form-urlencoded" }

function init(args)
  posts = args[1] == "post"
  key_head = args[2]
  if posts then
    -- Only then: wrk sends a fixed request faster than one that a script makes.
    request = function()
      number = number + 1
      local body = string.format("goal_name=Read+%d+books&idempotency_key=%s%012x", number, key_head, number)
      return wrk.format("POST", nil, headers, body)
    end
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "refused": %d, "broken": %d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout
  ))
end
