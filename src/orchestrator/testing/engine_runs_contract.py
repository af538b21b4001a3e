"""What the engine keeps to on every store and bus: each run's life, its keys, its end."""

import asyncio
from functools import partial
from typing import Any, Final

import msgspec

from orchestrator.core.access import TENANT, local
from orchestrator.core.errors import (
    AgentDraining,
    AgentFailure,
    AgentNotFound,
    Draining,
    IdempotencyKeyReused,
    QueueFull,
    RunNotActive,
)
from orchestrator.core.events import TERMINAL
from orchestrator.core.frames import Delta, Done, Failed, Frame, Other, Paused, State
from orchestrator.core.records import Message, Retry, Session, Timeouts, Timer
from orchestrator.core.states import RunState
from orchestrator.engine import Invoke
from orchestrator.ports import AgentCall
from orchestrator.testing.engine_rig import (
    Frames,
    Place,
    Rig,
    Script,
    hang,
    refused,
    running,
    say,
    until,
)

GOOD: Final = ["run_started", "user_input", "agent_invoke_started"]


async def silent(_: AgentCall) -> Frames:
    """Say nothing, and stay."""
    await asyncio.Event().wait()
    yield []


async def take(rig: Rig, text: str = "hello", **fields: Any) -> Any:
    """Accept a run and return what its caller is told."""
    return await rig.engine.runs.invoke(Invoke(agent_id="demo", content=text, **fields))


class TheLife:
    """A run goes from its acceptance to one end, and its log says how."""

    async def test_a_good_run_in_the_contracts_order(self, place: Place) -> None:
        async with running(place) as rig:
            run = await rig.ended(await rig.invoke("hello"))
            log = await rig.log(run)
            assert [event["seq"] for event in log] == list(range(1, len(log) + 1))
            assert [event["type"] for event in log] == [
                *GOOD,
                "agent_stream_delta",
                "agent_stream_delta",
                "agent_invoke_done",
                "run_done",
            ]
            assert run.final_message == "you said: hello"
            assert log[-1]["payload"] == {
                "final_message": "you said: hello",
                "usage": {"tokens": 2},
            }
            messages = (await rig.engine.sessions.messages("s1")).messages
            assert [(m.role, m.content) for m in messages] == [
                ("user", "hello"),
                ("assistant", "you said: hello"),
            ]
            assert await rig.store.find(Timer) == []

    async def test_every_kind_of_frame_is_in_the_log(self, place: Place) -> None:
        async def script(_: AgentCall) -> Frames:
            yield [State("thinking", {"step": 1}), Other("custom", {"x": 1})]
            yield [Done("final", {"tokens": 1, "mine": 2})]

        async with running(place, script) as rig:
            run = await rig.ended(await rig.invoke())
            log = await rig.log(run)
            assert log[3]["payload"] == {"state": "thinking", "detail": {"step": 1}}
            assert log[4]["payload"] == {"name": "custom", "data": {"x": 1}}
            assert log[5]["payload"] == {
                "final_message": "final",
                "usage": {"tokens": 1, "mine": 2},
            }

    async def test_each_clock_ends_the_run_with_its_own_code(self, place: Place) -> None:
        cases: list[tuple[Script, Timeouts, str]] = [
            (hang, Timeouts(invoke_ms=80), "agent_timeout"),
            (silent, Timeouts(first_byte_ms=80), "agent_first_byte_timeout"),
            (hang, Timeouts(idle_ms=80), "agent_idle_timeout"),
            (hang, Timeouts(idle_ms=80, first_byte_ms=5000), "agent_idle_timeout"),
        ]
        async with running(place) as rig:
            for script, timeouts, code in cases:
                rig.agent.script = script
                await rig.register(timeouts=timeouts)
                run = await rig.ended(await rig.invoke())
                assert (run.status, run.error_code) == (RunState.FAILED, code)
                await until(lambda: not rig.agent.open_now)
                assert rig.agent.closed[-1] == run.run_id

    async def test_bad_endings_have_one_typed_failure(self, place: Place) -> None:
        cases: dict[str, list[Frame]] = {
            "agent_eof": [Delta("x")],
            "my_code": [Failed("my_code", "because")],
            "agent_protocol": [Paused(("tc_1",))],
            "run_too_large": [*[Delta("x" * 3000)] * 9, Done()],
        }

        async def script(call: AgentCall) -> Frames:
            yield cases[str(call.content)]

        async with running(place, script, max_run_bytes=20_000) as rig:
            for code in cases:
                run = await rig.ended(await rig.invoke(code))
                types = await rig.types(run)
                assert run.error_code == code
                assert [name for name in types if name in TERMINAL] == ["run_failed"]
                assert types[-1] == "run_failed"

    async def test_retries_announce_what_is_void_and_use_the_same_run(self, place: Place) -> None:
        async def script(call: AgentCall) -> Frames:
            yield [Delta(f"attempt {call.attempt}")]
            if call.attempt < 3:
                raise AgentFailure("agent_eof", "gone")
            yield [Done()]

        async with running(place, script) as rig:
            await rig.register(retry=Retry(max_attempts=3, backoff_ms=1))
            run = await rig.ended(await rig.invoke())
            log = await rig.log(run)
            assert [event["type"] for event in log] == [
                *GOOD, "agent_stream_delta", "agent_invoke_retrying",
                "agent_invoke_started", "agent_stream_delta", "agent_invoke_retrying",
                "agent_invoke_started", "agent_stream_delta", "agent_invoke_done", "run_done",
            ]  # fmt: skip
            assert log[4]["payload"]["discard_from_seq"] == 4
            assert log[7]["payload"]["discard_from_seq"] == 7
            assert run.final_message == "attempt 3"
            assert run.attempt == 3

    async def test_a_run_that_lives_too_long_is_ended(self, place: Place) -> None:
        async with running(place, hang, run_max_ms=100) as rig:
            run = await rig.ended(await rig.invoke())
            assert run.error_code == "run_timeout"
            await until(lambda: rig.agent.open_now == 0)
            assert await rig.store.find(Timer) == []

    async def test_rerun_asks_the_same_again(self, place: Place) -> None:
        async with running(place) as rig:
            run = await rig.ended(await rig.invoke("hello", context={"user_id": "u"}))
            again = (await rig.engine.runs.rerun(run.run_id)).run
            assert (await rig.ended(again)).final_message == "you said: hello"
            assert again.run_id != run.run_id
            assert rig.agent.calls[1].context == {"user_id": "u"}
            assert (await rig.engine.sessions.get("s1")).user_id == "u"


