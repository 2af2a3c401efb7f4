"""What the load of the drills does, as scenarios of the harness in `loadtest/`."""

from collections.abc import Sequence


def writers(*, short: bool) -> str:
    """A closed loop of people and programs who add, rename and remove goals, and press again until it is done.

    Every goal is "drill UUID" with that UUID as its key, which is how a row is known to be somebody's. In the short
    form they think for a moment, so that several drills fit on a machine.
    """
    thinking = 'pause = "150ms"' if short else ""
    return f"""
description = "writers who press again until it is done"
objectives = false
timeout = "10s"
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
    """A closed loop that reads the page and adds goals; who meets an error does not try again.

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
    """Programs that add a goal and do not wait for one another: for so many seconds, so many a second, and so on."""
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
