"""The database's password, certificate and CA are replaced under load, in either order."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import asyncpg
import trustme

from drills.broken import MODULE, forget_the_former_password, read_the_authority_once, read_the_password_once
from drills.drill import LONGEST_ANSWER, Case, Drill, observe
from drills.journal import Attempt
from drills.scenarios import visitors, writers
from drills.stage import Stage
from drills.timeline import Mark
from tools import tls
from tools.polling import until

_HOST = "localhost"
"""The host name in the certificates, which the service verifies too."""
_LAG, _SHORT_LAG = 60.0, 2.0
"""Seconds between the two halves of a rotation; a kubelet takes up to a minute to update a Secret in a pod."""
_LOSSES = 4
"""How many times connections are lost during that time."""
_FEW = 2
"""How many of the twenty connections are lost each time while they cannot be replaced: each replica keeps some."""
_CONNECT = 2.0
"""Seconds within which a replica reconnects; its pauses between attempts grow to half a second."""
_BUDGET = 3.0
"""Seconds after which a request that cannot be served gets its response."""


class Keys:
    """The files that the service has mounted, and the TLS context that the database's entrance uses."""

    def __init__(self, folder: Path) -> None:
        self.password_file = folder / "password"
        self.ca_file = folder / "ca.crt"
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority = trustme.CA()
        self.trust(self.authority)
        self.certify()

    def trust(self, *authorities: trustme.CA) -> None:
        _swap(self.ca_file, b"".join(authority.cert_pem.bytes() for authority in authorities))

    def certify(self) -> None:
        """Use a new certificate of the CA from the next connection on."""
        self.authority.issue_cert(_HOST).configure_cert(self.context)


def _swap(file: Path, content: bytes) -> None:
    """Replace a file atomically, as the kubelet does."""
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_bytes(content)
    unfinished.rename(file)


class Play(NamedTuple):
    """The context of the cases."""

    drill: Drill
    stage: Stage
    keys: Keys

    @property
    def lag(self) -> float:
        return _SHORT_LAG if self.drill.short else _LAG

    def mount(self, password: str) -> None:
        _swap(self.keys.password_file, f"{password}\n".encode())

    async def alter(self, password: str) -> None:
        await self.stage.cluster.execute(f"ALTER ROLE goals_user PASSWORD '{password}'")

    async def lose(self, most: int = 1000) -> None:
        """Terminate up to `most` of the service's connections."""
        await self.stage.cluster.fetch(
            "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity "
            "WHERE application_name = 'goals' ORDER BY random() LIMIT $1) AS lost",
            most,
        )

    async def lose_again_and_again(self, began: float, seconds: float, most: int = 1000) -> None:
        """Lose connections several times until `seconds` after `began`."""
        for number in range(_LOSSES):
            share = (number + self.drill.random.uniform(0.1, 0.6)) / _LOSSES
            await asyncio.sleep(max(began + share * seconds - time.time(), 0))
            await self.lose(most)
        await asyncio.sleep(max(began + seconds - time.time(), 0))

    async def count_connections(self, since: float) -> int:
        """Return how many of the service's connections were made since then."""
        query = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE application_name = 'goals' AND backend_start > CAST(to_timestamp($1) AS timestamptz)"
        )
        return int(await self.stage.cluster.fetch(query, since))

    def count_refusals(self) -> int:
        """Return how many times PostgreSQL has refused a password so far."""
        return self.stage.cluster.read_log().count('password authentication failed for user "goals_user"')

    def count_former(self) -> int:
        """Return how many replicas have logged that they use the former password."""
        return sum("accepts the former one" in replica.log.read_text() for replica in self.stage.replicas)

    async def read_serial(self) -> str:
        """Return the serial number of the certificate that a client gets now."""
        trusting = ssl.create_default_context(cafile=self.keys.ca_file)
        connection = await asyncpg.connect(
            host=_HOST, port=self.stage.database.port, user="postgres", database="postgres", ssl=trusting
        )
        try:
            return str(connection._transport.get_extra_info("peercert")["serialNumber"])
        finally:
            connection.terminate()

    def count_distrust(self) -> int:
        """Return how many replicas have logged that they do not trust PostgreSQL's certificate."""
        return sum("SSLCertVerificationError" in replica.log.read_text() for replica in self.stage.replicas)


async def run(drill: Drill) -> None:
    async with Stage() as stage:
        keys = Keys(stage.folder)
        play = Play(drill, stage, keys)
        await play.alter("first")
        play.mount("first")
        await stage.cluster.ask_for_passwords()
        async with tls.entrance(lambda: asyncio.open_connection("127.0.0.1", stage.cluster.port), keys.context) as port:
            stage.database.route_to([port])
            stage.variables |= {
                "DB_HOST": _HOST,
                "DB_PASSWORD_FILE": str(keys.password_file),
                "DB_CA_FILE": str(keys.ca_file),
                "SSL": "verify-full",
            }
            try:
                await _play(play)
            finally:
                # The entrance waits for its open connections.
                stage.database.route_to([])
                stage.database.sever()