class TheSessions:
    """The runs of a session take turns, and its transcript is in order."""

    async def test_runs_of_a_session_go_in_order_and_others_do_not_wait(self, place: Place) -> None:
        order: list[str] = []
        passed = asyncio.Event()

        async def script(call: AgentCall) -> Frames:
            order.append(str(call.content))
            if call.content == "a7":
                await passed.wait()
            yield [Done(f"re {call.content}")]

        async with running(place, script) as rig:
            runs = [await rig.invoke(f"a{n}", session_id="a") for n in range(8)]
            await rig.ended(await rig.invoke("b", session_id="b"))
            passed.set()
            for run in runs:
                await rig.ended(run)
            assert [text for text in order if text != "b"] == [f"a{n}" for n in range(8)]
            last = next(call for call in rig.agent.calls if call.content == "a7")
            expected = [c for n in range(7) for c in (f"a{n}", f"re a{n}")]
            assert [m["content"] for m in last.messages] == expected

    async def test_waiting_messages_come_after_all_others(self, place: Place) -> None:
        async with running(place, hang) as rig:
            first = await rig.invoke("first")
            await until(lambda: rig.agent.open_now == 1)
            await rig.invoke("second")
            await rig.invoke("third")
            await rig.engine.sessions.post("s1", role="system", content="note")
            page = await rig.engine.sessions.messages("s1")
            assert [m.content for m in page.messages] == ["first", "note", "second", "third"]
            newest = await rig.engine.sessions.messages("s1", limit=1)
            older = await rig.engine.sessions.messages(
                "s1", limit=10, before=newest.messages[0].message_id
            )
            assert [m.content for m in older.messages] == ["first", "note", "second"]
            await rig.engine.runs.cancel(first.run_id, "x")


class TheKeys:
    """One key is one run, and what is refused leaves nothing behind."""

    async def test_one_request_id_is_one_run_for_a_hundred_callers(self, place: Place) -> None:
        async with running(place) as rig:
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(rig.invoke(request_id="r1")) for _ in range(100)]
            assert len({task.result().run_id for task in asked}) == 1
            assert len((await rig.engine.runs.find()).items) == 1
            with refused(IdempotencyKeyReused):
                await rig.invoke("something else", request_id="r1")
            assert (await rig.invoke("something else", request_id="r1", session_id="s2")).run_id

    async def test_a_key_without_a_session_leads_to_the_first_run_and_its_session(
        self, place: Place
    ) -> None:
        async with running(place) as rig:
            first = await take(rig, request_id="k")
            again = await take(rig, request_id="k")
            assert (again.repeated, again.run.run_id) == (True, first.run.run_id)
            assert again.run.session_id == first.run.session_id
            elsewhere = await take(rig, request_id="k", session_id="s1")
            assert elsewhere.run.run_id != first.run.run_id
            with refused(IdempotencyKeyReused, "used before"):
                await take(rig, "other", request_id="k")

    async def test_a_hundred_copies_without_a_session_are_one_run(self, place: Place) -> None:
        async with running(place) as rig:
            async with asyncio.TaskGroup() as tasks:
                copies = [tasks.create_task(take(rig, request_id="k")) for _ in range(100)]
            assert len({copy.result().run.run_id for copy in copies}) == 1
            assert len((await rig.engine.sessions.find()).items) == 1

    async def test_a_repeat_finds_its_run_after_the_agent_has_gone(self, place: Place) -> None:
        async with running(place) as rig:
            for session_id in ("s1", None):
                await rig.register()
                first = await take(rig, request_id="k", session_id=session_id)
                await rig.ended(first.run)
                await rig.engine.agents.remove("demo")
                again = await take(rig, request_id="k", session_id=session_id)
                assert (again.repeated, again.run.run_id) == (True, first.run.run_id)
                with refused(AgentNotFound):
                    await take(rig, request_id="new", session_id=session_id)

    async def test_an_unknown_agent_leaves_no_session_behind(self, place: Place) -> None:
        async with running(place) as rig:
            with refused(AgentNotFound, "agent nobody not found"):
                await rig.invoke(agent_id="nobody", session_id="fresh")
            assert await rig.store.find(Session) == []

    async def test_admission_is_bounded_and_recovers(self, place: Place) -> None:
        async with running(place, hang, max_open_runs=2) as rig:
            runs = [await rig.invoke(session_id=f"s{n}") for n in range(2)]
            with refused(QueueFull):
                await rig.invoke(session_id="s3")
            await rig.engine.runs.cancel(runs[0].run_id, "room")
            assert (await rig.invoke(session_id="s3")).run_id

    async def test_a_draining_agent_takes_no_new_runs_until_it_is_back(self, place: Place) -> None:
        async with running(place) as rig:
            await rig.engine.agents.drain("demo")
            with refused(AgentDraining):
                await rig.invoke()
            await rig.register()
            await rig.ended(await rig.invoke())


