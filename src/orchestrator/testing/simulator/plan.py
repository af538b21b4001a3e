"""What a seed decides beforehand: who comes, what breaks, and when."""

from typing import Final, Literal, TypeAlias

import msgspec

from orchestrator.core.records import Agent, Retry, Timeouts
from orchestrator.engine import TENANT, EngineSettings
from orchestrator.testing.simulator.chance import Chance

START: Final = 1_800_000_000_000
"""The machine's time in milliseconds UTC when a simulation begins."""

Flaw: TypeAlias = Literal["guard", "sync", "resume"]
"""A planted fault: no epoch guard, no sync before the answer, no resume check in tails."""

Kind: TypeAlias = Literal["kill", "power", "drain", "jump_forward", "jump_back", "cut"]
Mood: TypeAlias = Literal["unavailable", "full", "slow", "deaf"]


class Incident(msgspec.Struct, frozen=True):
    """Something that happens to a server, or to its machine, at one moment (seconds)."""

    at: float
    kind: Kind
    lasts: float


class Spell(msgspec.Struct, frozen=True):
    """A time in which the disk is in a mood."""

    begin: float
    end: float
    mood: Mood


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation. With `liveness` the faults stop at `until`, else everything does.

    `thin` is the share of hints that do not come as they were sent, `yields` that of calls of the
    store in which others have their turn. In a `long` one some calls of agents outlast a lease.
    """

    liveness: bool
    until: float
    replicas: int
    callers: int
    sessions: int
    shuffled: bool
    thin: float
    yields: float
    long: bool
    pushes: bool
    incidents: tuple[Incident, ...]
    spells: tuple[Spell, ...]
    settings: EngineSettings


_ONE: Final[tuple[Kind, ...]] = (
    *("kill", "power") * 5, *("drain", "jump_back", "jump_forward") * 2, "cut",
)  # fmt: skip
_TWO: Final[tuple[Kind, ...]] = ("kill", "cut", "cut", "jump_forward", "drain")
_MOODS: Final[tuple[Mood, ...]] = ("unavailable", "full", "slow", "slow", "slow", "deaf")


def drawn(chance: Chance, *, liveness: bool, replicas: int | None = None) -> Plan:
    """Return the plan of a seed; some have two servers on one store unless `replicas` says."""
    replicas = replicas or (2 if chance.hit(0.15) else 1)
    until = chance.between(1.0, 3.0)
    incidents = _incidents(chance, until, replicas)
    cut = any(incident.kind == "cut" for incident in incidents)
    if cut:
        until = max(incident.at + incident.lasts for incident in incidents) + 0.5
    return Plan(
        liveness=liveness,
        until=until,
        replicas=replicas,
        callers=chance.whole(1, 5),
        sessions=chance.whole(1, 3),
        shuffled=chance.hit(0.5),
        long=cut,
        thin=chance.pick((0.0, 0.1, 0.5)),
        yields=chance.pick((0.0, 0.0, 0.3)),
        pushes=chance.hit(0.4),
        incidents=incidents,
        spells=_spells(chance, until) if chance.hit(0.5) else (),
        settings=EngineSettings(
            agent_timeout_ms=25_000 if cut else 1_200,
            run_max_ms=chance.pick((3_000, 60_000)),
            max_open_runs=chance.pick((2, 100, 100)),
            drain_timeout_ms=300,
        ),
    )


def _incidents(chance: Chance, until: float, replicas: int) -> tuple[Incident, ...]:
    kinds = _ONE if replicas == 1 else _TWO
    found = []
    for _ in range(chance.whole(0, 3)):
        kind = chance.pick(kinds)
        lasts = chance.between(15, 23) if kind == "cut" else chance.between(0, 0.3)
        found.append(Incident(chance.between(0.05, until), kind, lasts))
    return tuple(sorted(found, key=lambda incident: incident.at))


def _spells(chance: Chance, until: float) -> tuple[Spell, ...]:
    found = []
    for _ in range(chance.whole(1, 2)):
        begin = chance.between(0, until)
        found.append(Spell(begin, begin + chance.between(0.1, 1.0), chance.pick(_MOODS)))
    return tuple(found)


AGENTS: Final = tuple(
    Agent(
        tenant=TENANT,
        agent_id=agent_id,
        name=agent_id,
        endpoint=f"http://{agent_id}",
        retry=retry,
        timeouts=timeouts,
        on_lost=on_lost,
        max_concurrency=most,
        created_at=START,
        updated_at=START,
    )
    for agent_id, retry, timeouts, on_lost, most in (
        ("once", Retry(), Timeouts(), "fail", None),
        ("again", Retry(max_attempts=3, backoff_ms=50), Timeouts(), "retry", None),
        ("hasty", Retry(max_attempts=2, backoff_ms=20), Timeouts(first_byte_ms=150, idle_ms=300),
         "retry", None),
        ("narrow", Retry(), Timeouts(idle_ms=400), "fail", 1),
    )
)  # fmt: skip
"""One agent fails at once, one tries again, one is watched by clocks, one takes one call only."""
