"""What the engine keeps to on every store and bus: messages for a session that is busy."""

import asyncio
from typing import Final

from orchestrator.core.errors import QueueFull, SessionBusy
from orchestrator.core.frames import Delta, Done
from orchestrator.core.records import Message, Run
from orchestrator.core.states import RunState
from orchestrator.engine.limits import SESSION_PARALLEL_MAX, SESSION_QUEUE_MAX
from orchestrator.ports import AgentCall
from orchestrator.testing.engine_rig import Frames, Place, Rig, hang, refused, running, until

FIFTY: Final = 50


async def tried(rig: Rig, text: str) -> Run | SessionBusy | QueueFull:
    """Return the run of a message that wants the session for itself, or why there is none."""
    try:
        return await rig.invoke(text, on_busy="reject")
    except SessionBusy as busy:
        return busy


class TheBusySessions:
    """`on_busy` says what becomes of a message for a session that has a run."""

    async def test_one_of_fifty_gets_an_idle_session(self, place: Place) -> None:
        async with running(place, hang) as rig:
            for _ in range(2):
                async with asyncio.TaskGroup() as tasks:
                    tries = [tasks.create_task(tried(rig, f"m{n}")) for n in range(FIFTY)]
                told = [task.result() for task in tries]
                [run] = [one for one in told if isinstance(one, Run)]
                busy = [one for one in told if isinstance(one, SessionBusy)]
                assert [one.details["run_id"] for one in busy] == [run.run_id] * (FIFTY - 1)
                await until(lambda: rig.agent.open_now == 1)
                await rig.engine.runs.cancel(run.run_id, "next")
                await until(lambda: rig.agent.open_now == 0)
            assert len((await rig.engine.runs.find()).items) == 2
            assert len(await rig.store.find(Message)) == 2

    async def test_who_repeats_a_message_is_not_refused_by_his_own_run(self, place: Place) -> None:
        async with running(place, hang) as rig:
            async with asyncio.TaskGroup() as tasks:
                asked = [
                    tasks.create_task(rig.invoke(on_busy="reject", request_id="k"))
                    for _ in range(20)
                ]
            assert len({task.result().run_id for task in asked}) == 1
            again = await rig.invoke(on_busy="reject", request_id="k")
            assert again.run_id == asked[0].result().run_id
            with refused(SessionBusy, again.run_id):
                await rig.invoke(on_busy="reject", request_id="other")

    async def test_an_interruption_ends_what_was_there_and_goes_next(self, place: Place) -> None:
        async with running(place, hang) as rig:
            first = await rig.invoke("first")
            await until(lambda: rig.agent.open_now == 1)
            child = await rig.child(first)
            beside = await rig.invoke("beside", on_busy="parallel")
            await until(lambda: rig.agent.open_now == 3)
            queued = [await rig.invoke(f"queued {n}") for n in range(3)]
            elsewhere = await rig.invoke("elsewhere", session_id="s2")
            await until(lambda: rig.agent.open_now == 4)
            urgent = await rig.invoke("urgent", on_busy="interrupt")
            for run in (first, beside, *queued):
                ended = await rig.stored(run)
                assert (ended.status, ended.error_message) == (RunState.CANCELLED, "interrupted")
            assert (await rig.ended(child)).status is RunState.CANCELLED
            closed = {first.run_id, child.run_id, beside.run_id}
            await until(lambda: closed <= set(rig.agent.closed), timeout_s=1)
            await until(lambda: rig.agent.calls[-1].run_id == urgent.run_id)
            assert (await rig.stored(elsewhere)).status is RunState.RUNNING
            called = {call.run_id for call in rig.agent.calls}
            assert not called & {run.run_id for run in queued}, "none began when the first ended"
            told = [message["content"] for message in rig.agent.calls[-1].messages]
            assert told == ["first", "beside", "queued 0", "queued 1", "queued 2"]

    async def test_of_many_interruptions_the_last_accepted_stays(self, place: Place) -> None:
        async with running(place, hang) as rig:
            await rig.invoke("first")
            await until(lambda: rig.agent.open_now == 1)
            async with asyncio.TaskGroup() as tasks:
                asked = [
                    tasks.create_task(rig.invoke(f"m{n}", on_busy="interrupt", request_id=f"{n}"))
                    for n in range(10)
                ]
            runs = [await rig.stored(task.result()) for task in asked]
            last = max(runs, key=lambda run: run.key)
            for run in runs:
                assert (run.status is RunState.CANCELLED) == (run != last), run
            await until(lambda: rig.agent.calls[-1].run_id == last.run_id)
            number = next(n for n, run in enumerate(runs) if run == last)
            again = await rig.invoke(f"m{number}", on_busy="interrupt", request_id=f"{number}")
            assert again.run_id == last.run_id
            await rig.once(last, lambda run: run.status is RunState.RUNNING)

    async def test_parallel_runs_neither_wait_nor_hold(self, place: Place) -> None:
        answers: dict[str, asyncio.Event] = {name: asyncio.Event() for name in "abc"}

        async def script(call: AgentCall) -> Frames:
            yield [Delta(f"{call.content} ")]
            await answers[str(call.content)].wait()
            yield [Delta("is done"), Done()]

        async with running(place, script) as rig:
            first = await rig.invoke("a")
            await until(lambda: len(rig.agent.calls) == 1)
            beside = await rig.invoke("b", on_busy="parallel")
            await until(lambda: len(rig.agent.calls) == 2)
            assert (await rig.log(beside))[1]["payload"].get("queued") is None
            after = await rig.invoke("c")
            assert (await rig.log(after))[1]["payload"]["queued"] is True
            answers["a"].set()
            await rig.ended(first)
            await until(lambda: len(rig.agent.calls) == 3)
            assert (await rig.stored(beside)).status is RunState.RUNNING, "it holds nobody up"
            answers["c"].set()
            await rig.ended(after)
            assert (await rig.invoke("a", on_busy="reject")).parallel is False
            answers["b"].set()
            await rig.ended(beside)
            found = (await rig.engine.sessions.messages("s1")).messages
            said = [(message.run_id, message.role, message.content) for message in found]
            for run, text in ((first, "a"), (beside, "b"), (after, "c")):
                own = [line[1:] for line in said if line[0] == run.run_id]
                assert own == [("user", text), ("assistant", f"{text} is done")]
            places = [message.pos for message in found[:6]]
            assert places == sorted(set(places))

    async def test_who_waits_is_told_also_when_all_come_at_once(self, place: Place) -> None:
        async with running(place, hang) as rig:
            async with asyncio.TaskGroup() as tasks:
                tries = [tasks.create_task(rig.invoke(f"m{n}")) for n in range(5)]
            runs = sorted((task.result() for task in tries), key=lambda run: run.key)
            told = [(await rig.log(run))[1]["payload"].get("queued", False) for run in runs]
            assert told == [False, True, True, True, True]
            await rig.engine.runs.cancel(runs[0].run_id, "enough")

    async def test_a_sessions_queue_is_bounded_and_outlives_the_server(self, place: Place) -> None:
        async with running(place, hang) as rig:
            await rig.invoke("first")
            await until(lambda: rig.agent.open_now == 1)
            async with asyncio.TaskGroup() as tasks:
                for n in range(SESSION_QUEUE_MAX - 1):
                    tasks.create_task(rig.invoke(f"m{n}"))
            async with asyncio.TaskGroup() as tasks:
                tries = [tasks.create_task(_queued(rig)) for _ in range(10)]
            assert sum(isinstance(task.result(), Run) for task in tries) == 1, "exactly one more"
            with refused(QueueFull, f"{SESSION_QUEUE_MAX} runs of session s1 wait"):
                await rig.invoke()
            assert (await rig.invoke("beside", on_busy="parallel")).parallel
            async with asyncio.TaskGroup() as tasks:
                for n in range(SESSION_PARALLEL_MAX - 1):
                    tasks.create_task(rig.invoke(f"p{n}", on_busy="parallel"))
            with refused(QueueFull, f"{SESSION_PARALLEL_MAX} parallel runs of session s1"):
                await rig.invoke("one too many", on_busy="parallel")
            assert (await rig.invoke("elsewhere", session_id="s2")).run_id
            waiting = await rig.engine.runs.find(session_id="s1", status=["created"], limit=200)
            queued = [run for run in waiting.items if not run.parallel]
            assert len(queued) == SESSION_QUEUE_MAX
            await rig.engine.runs.cancel(queued[-1].run_id, "room")
            assert isinstance(await _queued(rig), Run)
        async with running(place, known=True) as rig:
            for run in queued[:-1]:
                assert (await rig.ended(run, 30)).status is RunState.DONE
            called = [call.run_id for call in rig.agent.calls]
            assert len(called) == len(set(called)), "each once"


async def _queued(rig: Rig) -> Run | QueueFull:
    try:
        return await rig.invoke("one more")
    except QueueFull as full:
        return full