class TheEnds:
    """Who ends a run ends it at once, with all that belongs to it."""

    async def test_cancel_closes_the_agents_stream_at_once(self, place: Place) -> None:
        async with running(place, hang) as rig:
            run = await rig.invoke()
            await until(lambda: rig.agent.open_now == 1)
            cancelled = await rig.engine.runs.cancel(run.run_id, "enough")
            assert cancelled.status is RunState.CANCELLED
            await until(lambda: rig.agent.closed == [run.run_id], timeout_s=1)
            again = await rig.engine.runs.cancel(run.run_id, "again")
            assert again.error_message == "enough"
            assert (await rig.types(run))[-1] == "run_cancelled"

    async def test_one_of_many_ends_a_run_and_all_are_told_by_which(self, place: Place) -> None:
        async with running(place, hang) as rig:
            run = await rig.invoke()
            await until(lambda: rig.agent.open_now == 1)
            async with asyncio.TaskGroup() as tasks:
                cancel = partial(rig.engine.runs.cancel, by=local(TENANT))
                told = [tasks.create_task(cancel(run.run_id, f"reason {n}")) for n in range(20)]
            ended = await rig.ended(run)
            assert {task.result().error_message for task in told} == {ended.error_message}
            types = await rig.types(run)
            assert [name for name in types if name in TERMINAL] == types[-1:] == ["run_cancelled"]
            [entry] = await rig.engine.audit.page(TENANT, action="run.cancel")
            assert (entry.actor, entry.target) == ("local", run.run_id)
            assert msgspec.json.decode(entry.detail) == {"reason": ended.error_message}

    async def test_a_queued_run_can_be_cancelled_and_never_reaches_the_agent(
        self, place: Place
    ) -> None:
        async with running(place, hang) as rig:
            first = await rig.invoke()
            await until(lambda: rig.agent.open_now == 1)
            second = await rig.invoke("second")
            assert (await rig.log(second))[1]["payload"]["queued"] is True
            await rig.engine.runs.cancel(second.run_id, "changed my mind")
            await rig.engine.runs.cancel(first.run_id, "done")
            assert [call.run_id for call in rig.agent.calls] == [first.run_id]

    async def test_a_child_ends_with_its_parent_and_leaves_the_transcript_alone(
        self, place: Place
    ) -> None:
        async with running(place, hang) as rig:
            parent = await rig.invoke("parent")
            await until(lambda: rig.agent.open_now == 1)
            child = await rig.child(parent, request_id="k")
            again = await rig.child(parent, request_id="k")
            await until(lambda: rig.agent.open_now == 2)
            grandchild = await rig.child(child, "grandchild")
            await until(lambda: rig.agent.open_now == 3)
            assert again.run_id == child.run_id
            assert child.session_id == parent.session_id
            assert "agent_called_child" in await rig.types(parent)
            tree = await rig.engine.runs.tree(parent.run_id)
            assert tree.children[0].children[0].run.run_id == grandchild.run_id
            await rig.engine.runs.cancel(parent.run_id, "stop")
            assert (await rig.ended(grandchild)).status is RunState.CANCELLED
            await until(lambda: rig.agent.open_now == 0, timeout_s=1)
            assert [m.content for m in await rig.store.find(Message)] == ["parent"]
            with refused(RunNotActive):
                await rig.child(parent, "late")

    async def test_draining_refuses_new_runs_and_ends_the_rest(self, place: Place) -> None:
        async with running(place, hang) as rig:
            run = await rig.invoke()
            await until(lambda: rig.agent.open_now == 1)
            queued = await rig.invoke("later")
            rig.engine.drain()
            with refused(Draining):
                await rig.invoke("no", session_id="s2")
        async with running(place, say) as rig:
            left = await rig.ended(run)
            assert (left.error_code, left.epoch) == ("orchestrator_restarted", 1), "not by its heir"
            assert (await rig.ended(queued)).status is RunState.DONE
