"""One invocation of an agent, whatever its protocol: ask, check the answer, hand out its frames."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from types import TracebackType
from typing import Final, NoReturn, Protocol

from msgspec.structs import replace

from orchestrator.clients.exchange import (
    HTTP,
    Answer,
    ExchangeFailed,
    Request,
    Trouble,
    media_type,
)
from orchestrator.clients.refusal import refusal
from orchestrator.core.errors import AgentFailure
from orchestrator.core.frames import ENDING, Frame
from orchestrator.core.secret import Secret
from orchestrator.ports import AgentCall

_CODES: Final[Mapping[Trouble, tuple[str, bool]]] = {
    "unreachable": ("agent_unavailable", True),
    "refused": ("agent_unavailable", False),
    "malformed": ("agent_protocol", False),
    "hung_up": ("agent_eof", True),
}


class Decoder(Protocol):
    """Turns the bytes of one answer into frames; both methods raise AgentFailure as they go."""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that `data` completes."""
        ...

    def close(self) -> Iterator[Frame]:
        """Yield what the clean end of the body completes, or raise when something is missing."""
        ...


class Dialect(Protocol):
    """What is special about one agent protocol; it knows nothing of connections."""

    def request(self, call: AgentCall) -> Request:
        """Return the request that invokes the agent."""
        ...

    def decoder(self, media_type: str) -> Decoder | None:
        """Return a decoder for an answer of that type, None where the protocol has none."""
        ...


class AgentHTTP:
    """An AgentClient: one dialect spoken over HTTP."""

    def __init__(self, http: HTTP, dialect: Dialect) -> None:
        self._http = http
        self._dialect = dialect

    def open(self, call: AgentCall) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Frame]]]:
        """Invoke the agent; the context hands out batches of frames, one per wake-up.

        An empty batch is a sign of life. Leaving closes the connection at once unless the answer
        was read to its end. Raises AgentFailure with a code of CONTRACT §4.
        """
        request = replace(self._dialect.request(call), operator=call.operator)
        shown = tuple(one for one in (call.credential, call.run_token) if one is not None)
        return _Invocation(self._http.open(request), self._dialect, shown)


class _Invocation(AbstractAsyncContextManager[AsyncIterator[Sequence[Frame]]]):
    """One invocation while it is open, which may be for hours: it keeps nothing of its request.

    `shown` are the secrets that the agent was shown, for as long as it may refuse them.
    """

    __slots__ = ("_dialect", "_exchange", "_shown")

    def __init__(
        self,
        exchange: AbstractAsyncContextManager[Answer],
        dialect: Dialect,
        shown: tuple[Secret, ...],
    ) -> None:
        self._exchange = exchange
        self._dialect = dialect
        self._shown = shown

    async def __aenter__(self) -> "FrameStream":
        try:
            answer = await self._exchange.__aenter__()
        except ExchangeFailed as error:
            raise _failure_of(error) from error
        try:
            stream = FrameStream(answer, await self._accept(answer))
        except BaseException as error:
            await self._exchange.__aexit__(type(error), error, error.__traceback__)
            raise
        self._shown = ()
        return stream

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._exchange.__aexit__(kind, error, tb)

    async def _accept(self, answer: Answer) -> Decoder:
        if answer.status != HTTPStatus.OK:
            raise await refusal(answer, self._shown)
        coding = answer.header("Content-Encoding").strip().lower()
        if coding not in ("", "identity"):
            _reject(f"the agent compressed its answer ({coding[:40]}) though nobody asked for it")
        kind = media_type(answer.header("Content-Type"))
        decoder = self._dialect.decoder(kind)
        if decoder is None:
            _reject(f"the agent answered with content type {kind[:80] or '(none)'}")
        return decoder


class FrameStream:
    """The frames of one answer, a batch for each piece of it; ends after an ending frame."""

    __slots__ = ("_answer", "_decoder", "_failure", "_over")

    def __init__(self, answer: Answer, decoder: Decoder) -> None:
        self._answer = answer
        self._decoder = decoder
        self._over = False
        self._failure: AgentFailure | None = None

    def __aiter__(self) -> AsyncIterator[Sequence[Frame]]:
        return self

    async def __anext__(self) -> Sequence[Frame]:
        if self._failure is not None:
            raise self._failure
        if self._over:
            raise StopAsyncIteration
        try:
            data = await self._answer.read()
        except ExchangeFailed as error:
            raise _failure_of(error) from error
        self._over = not data
        batch, self._failure = self._take(
            self._decoder.feed(data) if data else self._decoder.close()
        )
        if self._failure is not None and not batch:
            raise self._failure
        return batch

    def _take(self, frames: Iterator[Frame]) -> tuple[list[Frame], AgentFailure | None]:
        """Return the frames up to an ending or a failure: what came before it still counts."""
        batch: list[Frame] = []
        try:
            for frame in frames:
                batch.append(frame)
                if type(frame) in ENDING:  # not isinstance, which costs more than all the rest
                    self._over = True
                    break
        except AgentFailure as failure:
            return batch, failure
        return batch, None


def _failure_of(error: ExchangeFailed) -> AgentFailure:
    code, retryable = _CODES[error.trouble]
    return AgentFailure(
        code, error.message, retryable=retryable,
        refused=error.trouble == "refused", hung_up=error.trouble == "hung_up",
    )  # fmt: skip


def _reject(message: str) -> NoReturn:
    raise AgentFailure("agent_protocol", message, retryable=False)
