"""Who gets in, who waits and who is refused, on a clock that jumps."""

import asyncio

import pytest

from goals.errors import DatabaseUnavailableError, OverloadedError
from goals.gate import Gate
from tests.clock import simulated
from tests.conftest import LIMITS


class Visitors:
    """Visitors of a gate, in the order in which they came in."""

    def __init__(self, size: int = 1) -> None:
        self.gate = Gate(size, LIMITS)
        self.entered: list[str] = []

    async def come(self, name: str, seconds: float = 60, *, write: bool = False) -> asyncio.Task[None]:
        async def enter() -> None:
            await self.gate.enter(asyncio.get_running_loop().time() + seconds, write=write)
            self.entered.append(name)

        task = asyncio.create_task(enter())
        await asyncio.sleep(0)
        return task

    async def answer(self, seconds: float) -> None:
        """Let the database answer for so long, much more often than it would count as away."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            self.gate.note_answer(loop.time())
            await asyncio.sleep(LIMITS.unresponsive_after / 10)


@simulated
async def test_the_gate_lets_in_by_order_of_arrival() -> None:
    visitors = Visitors()
    tasks = [await visitors.come(name) for name in ("first", "second", "third")]
    for task in tasks:
        await task
        visitors.gate.leave()
    assert visitors.entered == ["first", "second", "third"]
    await visitors.gate.enter(0)  # and there is room again


@simulated
async def test_who_comes_for_others_that_were_admitted_is_not_refused_and_takes_their_room() -> None:
    visitors = Visitors()
    visits = [await visitors.come(str(number)) for number in range(1 + LIMITS.gate_queue - 3)]
    group = asyncio.create_task(visitors.gate.enter(60, admitted=64))
    await asyncio.sleep(0)
    assert visitors.gate.waiting == LIMITS.gate_queue - 3 + 64
    with pytest.raises(OverloadedError, match="Too many"):
        await (await visitors.come("one too many"))
    for _ in visits:
        visitors.gate.leave()
    await group
    assert visitors.gate.waiting == 0


@simulated
async def test_a_wait_that_is_over_is_not_reviewed() -> None:
    gate = Gate(1, LIMITS)
    turn = gate.expect(60, write=True)
    turn.future.cancel()
    await asyncio.sleep(2 * LIMITS.gate_timeout)
    gate.forget(turn)
    assert (gate.waiting, sum(gate.rejections.values())) == (0, 0)


@simulated
async def test_whose_turn_has_come_has_until_its_deadline() -> None:
    gate = Gate(1, LIMITS)
    turn = gate.expect(60, write=True)
    gate.call(turn)
    await asyncio.sleep(59)
    assert not turn.future.done()
    with pytest.raises(DatabaseUnavailableError, match="in time"):
        await turn.future
    gate.forget(turn)
    assert (gate.waiting, sum(gate.rejections.values())) == (0, 0)


@simulated
async def test_a_full_queue_refuses_at_once() -> None:
    visitors = Visitors()
    tasks = [await visitors.come(str(number)) for number in range(1 + LIMITS.gate_queue)]
    with pytest.raises(OverloadedError, match="Too many"):
        await (await visitors.come("one too many"))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@simulated
async def test_a_wait_is_short_while_the_database_answers() -> None:
    visitors = Visitors()
    await visitors.come("first")
    second = await visitors.come("second")
    await visitors.answer(LIMITS.gate_timeout)
    with pytest.raises(OverloadedError, match="cannot keep up"):
        await second


@simulated
async def test_a_wait_lasts_until_the_deadline_while_the_database_is_away() -> None:
    visitors = Visitors()
    await visitors.come("first")
    with pytest.raises(DatabaseUnavailableError):
        await (await visitors.come("second", seconds=2 * LIMITS.gate_timeout))
    third = await visitors.come("third")
    visitors.gate.leave()
    await third


@simulated
async def test_a_wait_counts_anew_when_the_database_is_back() -> None:
    visitors = Visitors()
    loop = asyncio.get_running_loop()
    await visitors.come("first")
    visitors.gate.note_answer(loop.time())  # and from here on it hangs
    second = await visitors.come("second")
    await asyncio.wait({second}, timeout=2 * LIMITS.gate_timeout)
    visitors.gate.note_answer(loop.time())
    await asyncio.wait({second}, timeout=LIMITS.gate_timeout / 2)
    assert not second.done()
    visitors.gate.leave()
    await second


@simulated
async def test_a_queue_that_stands_has_room_for_few() -> None:
    visitors = Visitors(2)
    for name in ("first", "beside the first"):
        await visitors.come(name)
    waiting = [await visitors.come(name) for name in ("second", "third")]
    await visitors.answer(LIMITS.gate_timeout - LIMITS.acceptable_wait / 2)
    visitors.gate.leave()
    await waiting[0]  # after a wait that was not quick
    await visitors.answer(LIMITS.gate_timeout)
    with pytest.raises(OverloadedError, match="cannot keep up"):
        await waiting[1]
    fourth = await visitors.come("fourth")
    with pytest.raises(OverloadedError, match="Too many"):
        await (await visitors.come("fifth"))
    visitors.gate.leave()
    await fourth
    visitors.gate.leave()  # nobody waits: the queue does not stand any more
    await visitors.come("sixth")
    waiting = [await visitors.come(name) for name in ("seventh", "eighth")]
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)


@simulated
async def test_a_visitor_who_leaves_gives_the_turn_to_the_next() -> None:
    visitors = Visitors()
    await visitors.come("first")
    second, third, fourth = [await visitors.come(name) for name in ("second", "third", "fourth")]
    third.cancel()
    visitors.gate.leave()
    second.cancel()  # just when the turn has come
    await asyncio.wait({second, third})
    await fourth
    assert visitors.entered == ["first", "fourth"]


@simulated
async def test_nobody_is_let_in_while_the_primary_is_away() -> None:
    visitors, loop = Visitors(4), asyncio.get_running_loop()
    await visitors.come("under way")
    shutting = visitors.gate.shutting()
    visitors.gate.shut(loop.time())
    await shutting
    visitors.gate.shut(loop.time())
    waiting = [await visitors.come("a read"), await visitors.come("a write", write=True)]
    visitors.gate.leave()
    await asyncio.sleep(2 * LIMITS.gate_timeout)
    assert visitors.entered == ["under way"]
    visitors.gate.open(loop.time())
    await asyncio.gather(*waiting)


@simulated
async def test_writes_leave_places_to_reads() -> None:
    visitors = Visitors(LIMITS.kept_for_reads + 1)
    await visitors.come("a write", write=True)
    second = await visitors.come("a second write", write=True)
    await visitors.come("a read")
    assert visitors.entered == ["a write", "a read"]
    visitors.gate.leave()
    await asyncio.sleep(0)
    assert not second.done()
    visitors.gate.leave(write=True)
    await second


@simulated
async def test_many_writes_may_wait_for_the_primary_and_none_that_waited_is_too_many_afterwards() -> None:
    visitors, loop = Visitors(LIMITS.kept_for_reads + 1), asyncio.get_running_loop()
    visitors.gate.shut(loop.time())
    waiting = [await visitors.come(str(number), write=True) for number in range(LIMITS.write_queue)]
    with pytest.raises(OverloadedError, match="Too many") as caught:
        await (await visitors.come("one too many", write=True))
    assert caught.value.retry_after == LIMITS.failover_time
    visitors.gate.open(loop.time())
    for _ in waiting[1:]:
        await asyncio.sleep(LIMITS.gate_timeout / 100)
        visitors.gate.note_answer(loop.time(), write=True)
        visitors.gate.leave(write=True)
    await asyncio.gather(*waiting)
    assert visitors.gate.retry_after(loop.time(), write=True) == 1


@simulated
async def test_no_write_is_refused_while_those_of_a_failover_are_done_and_then_as_always() -> None:
    visitors, loop = Visitors(LIMITS.kept_for_reads + 1), asyncio.get_running_loop()
    visitors.gate.shut(loop.time())
    waited = [await visitors.come(f"in the failover {number}", write=True) for number in range(LIMITS.gate_queue)]
    visitors.gate.open(loop.time())
    await visitors.answer(2 * LIMITS.gate_timeout)
    for _ in range(3):  # the first statements wait for a standby until they are given up
        visitors.gate.leave(write=True)
        waited.append(await visitors.come("before the first commit", write=True))
        await visitors.answer(LIMITS.gate_timeout / 2)
    visitors.gate.note_answer(loop.time(), write=True)
    late = [await visitors.come(f"after it {number}", write=True) for number in range(LIMITS.gate_queue)]
    for _ in waited[3:] + late:
        await asyncio.sleep(LIMITS.gate_timeout / 10)
        visitors.gate.note_answer(loop.time(), write=True)
        visitors.gate.leave(write=True)
    await asyncio.gather(*waited, *late)
    await visitors.come("alone", write=True)
    second = await visitors.come("too late", write=True)
    for _ in range(12):
        await asyncio.sleep(LIMITS.gate_timeout / 10)
        visitors.gate.note_answer(loop.time(), write=True)
    with pytest.raises(OverloadedError, match="cannot keep up"):
        await second


@simulated
async def test_writes_wait_while_every_commit_waits_for_a_standby_and_reads_are_answered() -> None:
    visitors, loop = Visitors(LIMITS.kept_for_reads + 1), asyncio.get_running_loop()
    await visitors.come("waits for a standby", write=True)
    waiting = [await visitors.come("waits for its turn", write=True)]
    await visitors.answer(2 * LIMITS.command_timeout)
    waiting += [await visitors.come(str(number), write=True) for number in range(LIMITS.gate_queue)]
    assert not any(write.done() for write in waiting)
    visitors.gate.note_answer(loop.time(), write=True)
    for _ in waiting:
        visitors.gate.leave(write=True)
    await asyncio.gather(*waiting)


@simulated
async def test_a_refused_write_is_told_when_failovers_have_mostly_ended() -> None:
    gate, loop = Gate(1, LIMITS), asyncio.get_running_loop()
    gate.shut(loop.time())
    await asyncio.sleep(4.5)
    assert gate.retry_after(loop.time(), write=True) == LIMITS.failover_time - 4
    await asyncio.sleep(60)  # longer than any that was measured
    assert gate.retry_after(loop.time(), write=True) == LIMITS.failover_time / 2
    gate.open(loop.time())
    assert gate.retry_after(loop.time(), write=False) == 1  # a read is refused for its own reasons
    gate.shut(loop.time())
    assert gate.retry_after(loop.time(), write=False) == LIMITS.failover_time  # another failover


@simulated
async def test_who_has_given_up_takes_up_no_room_while_the_gate_is_shut() -> None:
    visitors, loop = Visitors(), asyncio.get_running_loop()
    visitors.gate.shut(loop.time())
    for _ in range(3):
        gone = await visitors.come("gone", seconds=1)
        with pytest.raises(DatabaseUnavailableError):
            await gone
        left = await visitors.come("left")
        left.cancel()
        await asyncio.wait({left})
    assert not visitors.gate._reads.queue


@simulated
async def test_a_load_of_reads_leaves_places_to_writes() -> None:
    visitors = Visitors(LIMITS.kept_for_reads + 1)
    for number in range(2 * (LIMITS.kept_for_reads + 1)):
        await visitors.come(str(number))
    await asyncio.sleep(0.01)
    write = await visitors.come("a write", write=True)
    await asyncio.sleep(0.01)
    for _ in range(LIMITS.kept_for_reads + 2):
        visitors.gate.leave()
        await visitors.come("another read")
    await write


@simulated
async def test_who_waits_when_the_process_drains_waits_no_longer_than_it_may() -> None:
    visitors, loop = Visitors(), asyncio.get_running_loop()
    visitors.gate.shut(loop.time())
    late, soon = await visitors.come("late", write=True), await visitors.come("soon", seconds=1)
    visitors.gate.hurry(loop.time() + 3)
    for wait, ends in ((soon, 1), (late, 3)):
        with pytest.raises(DatabaseUnavailableError):
            await wait
        assert loop.time() == ends