async def _play(play: Play) -> None:
    drill, stage, _ = play
    await stage.serve(2)
    load = await stage.load(writers(short=drill.short))
    await asyncio.sleep(1)
    lag = f"{play.lag:g} s"
    cases: dict[str, tuple[str, Callable[[Play, Case], Awaitable[None]]]] = {
        "password, server first": (
            (
                f"the password changes in PostgreSQL, and {lag} later in the file; "
                "at first, two in five connections are lost, and then all of them"
            ),
            _change_server_first,
        ),
        "password, file first": (
            f"the password changes in the file, and {lag} later in PostgreSQL; all connections are lost repeatedly",
            _change_file_first,
        ),
        "certificate": (
            "PostgreSQL gets a new certificate from the same CA, and all connections are lost",
            _renew_certificate,
        ),
        "CA": (
            "the new CA is trusted and then used, and the old CA is removed; all connections are lost after each step",
            _change_authority,
        ),
        "CA, unannounced": (
            (
                "the new CA is used before it is in the file; "
                "at first, two in five connections are lost, and then all of them"
            ),
            _use_authority_first,
        ),
    }
    for name, (explanation, change) in cases.items():
        case = drill.begin(name, explanation)
        await change(play, case)
        await asyncio.sleep(0.5 if drill.short else 3)
        drill.end(case)
    attempts = await load.stop()
    drill.account(await stage.reconcile(attempts), attempts)
    for case in drill.cases:
        _judge(drill, case, attempts)
    drill.cases[-1].check("requests failed, up to the last response", sum(a.shows_error for a in attempts), "=", 0)
    await _control(play)


def _judge(drill: Drill, case: Case, attempts: Sequence[Attempt]) -> None:
    case.figures = observe(attempts, case.began, case.ended)
    case.check("requests failed", case.figures.errors, "=", 0)
    case.check("longest response, s", case.figures.longest_answer_s, "<", LONGEST_ANSWER, kind="timing")
    drill.draw(case, attempts)


async def _lose_all(play: Play, case: Case, what: str) -> None:
    """Lose all connections at the same time, so that the new ones must use the current credentials."""
    at, made = time.time(), 0
    await play.lose()

    async def are_made() -> bool:
        nonlocal made
        made = await play.count_connections(at)  # counted once: those that were just made may be lost again
        return made > 0

    with contextlib.suppress(TimeoutError):  # the check reports it
        await until(are_made, f"connections are made with {what}", _CONNECT * case.patience)
    case.check(f"connections made with {what}", made, ">", 0)
    await asyncio.sleep(0.3 if play.drill.short else 2)


async def _change_server_first(play: Play, case: Case) -> None:
    began = time.time()
    await play.alter("second")
    await play.lose_again_and_again(began, play.lag, most=_FEW)
    play.mount("second")
    case.marks.append(Mark(began, "server first", time.time()))
    case.check("log-ins refused while the two differed", play.count_refusals(), ">", 0)
    await _lose_all(play, case, "the new password")


async def _change_file_first(play: Play, case: Case) -> None:
    began = time.time()
    refused = play.count_refusals()
    play.mount("third")
    await play.lose_again_and_again(began, play.lag)
    await play.alter("third")
    case.marks.append(Mark(began, "file first", time.time()))
    case.check("log-ins refused while the two differed", play.count_refusals() - refused, ">", 0)
    case.check(
        "replicas that logged their use of the former password", play.count_former(), "=", len(play.stage.replicas)
    )
    await _lose_all(play, case, "the new password")


async def _renew_certificate(play: Play, case: Case) -> None:
    began = time.time()
    former = await play.read_serial()
    play.keys.certify()
    case.check("a different certificate is presented", await play.read_serial() != former, "=", 1)
    await _lose_all(play, case, "the new certificate")
    case.marks.append(Mark(began, "certificate", began))


async def _change_authority(play: Play, case: Case) -> None:
    began = time.time()
    former, new = play.keys.authority, trustme.CA()
    play.keys.trust(former, new)
    await _lose_all(play, case, "both trusted")
    play.keys.authority = new
    play.keys.certify()
    await _lose_all(play, case, "a certificate of the new authority")
    play.keys.trust(new)
    await _lose_all(play, case, "only the new authority trusted")
    case.marks.append(Mark(began, "both trusted", time.time()))


async def _use_authority_first(play: Play, case: Case) -> None:
    began = time.time()
    play.keys.authority = trustme.CA()
    play.keys.certify()
    await play.lose_again_and_again(began, min(play.lag, _LAG / 6), most=_FEW)
    play.keys.trust(play.keys.authority)
    case.marks.append(Mark(began, "unknown", time.time()))
    case.check("replicas that logged a certificate they do not trust", play.count_distrust(), ">", 0)
    await _lose_all(play, case, "the new authority")


async def _control(play: Play) -> None:
    """Run all three controls at the same time: two fail when the file and the CA change, one when PostgreSQL does.

    Each counts the failures in the half of the time in which its safeguard was missing.
    """
    drill, stage, keys = play
    await stage.clear()
    ways = (forget_the_former_password, read_the_authority_once, read_the_password_once)
    await stage.serve(0)
    replicas = await asyncio.gather(*(stage.start_replica((MODULE, way.__name__)) for way in ways))
    loads = await asyncio.gather(*(stage.load(visitors(6), replica.port) for replica in replicas))
    keys.authority = trustme.CA()
    keys.trust(keys.authority)
    keys.certify()
    play.mount("fourth")
    await play.lose()
    await asyncio.sleep(_BUDGET + 1)
    changed = time.time()
    await play.alter("fourth")
    await play.lose()
    await asyncio.sleep(0.3)
    forgetful, trusting, stubborn = [await load.stop() for load in loads]
    drill.control(
        "forget the old password",
        "the password changes first in the file, and all connections are lost",
        "requests failed before it changed in PostgreSQL",
        sum(attempt.shows_error and attempt.ended < changed for attempt in forgetful),
    )
    drill.control(
        "read the CA once",
        "the CA changes in the file and in PostgreSQL, and all connections are lost",
        "requests failed",
        sum(attempt.shows_error and attempt.ended < changed for attempt in trusting),
    )
    drill.control(
        "read the password once",
        "the password changes in the file and then in PostgreSQL, and all connections are lost",
        "requests failed after both changes",
        sum(attempt.shows_error and attempt.begun >= changed for attempt in stubborn),
    )
