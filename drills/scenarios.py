"""The load of the drills, as scenarios for `loadtest/`."""

from collections.abc import Sequence


def writers(*, short: bool, waiting: bool = False, alone: bool = False) -> str:
    """A closed loop of people and programs that add, rename and remove goals, and retry until they succeed.

    Every goal is "drill UUID" with that UUID as its key, which identifies its client. In the short form, there is
    a short think time, so that several drills fit on a machine. `waiting` clients wait longer than a write waits for
    the primary, and unless they are `alone`, they have a short think time, because readers need the machine too.
    """
    thinking = 'pause = "150ms"' if short else 'pause = "100ms"' if waiting and not alone else ""
    return f"""
description = "writers who retry until they succeed"
objectives = false
timeout = "{_PATIENT if waiting else "10s"}"
{thinking}

[load]
executor = "constant-vus"
vus = 32
duration = "1h"

[[task]]
weight = 50
{_ADD_BY_FORM}

[[task]]
weight = 30
{_ADD_BY_API}
[[task.step]]
name = "rename by the API"
method = "PATCH"
path = "/api/v1/goals/${{goal_id}}"
json = {{ goal_name = "drill ${{uuid}} renamed" }}
attempts = 100

[[task]]
weight = 20
{_ADD_BY_API}
[[task.step]]
name = "remove by the form"
method = "POST"
path = "/remove_goal"
form = {{ goal_id = "${{goal_id}}" }}
attempts = 100
"""


_PATIENT = "25s"
SHOWN = "drill [0-9a-f-]{24}([0-9a-f]{12}(?: renamed)?)"
"""A goal's name on a page or in a list: the end of its UUID is enough, and keeps the journal small."""


def readers(rate: float) -> str:
    """An open loop that reads the page and the list, and records in the journal what they show.

    Each read uses a new connection: the server may close an idle one just when it is used again.
    """
    return f"""
description = "readers whose pages are recorded"
objectives = false
timeout = "10s"

[load]
executor = "constant-arrival-rate"
rate = {rate:g}
duration = "1h"

[[task]]
[[task.step]]
name = "page"
path = "/"
headers = {{ Connection = "close" }}
journal = {{ shown = 'body Edit <bdi>{SHOWN}<', cache = "header Cache-Status" }}

[[task]]
[[task.step]]
name = "list"
path = "/api/v1/goals"
headers = {{ Connection = "close" }}
journal = {{ shown = 'body "goal_name": ?"{SHOWN}"', cache = "header Cache-Status" }}
"""


def crowd(programs: int) -> str:
    """A closed loop of programs that add a goal now and then, and retry after the time in `Retry-After`."""
    return f"""
description = "programs that retry after the time in Retry-After"
objectives = false
timeout = "{_PATIENT}"
pause = "8s"

[load]
executor = "constant-vus"
vus = {programs}
duration = "1h"

[[task]]
{_ADD_BY_API.replace("headers = {", 'headers = { Connection = "close",')}
journal = {{ retry_after = "header Retry-After" }}
"""


_ADD_BY_FORM = """
[[task.step]]
name = "add by the form"
method = "POST"
path = "/add_goal"
form = { goal_name = "drill ${uuid}", idempotency_key = "${uuid}" }
attempts = 100
"""
_ADD_BY_API = """
[[task.step]]
name = "add by the API"
method = "POST"
path = "/api/v1/goals"
headers = { Idempotency-Key = "${uuid}" }
json = { goal_name = "drill ${uuid}" }
attempts = 100
save = { goal_id = 'body "id": ?(\\d+)' }
"""


def visitors(users: int, *, pause: str | None = None, close: bool = False) -> str:
    """A closed loop that reads the page and adds goals, without retries after an error.

    `pause` is the think time, `close` opens a connection for every request.
    """
    headers = 'headers = { Connection = "close" }' if close else ""
    thinking = f'pause = "{pause}"' if pause else ""
    return f"""
description = "visitors who try once"
objectives = false
timeout = "10s"
{thinking}

[load]
executor = "constant-vus"
vus = {users}
duration = "1h"

[[task]]
weight = 70
[[task.step]]
name = "page"
path = "/"
{headers}

[[task]]
weight = 30
[[task.step]]
name = "add by the form"
method = "POST"
path = "/add_goal"
form = {{ goal_name = "drill ${{uuid}}", idempotency_key = "${{uuid}}" }}
{headers}
"""


def arrivals(stages: Sequence[tuple[float, float]]) -> str:
    """Programs that add goals independently of one another, in stages of (seconds, requests per second)."""
    steps = ", ".join(
        f'{{ duration = "1ms", target = {rate:g} }}, {{ duration = "{seconds * 1000:.0f}ms", target = {rate:g} }}'
        for seconds, rate in stages
    )
    return f"""
description = "arrivals in steps"
objectives = false
timeout = "10s"

[load]
executor = "ramping-arrival-rate"
start_rate = {stages[0][1]:g}
stages = [{steps}]
max_vus = 3000

[[task]]
[[task.step]]
name = "add by the API"
method = "POST"
path = "/api/v1/goals"
headers = {{ Idempotency-Key = "${{uuid}}" }}
json = {{ goal_name = "drill ${{uuid}}" }}
"""
