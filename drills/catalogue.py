"""All drills; a new one needs a module and one line here."""

from collections.abc import Callable, Coroutine

from drills import failover, grey, major, migration, overload, restore, rollout, rotation, stuck, widen
from drills.drill import Drill

DRILLS: dict[str, Callable[[Drill], Coroutine[None, None, None]]] = {
    "failover": failover.run,
    "grey": grey.run,
    "rollout": rollout.run,
    "overload": overload.run,
    "migration": migration.run,
    "widen": widen.run,
    "rotation": rotation.run,
    "stuck": stuck.run,
    "restore": restore.run,
    "major": major.run,
}
"""All drills, in the order in which they run and are reported."""
