"""How well the instances of an agent are, and which one a call goes to: pure, times are arguments.

An instance is known by its row, which every server sees, and by what one server has lived through
with it, `Known`. Heartbeats are milliseconds UTC; ejections are seconds of a monotonic clock.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from orchestrator.core.errors import AgentFailure
from orchestrator.core.records import Agent, Instance

DEFAULT: Final = "default"
"""The instance of an agent that names none."""
STATUSES: Final = ("healthy", "unknown", "degraded", "unhealthy", "draining")
"""From best to worst."""
UNHEALTHY_AFTER_MS: Final = 90_000
"""The silence after which an instance that has ever sent a heartbeat counts as unhealthy."""
GONE_AFTER_MS: Final = 3_600_000
"""The silence after which it is removed, unless it is its agent's last."""
STREAK: Final = 3
"""Failures in a row that eject an instance."""
EJECTED_S: Final = 5.0
"""The first ejection; each that follows lasts twice as long."""
EJECTED_MAX_S: Final = 300.0
JITTER: Final = 0.2
FORGIVEN_S: Final = 30.0
"""How long after its last failure an instance counts as degraded: it gets calls again by then."""
CALLS: Final = 20
"""The last calls that count for an instance's health."""
_CALLS_LEAST: Final = 5
_WINDOW: Final = (1 << CALLS) - 1
_RANK: Final = {"healthy": 0, "unknown": 0, "degraded": 1, "unhealthy": 2, "draining": 3}
_SERVER_ERRORS: Final = range(500, 600)
_DOUBLINGS_MAX: Final = 16


class Known(msgspec.Struct, frozen=True):
    """What a server has lived through with an instance.

    `results` are its last `calls`, a bit each, the newest lowest, 1 is a failure; `streak` counts
    failures in a row, `ejections` those since it was last well. `ejected_until` stands until a call
    succeeds; with `cleared` its `/health` had nothing against a trial. `probed` is what that said.
    `failed_at` is the time of the last failure.
    """

    results: int = 0
    calls: int = 0
    streak: int = 0
    failed_at: float = 0.0
    ejections: int = 0
    ejected_until: float | None = None
    cleared: bool = False
    probed: str = "unknown"
    last_error: str | None = None


UNKNOWN: Final = Known()
_WELL: Final = Known(calls=CALLS)


def is_sick(failure: AgentFailure) -> bool:
    """Return whether a failed call speaks against its instance, and not against what was asked."""
    if failure.refused or not failure.retryable:
        return False
    if failure.code == "agent_status":
        return failure.http_status in _SERVER_ERRORS
    return failure.hung_up or failure.code in {"agent_unavailable", "agent_first_byte_timeout"}


def succeeded(known: Known) -> Known:
    """Return what is known after a call that ended well: an ejection is over and forgotten."""
    if known == _WELL:
        return known
    if known.ejected_until is not None:
        return Known(calls=1)
    return Known(
        results=(known.results << 1) & _WINDOW,
        calls=min(known.calls + 1, CALLS),
        failed_at=known.failed_at,
        probed=known.probed,
    )


def failed(known: Known, error: str, now: float, noise: float, *, last: bool) -> Known:
    """Return what is known after a call that speaks against the instance.

    It is ejected after `STREAK` of them in a row, or after a trial, unless it is the `last` one
    that may be routed to; `noise` in [0, 1) spreads the time.
    """
    known = replace(
        known,
        results=(known.results << 1 | 1) & _WINDOW,
        calls=min(known.calls + 1, CALLS),
        streak=known.streak + 1,
        failed_at=now,
        last_error=error,
    )
    if known.ejected_until is not None and now < known.ejected_until:
        return known  # it was called before it was ejected
    if last:
        return replace(known, ejected_until=None, ejections=0, cleared=False)
    return _ejected(known, now, noise) if known.streak >= STREAK else known


def probed(known: Known, status: str, now: float, noise: float) -> Known:
    """Return what is known after `/health` was asked: healthy, unhealthy or unknown.

    One whose ejection is over may be tried, or is ejected again.
    """
    known = replace(known, probed=status)
    if known.ejected_until is None or now < known.ejected_until:
        return known
    return _ejected(known, now, noise) if status == "unhealthy" else replace(known, cleared=True)


def _ejected(known: Known, now: float, noise: float) -> Known:
    whole = min(EJECTED_S * 2 ** min(known.ejections, _DOUBLINGS_MAX), EJECTED_MAX_S)
    until = now + whole * (1 - JITTER + 2 * JITTER * noise)
    return replace(known, ejected_until=until, ejections=known.ejections + 1, cleared=False)


