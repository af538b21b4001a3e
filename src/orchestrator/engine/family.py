"""Runs that agents start on behalf of their own: what their parents allow, give and are told."""

from contextlib import suppress

from orchestrator.core.decide import Cancel, Record
from orchestrator.core.errors import (
    AgentCycle,
    Conflict,
    InvalidRequest,
    RunEnded,
    RunNotActive,
    RunNotFound,
)
from orchestrator.core.events import AgentCalledChild
from orchestrator.core.ops import Delete, Op
from orchestrator.core.records import Agent, Invocation, Run, Timer
from orchestrator.core.states import ENDED, OPEN
from orchestrator.engine.ledger import Ledger
from orchestrator.engine.limits import DEPTH_MAX
from orchestrator.engine.tokens import scopes_of

CALLED = "called:"
"""The kind of the timers that a parent has for each child it has not been told of."""
_TELL_MS = 5_000
"""How long whoever made the child has to tell its parent, before upkeep does."""


class Family:
    """The relations between a run and the runs it starts."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def parent(self, tenant: str, run_id: str) -> Run:
        """Return the run on whose behalf another may be started.

        Raises RunNotFound, RunNotActive when its agent is not at work, InvalidRequest when the tree
        is as deep as it may be.
        """
        parent = await self._ledger.load(run_id, deciding=True)
        if parent.tenant != tenant:
            raise RunNotFound(f"run {run_id} not found")
        if parent.status not in OPEN or parent.attempt == 0:
            raise RunNotActive(
                f"run {run_id} is {parent.status}; only a run whose agent is at work can call "
                "other agents"
            )
        if parent.depth + 1 >= DEPTH_MAX:
            raise InvalidRequest(f"a tree of runs may be {DEPTH_MAX} deep, and this one is")
        return parent

    async def refuse_cycle(self, parent: Run, agent_id: str) -> None:
        """Raise AgentCycle if the agent is at work above already: it would wait for itself."""
        above = [parent]
        while (run_id := above[-1].parent_run_id) is not None:
            above.append(await self._ledger.load(run_id, deciding=True))
        names = [run.agent_id for run in reversed(above)]
        if agent_id in names:
            path = [*names[names.index(agent_id) :], agent_id]
            raise AgentCycle(
                f"agent {agent_id} is at work above this run already: {' → '.join(path)}; let it "
                "return and be called again, or call another agent",
                path=path,
            )

    async def topmost_late(self, run: Run) -> Run:
        """Return the topmost run above one whose time is over, that ran out of it with that one.

        Its end takes those below along, and no agent hears first that its child was too late.
        """
        while run.parent_run_id is not None:
            above = await self._ledger.store.get(Run, run.parent_run_id, deciding=True)
            if above is None or above.status in ENDED or above.deadline_at > run.deadline_at:
                break
            run = above
        return run

    async def asked(self, parent: Run | None) -> Invocation | None:
        """Return what the parent was asked."""
        if parent is None:
            return None
        return await self._ledger.store.get(Invocation, parent.run_id, deciding=True)

    async def scopes(self, parent: Run | None, asked: Invocation | None) -> list[str] | None:
        """Return what the run's tokens may do at most: never more than those of the run above."""
        if parent is None or asked is None:
            return None
        key = (parent.tenant, parent.agent_id)
        agent = await self._ledger.store.get(Agent, *key, deciding=True)
        return scopes_of(parent, agent, asked)

    def telling(self, parent: Run, child: Run) -> Timer:
        """Return the timer that is stored with a child, and stays until its parent is told."""
        kind = f"{CALLED}{child.run_id}"
        return Timer(run_id=parent.run_id, kind=kind, due_at=child.created_at + _TELL_MS)

    async def tell(self, parent: Run, child: Run) -> None:
        """Write the child into its parent's log, once; a child whose parent has ended goes, too.

        Raises RunNotActive when the parent has ended.
        """
        called = AgentCalledChild(child_run_id=child.run_id, agent_id=child.agent_id)
        timer = (parent.run_id, f"{CALLED}{child.run_id}")
        try:
            await self._ledger.execute(parent, Record(payload=called, fires=timer))
        except Conflict:
            now = await self._ledger.load(parent.run_id, deciding=True)
            if now.status not in ENDED:
                return  # somebody else has told it
            # The parent ended between our look and now: its end must take the child along.
            with suppress(RunEnded):
                await self._ledger.execute(child, Cancel(reason="parent run ended"))
            await self._ledger.store.commit(Op(writes=(Delete(Timer, timer),)))
            raise RunNotActive(f"run {parent.run_id} has just ended") from None

    async def tell_late(self, timer: Timer) -> None:
        """Tell a parent of a child whose maker did not live to do it."""
        child = await self._ledger.store.get(Run, timer.kind.removeprefix(CALLED), deciding=True)
        parent = await self._ledger.store.get(Run, timer.run_id, deciding=True)
        if child is None or parent is None:
            await self._ledger.store.commit(Op(writes=(Delete(Timer, (timer.run_id, timer.kind)),)))
            return
        with suppress(Conflict):  # one of them has ended, and the timer is gone
            await self.tell(parent, child)
