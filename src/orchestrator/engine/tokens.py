"""Tokens: one for each attempt of a run, and those that browsers and devices get for a session."""

from typing import Final

from orchestrator.core import access, credentials, values
from orchestrator.core.access import RUN_SCOPES, SESSION_SCOPES, Caller
from orchestrator.core.credentials import RunClaims, SessionClaims
from orchestrator.core.errors import InvalidRequest
from orchestrator.core.records import Agent, Invocation, Run
from orchestrator.core.secret import Secret
from orchestrator.core.states import OPEN
from orchestrator.engine.audit import Audit
from orchestrator.ports import Signer, World

TTL_S: Final = 3600
"""How long a session's token is good, if nobody says otherwise."""
TTL_MAX_S: Final = 30 * 86_400
_USER_MAX: Final = 256


class Tokens:
    """Makes tokens and reads them; nothing of them is kept."""

    def __init__(self, world: World, signer: Signer, audit: Audit) -> None:
        self._world = world
        self._signer = signer
        self._audit = audit

    def for_attempt(self, run: Run, agent: Agent, invocation: Invocation) -> Secret:
        """Return the token of the attempt that `run` is in; it dies with the attempt."""
        claims = RunClaims(
            tenant=run.tenant,
            run_id=run.run_id,
            attempt=run.attempt,
            epoch=run.epoch,
            scopes=scopes_of(run, agent, invocation),
            expires_at=run.deadline_at,
        )
        return credentials.write_token(claims, self._signer.sign)

    async def for_session(
        self,
        session_id: str,
        by: Caller,
        *,
        scopes: list[str],
        ttl_s: int = TTL_S,
        user_id: str | None = None,
    ) -> tuple[Secret, SessionClaims]:
        """Return a token for one session, which need not exist yet, and what it says."""
        values.session_id(session_id)
        if not 1 <= ttl_s <= TTL_MAX_S:
            raise InvalidRequest(f"ttl_s must be a whole number from 1 to {TTL_MAX_S}")
        if user_id is not None and not 0 < len(user_id) <= _USER_MAX:
            raise InvalidRequest(f"user_id must be 1 to {_USER_MAX} characters")
        ends = self._world.now() + ttl_s * 1000
        claims = SessionClaims(
            tenant=by.tenant,
            session_id=session_id,
            scopes=access.scopes(scopes, SESSION_SCOPES),
            expires_at=ends if by.expires_at is None else min(ends, by.expires_at),
            user_id=user_id,
            by=by.key_id,
            maker=by.maker,
        )
        token = credentials.write_token(claims, self._signer.sign)
        if len(token.reveal()) > credentials.TOKEN_MAX:
            raise InvalidRequest("session_id and user_id are too long, together, for a token")
        await self._audit.carry_out(
            by, "session.token", session_id, scopes=claims.scopes, user_id=user_id, ttl_s=ttl_s
        )
        return token, claims

    def read(self, text: str) -> credentials.Claims | None:
        """Return what a token of ours says, None for any other text."""
        return credentials.read_token(text, self._signer.is_signed)


def scopes_of(run: Run, agent: Agent | None, invocation: Invocation) -> list[str]:
    """Return what the tokens of a run may do: never more than those of the run above it.

    Without an agent, which was removed meanwhile, that is nothing.
    """
    if agent is None:
        return []
    found = set(RUN_SCOPES if agent.scopes is None else agent.scopes) & RUN_SCOPES
    if invocation.scopes is not None:
        found &= set(invocation.scopes)
    if run.parent_run_id is not None:
        found.discard("sessions:read")  # a child is told nothing of the transcript
    return sorted(found)


def is_at_work(run: Run | None, claims: RunClaims | Caller) -> bool:
    """Return whether the attempt that a token names is the one that is going on."""
    return (
        run is not None
        and run.tenant == claims.tenant
        and run.status in OPEN
        and run.attempting
        and (run.attempt, run.epoch) == (claims.attempt, claims.epoch)
    )
