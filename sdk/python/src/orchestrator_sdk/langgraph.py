"""A LangGraph graph as an agent: its tokens are the words, its last message the answer.

Nothing of LangGraph is imported here; a compiled graph is what has `astream`.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Final, Protocol, Unpack

from orchestrator_sdk import server
from orchestrator_sdk.agents import Agent
from orchestrator_sdk.context import Context
from orchestrator_sdk.frames import Done, Said, State, text_of

_SPOKEN: Final = frozenset({"AIMessageChunk", "ai"})


class Graph(Protocol):
    """What is needed of a compiled graph."""

    @property
    def astream(self) -> Callable[..., AsyncIterator[Any]]: ...


def agent(graph: Graph, id: str = "graph", **how: Any) -> Agent:  # noqa: A002  # the contract's
    """Return an agent that answers with a compiled graph over a `messages` state.

    The graph gets the transcript and the new message; one with a checkpointer keeps the transcript
    itself, under `thread_id` = the session, and gets the new message alone. There another attempt
    of a run goes on where the graph stopped, because LangGraph knows the run by its `run_id`. Each
    node that is done becomes a `state` event. `how` is what Agent takes.
    """

    async def answer(ctx: Context) -> AsyncIterator[Said]:
        last: Any = None
        config = {"configurable": {"thread_id": ctx.session_id or ctx.run_id},
                  "metadata": {"run_id": ctx.run_id, "session_id": ctx.session_id}}  # fmt: skip
        modes = ["messages", "updates", "values"]
        async for mode, part in graph.astream(_input(graph, ctx), config, stream_mode=modes):
            if mode == "messages":
                yield _words(part[0])
            elif mode == "updates":
                for node in part:
                    yield State(str(node))
            else:
                last = part
        yield _done(last)

    return Agent(id, answer, **how)


def serve(
    graph: Graph, id: str = "graph", host: str = "127.0.0.1", port: int = 8000,  # noqa: A002  # as above
    **how: Unpack[server.Serving],
) -> None:  # fmt: skip
    """Serve a compiled graph as an agent until SIGTERM or Ctrl-C."""
    server.serve(agent(graph, id), host, port, **how)


def _input(graph: Graph, ctx: Context) -> dict[str, Any]:
    before = [] if getattr(graph, "checkpointer", None) else ctx.messages
    lines = [*before, ctx.input_message]
    return {"messages": [{"role": line.role, "content": line.content} for line in lines]}


def _words(message: Any) -> str:
    return text_of(message.content) if message.type in _SPOKEN else ""


def _done(state: Any) -> Done:
    messages = state.get("messages") if isinstance(state, Mapping) else None
    if not messages or messages[-1].type not in _SPOKEN:
        return Done()
    return Done(text_of(messages[-1].content) or None, _usage(messages))


def _usage(messages: Iterable[Any]) -> dict[str, Any] | None:
    """Return the tokens of the messages that this answer added, as far as models counted them."""
    counted = [m.usage_metadata for m in _since_the_question(messages)
               if getattr(m, "usage_metadata", None)]  # fmt: skip
    if not counted:
        return None
    return {
        "prompt_tokens": sum(usage["input_tokens"] for usage in counted),
        "completion_tokens": sum(usage["output_tokens"] for usage in counted),
        "total_tokens": sum(usage["total_tokens"] for usage in counted),
    }


def _since_the_question(messages: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for message in messages:
        found = [] if message.type == "human" else [*found, message]
    return found
