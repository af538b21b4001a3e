"""A LangGraph graph as an agent: a node that looks something up, and a model that tells it.

Beside a running `./orchestrator`, in two terminals:

    $ ORCHESTRATOR_URL=http://localhost:8080 python3 examples/langgraph_agent.py
    $ ./orchestrator invoke weather "How is it in Oslo?"
    In Oslo it is 21 degrees and sunny.

Each node that ends is a state in the log, each token of the model a piece of the answer. The model
here is a fake that needs no key. For a real one put one line in the place of `model = …` below,
after `from langchain_openai import ChatOpenAI` and with OPENAI_API_KEY set:

    model = ChatOpenAI(model="gpt-5-mini")
"""

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, SystemMessage
from langgraph.graph import START, MessagesState, StateGraph

from orchestrator_sdk import langgraph

always = iter(lambda: AIMessage("In Oslo it is 21 degrees and sunny."), None)
model = GenericFakeChatModel(messages=always)

Said = dict[str, list[AnyMessage]]
MEASURED = {"Oslo": "21 °C, no clouds", "Bergen": "14 °C, rain"}


async def look_up(state: MessagesState) -> Said:
    """Bring what the model cannot know; ask a database or a search here."""
    asked = state["messages"][-1].text
    facts = [f"{place}: {facts}" for place, facts in MEASURED.items() if place in asked]
    return {"messages": [SystemMessage("\n".join(facts) or "Nothing was measured.")]}


async def tell(state: MessagesState) -> Said:
    return {"messages": [await model.ainvoke(state["messages"])]}


builder = StateGraph(MessagesState)
builder.add_node("look_up", look_up)
builder.add_node("tell", tell)
builder.add_edge(START, "look_up")
builder.add_edge("look_up", "tell")

langgraph.serve(builder.compile(), "weather", port=8004)