def health(instance: Instance, known: Known, now_ms: int, now: float) -> str:
    """Return one of `STATUSES`; what `/health` said counts where no heartbeats come."""
    if instance.draining:
        return "draining"
    if silent_ms(instance, now_ms) > UNHEALTHY_AFTER_MS:
        return "unhealthy"
    beats = instance.last_heartbeat is not None
    if known.ejected_until is not None or (known.probed == "unhealthy" and not beats):
        return "unhealthy"
    if known.results and now - known.failed_at <= FORGIVEN_S and _is_degraded(known):
        return "degraded"
    well = beats or known.probed == "healthy"
    return "healthy" if well or (known.calls and not known.results & 1) else "unknown"


def _is_degraded(known: Known) -> bool:
    failures = known.results.bit_count()
    fell = known.streak > 0 and failures < known.calls
    return fell or 2 * failures >= known.calls >= _CALLS_LEAST


def silent_ms(instance: Instance, now_ms: int) -> int:
    """Return for how long nothing was heard of an instance; 0 where it never sent a heartbeat."""
    if instance.last_heartbeat is None:
        return 0
    return now_ms - max(instance.last_heartbeat, instance.updated_at)


def best(statuses: Iterable[str]) -> str:
    """Return the status of an agent whose instances have these; without any it is unknown."""
    return min(statuses, key=STATUSES.index, default="unknown")


def merged(agent: Agent, rows: Iterable[Instance]) -> list[Instance]:
    """Return an agent's instances, by name, from its row and theirs.

    A program of the version before writes the agent's row alone. So that row is an instance where
    there is none of its name, and counts for it where it is newer; and when it says that the agent
    drains, all of them do.
    """
    found = {row.instance_id: row for row in rows}
    name = agent.instance_id or DEFAULT
    found[name] = _own(agent, name, found.get(name))
    if agent.draining:
        found = {name: replace(row, draining=True) for name, row in found.items()}
    return [found[name] for name in sorted(found)]


def of_agent(agent: Agent, name: str) -> Instance:
    """Return the instance that an agent registers under a name, of which nothing is known yet."""
    return Instance(
        tenant=agent.tenant,
        agent_id=agent.agent_id,
        instance_id=name,
        endpoint=agent.endpoint,
        version=agent.version,
        operator=agent.operator,
        max_concurrency=agent.max_concurrency,
        created_at=agent.created_at,
        updated_at=agent.updated_at,
    )


def _own(agent: Agent, name: str, row: Instance | None) -> Instance:
    theirs = row.last_heartbeat if row is not None else None
    last = max((at for at in (agent.last_heartbeat, theirs) if at is not None), default=None)
    if row is not None and row.updated_at >= agent.updated_at:
        return row if row.last_heartbeat == last else replace(row, last_heartbeat=last)
    return replace(
        of_agent(agent, name),
        draining=agent.draining,
        last_heartbeat=last,
        created_at=row.created_at if row is not None else agent.created_at,
    )


def dead(instances: Sequence[Instance], now_ms: int) -> list[Instance]:
    """Return those of an agent's instances that were silent for an hour; one always stays."""
    gone = [one for one in instances if silent_ms(one, now_ms) > GONE_AFTER_MS]
    if len(gone) == len(instances) and gone:
        gone.remove(min(gone, key=lambda one: silent_ms(one, now_ms)))
    return gone


class Candidate(Protocol):
    """What the choice asks of an instance.

    `ejected` is False for one that may be tried now; `failing` would be, if it were not the last.
    """

    @property
    def name(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def ejected(self) -> bool: ...
    @property
    def failing(self) -> bool: ...
    @property
    def trial(self) -> bool: ...
    @property
    def open(self) -> int: ...
    @property
    def most(self) -> int | None: ...


C = TypeVar("C", bound=Candidate)


def routable(instances: Sequence[C]) -> list[C]:
    """Return those that a call may go to now; where there is any instance, there is one.

    Neither draining nor ejected ones, unless there are no others. When the last one fails too, the
    ejected ones are no worse.
    """
    staying = [one for one in instances if one.status != "draining"]
    good = [one for one in staying if not one.ejected]
    if good and not all(one.failing for one in good):
        return good
    return staying or list(instances)


def choose(instances: Sequence[C], tried: Sequence[str], turn: int) -> C | None:
    """Return the instance that the next call goes to; None when it has to wait for a free one.

    Of those that may be called: one that this run has not `tried`, the best in health, the one with
    the fewest open calls, in `turn`. Nobody is sent to an unhealthy one because a better is busy.
    """
    wanted = _untried(routable(instances), tried)
    wanted = [one for one in wanted if _rank(one) < _RANK["unhealthy"]] or wanted
    free = [one for one in wanted if one.most is None or one.open < one.most]
    if not free:
        return None
    least = min((_rank(one), one.open) for one in free)
    equals = [one for one in free if (_rank(one), one.open) == least]
    return equals[turn % len(equals)]


def _untried(instances: list[C], tried: Sequence[str]) -> list[C]:
    if not tried:
        return instances
    fresh = [one for one in instances if one.name not in tried]
    return fresh or [one for one in instances if one.name != tried[-1]] or instances


def _rank(one: Candidate) -> int:
    return 0 if one.trial else _RANK[one.status]
