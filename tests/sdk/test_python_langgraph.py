"""A LangGraph graph as an agent: the real package, a model that needs no network."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

import orchestrator_sdk.langgraph as graphs
from orchestrator_sdk import serving

from .python_rig import answer, invocation, served

SAID = "The weather in Oslo is fine"
USED = {"input_tokens": 4, "output_tokens": 6, "total_tokens": 10}


class Counting:
    """A graph of two nodes: a model that streams, and one that only counts."""

    def __init__(self, checkpointer: Any = None, breaks: int = 0) -> None:
        self._breaks = breaks
        self.seen: list[list[tuple[str, str]]] = []
        messages = (AIMessage(SAID, usage_metadata=USED) for _ in iter(int, 1))
        self._model = GenericFakeChatModel(messages=messages)
        builder = StateGraph(MessagesState)
        builder.add_node("talk", self._talk)
        builder.add_node("count", self._count)
        builder.add_edge(START, "talk")
        builder.add_edge("talk", "count")
        builder.add_edge("count", END)
        self.graph = builder.compile(checkpointer=checkpointer)

    async def _talk(self, state: MessagesState) -> dict[str, Any]:
        self.seen.append([(m.type, str(m.content)) for m in state["messages"]])
        return {"messages": [await self._model.ainvoke(state["messages"])]}

    async def _count(self, state: MessagesState) -> dict[str, Any]:
        if self._breaks:
            self._breaks -= 1
            raise ConnectionResetError
        return {"messages": []}


async def test_tokens_are_deltas_and_nodes_are_states(server: str) -> None:
    counting = Counting()
    async with served(server) as here:
        handle = await here.run(graphs.agent(counting.graph, "weather"), "How is it?")
        events = [event async for event in handle]
        again = await here.client.run("weather", "Still?", session=handle.session_id)
        await again.result()
        result = await handle.result()
    words = [event.text for event in events if event.text]
    assert len(words) > 5, "token by token"
    assert "".join(words) == result.text == SAID, "each word once"
    assert [e.payload["state"] for e in events if e.type == "agent_state"] == ["talk", "count"]
    assert counting.seen == [
        [("human", "How is it?")],
        [("human", "How is it?"), ("ai", SAID), ("human", "Still?")],
    ]


async def test_a_graph_with_a_checkpointer_remembers_by_itself() -> None:
    counting = Counting(InMemorySaver())
    before = [{"role": "user", "content": "How is it?"}, {"role": "assistant", "content": SAID}]
    async with serving(graphs.agent(counting.graph, "weather")) as url:
        await answer(url, invocation("How is it?"))
        await answer(url, invocation("Still?", run_id="run_2", messages=before))
        await answer(url, invocation("Elsewhere", run_id="run_3", session_id="sess_2"))
    assert counting.seen[1:] == [
        [("human", "How is it?"), ("ai", SAID), ("human", "Still?")],
        [("human", "Elsewhere")],
    ]


async def test_another_attempt_goes_on_where_the_graph_stopped(server: str) -> None:
    counting = Counting(InMemorySaver(), breaks=1)
    retry = {"max_attempts": 2, "backoff_ms": 1, "codes": ["agent_error"]}
    async with served(server) as here:
        agent = graphs.agent(counting.graph, "resumes", options={"retry": retry})
        handle = await here.run(agent, "How is it?")
        assert await handle.text() == SAID
        assert (await here.client.get(handle.run_id)).attempt == 2
    assert counting.seen == [[("human", "How is it?")]], "the model was not asked again"


async def test_what_models_counted_is_the_usage() -> None:
    async def talks(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage("Look", usage_metadata=USED),
                             AIMessage(SAID, usage_metadata=USED)]}  # fmt: skip

    builder = StateGraph(MessagesState)
    builder.add_node("talks", talks)
    builder.add_edge(START, "talks")
    before = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    async with serving(graphs.agent(builder.compile())) as url:
        frames = await answer(url, invocation(messages=before))
    usage = {"prompt_tokens": 8, "completion_tokens": 12, "total_tokens": 20}
    assert frames[-1] == ("done", {"final_message": SAID, "usage": usage})


async def test_hanging_up_ends_the_graph() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def waits(state: MessagesState) -> dict[str, Any]:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            ended.set()
        return {}

    builder = StateGraph(MessagesState)
    builder.add_node("waits", waits)
    builder.add_edge(START, "waits")
    async with serving(graphs.agent(builder.compile())) as url:
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(answer(url))
            await began.wait()
            asking.cancel()
        async with asyncio.timeout(20):
            await ended.wait()


async def test_what_a_tool_says_is_not_the_agents_word() -> None:
    from langchain_core.messages import ToolMessage

    async def acts(state: MessagesState) -> dict[str, Any]:
        return {"messages": [ToolMessage("secret rows", tool_call_id="1"), HumanMessage("hm")]}

    builder = StateGraph(MessagesState)
    builder.add_node("acts", acts)
    builder.add_edge(START, "acts")
    async with serving(graphs.agent(builder.compile())) as url:
        frames = await answer(url)
    assert frames == [("state", {"state": "acts"}), ("done", {})]


async def test_any_state_will_do_that_has_no_messages() -> None:
    class Silent:
        checkpointer = None

        async def astream(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
            yield "values", {"rows": 1}

    async with serving(graphs.agent(Silent())) as url:
        assert await answer(url) == [("done", {})]
