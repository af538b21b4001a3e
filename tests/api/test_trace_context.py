"""A caller's W3C trace context goes through the server to the agent, or a new trace begins."""

from .conftest import Client

TRACE = "0af7651916cd43dd8448eb211c80319c"
GOOD = f"00-{TRACE}-b7ad6b7169203331-01"
ASKED = {"agent_id": "demo", "session_id": "s1", "input_message": {"role": "user", "content": "x"}}


async def told(api: Client, path: str = "/internal/invoke", **headers: str) -> tuple[str, ...]:
    """Invoke the agent; return trace, parent and flags as it was told them, and its tracestate."""
    before = len(api.rig.agent.calls)
    answer = await api.post(path, {**ASKED, "wait": True}, **headers)
    assert answer.status == 200, answer.raw
    await api.rig.ended(await api.rig.engine.runs.get(answer.json["run_id"]))
    (call,) = api.rig.agent.calls[before:]
    _, trace_id, span_id, flags = call.traceparent.split("-")
    return trace_id, span_id, flags, call.tracestate or ""


async def test_a_good_context_goes_on(api: Client) -> None:
    for path in ("/internal/invoke", "/v1/runs"):
        trace_id, span_id, flags, state = await told(
            api, path, traceparent=GOOD, tracestate="a=1", Tracestate="b=2"
        )
        assert (trace_id, flags, state) == (TRACE, "01", "a=1,b=2")
        assert span_id not in GOOD


async def test_a_bad_context_is_none(api: Client) -> None:
    for bad in (
        {"traceparent": GOOD, "Traceparent": GOOD},
        {"traceparent": GOOD + "-more"},
        {"traceparent": GOOD.replace("00-", "ff-", 1)},
        {},
    ):
        trace_id, _, flags, state = await told(api, tracestate="a=1", **bad)
        assert (trace_id == TRACE, flags, state) == (False, "03", "")


async def test_a_bad_tracestate_goes_alone(api: Client) -> None:
    assert (await told(api, traceparent=GOOD, tracestate="A=1"))[::3] == (TRACE, "")


async def test_durations_are_among_the_metrics(api: Client) -> None:
    await told(api)
    metrics = (await api.get("/metrics")).raw.decode()
    for line in (
        'orchestrator_run_seconds_bucket{le="+Inf",outcome="done"} ',
        'orchestrator_run_seconds_count{outcome="cancelled"} ',
        'orchestrator_attempt_seconds_count{outcome="stopped"} ',
    ):
        assert line in metrics
