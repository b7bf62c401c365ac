"""Loads and unloads of several models, over scripted engines and a clock of its own."""

import asyncio

import pytest

from stonechat_server.catalog.entry import State
from stonechat_server.errors import APIError
from tests.server.catalog.scripted_models import GIB, in_loop, models, turns, until
from tests.server.fake_engine import FakeEngine


@in_loop
async def test_the_model_that_was_not_used_for_longest_makes_room() -> None:
    them = models({"a": 4, "b": 4, "c": 4})
    for name in ("a", "b", "a", "c"):
        await them.use(name)
    assert them.loaded == {"a", "c"}
    assert them["b"].state is State.SLEEPING
    assert them.loader.started == ["a", "b", "c"]
    await them.use("b")
    assert them.loaded == {"c", "b"}
    assert them["a"].unload_reasons == {"room": 1}


@in_loop
async def test_as_many_are_unloaded_as_it_takes() -> None:
    them = models({"a": 3, "b": 3, "c": 3, "d": 8})
    for name in "abcd":
        await them.use(name)
    assert them.loaded == {"d"}


@in_loop
async def test_a_pinned_model_stays() -> None:
    them = models({"a": 4, "b": 4, "c": 4, "d": 7}, {"a": {"pinned": True}})
    for name in "abc":
        await them.use(name)
    assert them.loaded == {"a", "c"}
    with pytest.raises(APIError) as caught:
        await them.use("d")
    assert caught.value.status == 503
    assert caught.value.code == "model_does_not_fit"
    assert "needs 7.5 GB" in caught.value.message
    assert "the budget is 10.7 GB, of which pinned models hold 4.3 GB" in caught.value.message
    assert them.loaded == {"a", "c"}, "nothing is unloaded for what cannot fit"
    assert them["d"].state is State.UNLOADED


@in_loop
async def test_a_model_larger_than_the_budget_is_never_begun() -> None:
    them = models({"a": 4, "b": 12})
    await them.use("a")
    with pytest.raises(
        APIError, match=r"does not fit: it needs 12\.9 GB on cpu \(weights 12\.6 GB"
    ):
        await them.use("b")
    assert them.loader.started == ["a"]
    assert them.loaded == {"a"}


@in_loop
async def test_two_requests_cause_one_load() -> None:
    them = models({"a": 4})
    gate = them.loader.gates["a"] = asyncio.Event()
    both = asyncio.gather(them.use("a"), them.use("a"))
    await turns()
    assert them["a"].state is State.LOADING
    assert them["a"].num_waiting == 2
    gate.set()
    await both
    assert them.loader.started == ["a"]
    assert (them["a"].num_users, them["a"].num_waiting) == (0, 0)


@in_loop
async def test_a_cancelled_request_does_not_break_the_load_of_another() -> None:
    them = models({"a": 4})
    gate = them.loader.gates["a"] = asyncio.Event()
    first, second = (asyncio.ensure_future(them.use("a")) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    assert first.cancelled()
    gate.set()
    await second
    assert them.loader.started == ["a"]
    assert (them["a"].num_users, them["a"].num_waiting) == (0, 0)


@in_loop
async def test_a_load_goes_on_if_all_have_left() -> None:
    them = models({"a": 4})
    gate = them.loader.gates["a"] = asyncio.Event()
    request = asyncio.ensure_future(them.use("a"))
    await turns()
    request.cancel()
    gate.set()
    await until(lambda: them.loaded == {"a"})


@in_loop
async def test_one_model_loads_at_a_time_so_that_the_room_is_counted_right() -> None:
    them = models({"a": 6, "b": 6})
    gate = them.loader.gates["a"] = asyncio.Event()
    both = asyncio.gather(them.use("a"), them.use("b"))
    await turns()
    assert them.loader.started == ["a"]
    gate.set()
    await both
    assert them.loader.started == ["a", "b"]
    assert them.loaded == {"b"}


@in_loop
async def test_a_failed_load_is_told_and_not_tried_again_at_once() -> None:
    them = models({"a": 4})
    them.loader.errors["a"] = "the file is cut off"
    with pytest.raises(APIError, match=r"'a' could not be loaded: the file is cut off") as caught:
        await them.use("a")
    assert (caught.value.status, caught.value.code) == (503, "model_load_failed")
    assert them["a"].state is State.FAILED
    with pytest.raises(APIError, match=r"cut off\. It is tried again in 4 s") as caught:
        await them.use("a")
    assert caught.value.headers == {"Retry-After": "4"}
    assert them.loader.started == ["a"]
    them.clock.now += 10
    with pytest.raises(APIError):
        await them.use("a")
    assert them.loader.started == ["a", "a"]
    them.clock.now += 6
    with pytest.raises(APIError, match="again in"):  # the wait has doubled
        await them.use("a")
    assert them.loader.started == ["a", "a"]
    them.loader.errors.clear()
    await them.catalog.load(them["a"])  # who asks for it does not wait
    assert them.loaded == {"a"}
    assert them["a"].error is None


@in_loop
async def test_a_model_that_would_be_refused_is_not_loaded() -> None:
    them = models({"a": 0})
    them.loader.errors["a"] = "this architecture is not served"
    with pytest.raises(APIError, match="this architecture is not served"):
        await them.use("a")
    assert them.loader.started == []


@in_loop
async def test_a_request_waits_no_longer_than_its_bound() -> None:
    them = models({"a": 4}, load_timeout=0.05)
    gate = them.loader.gates["a"] = asyncio.Event()
    with pytest.raises(APIError, match=r"was not loaded within 0\.05 s") as caught:
        await them.use("a")
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
    assert them["a"].num_waiting == 0
    gate.set()
    await until(lambda: them.loaded == {"a"})


@in_loop
async def test_a_busy_model_finishes_first_and_takes_no_more_requests() -> None:
    them = models({"a": 6, "b": 6})
    lease = them.catalog.enter(them["a"])
    await them.catalog.ready(lease)
    other = asyncio.ensure_future(them.use("b"))
    await until(lambda: them["a"].state is State.UNLOADING)
    again = asyncio.ensure_future(them.use("a"))
    await turns()
    assert them["a"].served is not None
    assert them["a"].served.engine.is_alive
    them.catalog.leave(lease)
    await other
    await again
    assert them.loader.started == ["a", "b", "a"]
    assert them.loaded == {"a"}


@in_loop
async def test_a_busy_model_stays_if_nobody_waits_for_its_room_any_more() -> None:
    them = models({"a": 6, "b": 6})
    lease = them.catalog.enter(them["a"])
    await them.catalog.ready(lease)
    other = asyncio.ensure_future(them.use("b"))
    await until(lambda: them["a"].state is State.UNLOADING)
    other.cancel()
    await until(lambda: them["a"].state is State.LOADED)
    await until(lambda: them["b"].state is State.UNLOADED)
    assert them.loader.started == ["a"]
    them.catalog.leave(lease)


@in_loop
async def test_an_idle_model_goes_before_a_busy_one() -> None:
    them = models({"a": 4, "b": 4, "c": 4})
    lease = them.catalog.enter(them["a"])
    await them.catalog.ready(lease)
    them.clock.now += 1
    await them.use("b")
    await them.use("c")
    assert them.loaded == {"a", "c"}
    them.catalog.leave(lease)


@in_loop
async def test_idle_models_are_unloaded_after_their_time() -> None:
    them = models(
        {"a": 1, "b": 1, "c": 1, "d": 1},
        {
            "a": {"keep_alive": 60.0},
            "b": {"keep_alive": 0.0},
            "c": {"keep_alive": 0.0, "pinned": True},
        },
    )
    lease = them.catalog.enter(them["a"])
    await them.catalog.ready(lease)
    for name in "bcd":
        await them.use(name)
    await them.catalog.look_after()
    assert them.loaded == {"a", "c", "d"}
    them.clock.now += 100
    await them.catalog.look_after()
    assert them.loaded == {"a", "c", "d"}, "a request still runs"
    them.catalog.leave(lease)
    them.clock.now += 59
    await them.catalog.look_after()
    assert them.loaded == {"a", "c", "d"}
    them.clock.now += 1
    await them.catalog.look_after()
    assert them.loaded == {"c", "d"}
    assert them["a"].unload_reasons == {"idle": 1}


@in_loop
async def test_a_crash_gives_the_memory_back_and_the_next_request_loads_again() -> None:
    them = models({"a": 6, "b": 6})
    await them.use("a")
    them.loader.engines["a"].is_alive = False
    await them.use("b")
    assert them["a"].unload_reasons in ({"crash": 1}, {"room": 1})
    them.loader.engines["b"].is_alive = False
    await them.use("b")
    assert them.loader.started == ["a", "b", "b"]
    them.loader.engines["b"].is_alive = False
    with pytest.raises(APIError, match="has crashed"):  # the second in a row
        await them.use("b")
    them.clock.now += 700
    await them.use("b")
    assert them.loader.started == ["a", "b", "b", "b"]


@in_loop
async def test_a_pinned_model_is_started_again_after_a_crash() -> None:
    them = models({"a": 6}, {"a": {"pinned": True}})
    await them.use("a")
    them.loader.engines["a"].is_alive = False
    await them.catalog.look_after()
    await until(lambda: them.loaded == {"a"})
    assert them.loader.started == ["a", "a"]


@in_loop
async def test_a_pinned_model_that_crashed_gets_its_room_back() -> None:
    them = models({"a": 6, "b": 6}, {"a": {"pinned": True}})
    await them.use("a")
    them.loader.engines["a"].is_alive = False
    await them.catalog.look_after()
    await until(lambda: them.loaded == {"a"})
    them.loader.engines["a"].is_alive = False
    await them.catalog.look_after()  # it waits after the second in a row
    await them.use("b")
    assert them.loaded == {"b"}
    them.clock.now += 20
    await them.catalog.look_after()
    await until(lambda: them["a"].loading is None)
    assert them.loaded == {"a"}
    assert them["b"].unload_reasons == {"room": 1}


@in_loop
async def test_a_model_that_somebody_unloads_does_not_stay_when_its_room_is_not_needed() -> None:
    them = models({"a": 6, "b": 6})
    lease = them.catalog.enter(them["a"])
    await them.catalog.ready(lease)
    other = asyncio.ensure_future(them.use("b"))
    await until(lambda: them["a"].state is State.UNLOADING)
    asked = asyncio.ensure_future(them.catalog.unload(them["a"]))
    await turns()
    other.cancel()
    await until(lambda: them["b"].num_waiting == 0)
    await asyncio.sleep(0.15)  # three looks of the one that makes room
    them.catalog.leave(lease)
    await asked
    assert them["a"].state is State.SLEEPING


@in_loop
async def test_two_who_unload_a_model_unload_it_once() -> None:
    them = models({"a": 6})
    await them.use("a")
    await asyncio.gather(*(them.catalog.unload(them["a"]) for _ in range(2)))
    await turns()
    assert them["a"].unload_reasons == {"asked": 1}


@in_loop
async def test_an_unexpected_error_of_a_load_is_kept_too() -> None:
    them = models({"a": 6})

    async def load(*_: object) -> FakeEngine:
        raise ValueError("the tokenizer is torn")

    them.loader.load = load  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(APIError, match="ValueError: the tokenizer is torn"):
            await them.use("a")
    assert them["a"].state is State.FAILED
    assert them["a"].num_failures == 1


@in_loop
async def test_unloading_waits_for_requests_unless_it_is_forced() -> None:
    them = models({"a": 6})
    await them.catalog.unload(them["a"])  # nothing to do
    lease = them.catalog.enter(them["a"])
    await them.catalog.ready(lease)
    asked = asyncio.ensure_future(them.catalog.unload(them["a"]))
    await turns()
    assert them["a"].state is State.UNLOADING
    await them.catalog.unload(them["a"], force=True)
    await asked
    assert them["a"].state is State.SLEEPING
    assert not them.loader.engines["a"].is_alive
    them.catalog.leave(lease)
    await them.use("a")
    assert them["a"].unload_reasons == {"asked": 1}


@in_loop
async def test_a_model_that_loads_is_not_unloaded() -> None:
    them = models({"a": 6})
    gate = them.loader.gates["a"] = asyncio.Event()
    request = asyncio.ensure_future(them.use("a"))
    await turns()
    with pytest.raises(APIError, match="is being loaded") as caught:
        await them.catalog.unload(them["a"])
    assert caught.value.status == 409
    gate.set()
    await request


@in_loop
async def test_a_model_that_wakes_keeps_its_tokenizer_and_templates() -> None:
    them = models({"a": 6})
    await them.use("a")
    served = them["a"].served
    assert served is not None
    templates, admission = served.templates, served.admission
    await them.catalog.unload(them["a"])
    assert them["a"].served is served
    await them.use("a")
    assert them["a"].served is served
    assert served.templates is templates
    assert served.admission is admission
    assert served.engine is them.loader.engines["a"]


@in_loop
async def test_models_are_loaded_at_start_and_ended_at_the_end() -> None:
    them = models({"a": 4, "b": 4, "c": 12}, {n: {"load_at_start": True} for n in "ac"})
    await them.catalog.start()
    assert them.loaded == {"a"}
    assert [error.code for error in them.catalog.start_errors] == ["model_does_not_fit"]
    await until(lambda: them["b"].num_bytes == 4 * GIB)
    gate = them.loader.gates["b"] = asyncio.Event()
    waiting = asyncio.ensure_future(them.use("b"))
    await turns()
    await them.catalog.shutdown()
    assert them.loader.is_closed
    assert not them.loader.engines["a"].is_alive
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@in_loop
async def test_no_request_waits_for_a_load_when_the_server_drains() -> None:
    them = models({"a": 4})
    them.loader.gates["a"] = asyncio.Event()
    waiting = asyncio.ensure_future(them.use("a"))
    await turns()
    them.catalog.drain()
    with pytest.raises(APIError, match="shutting down") as caught:
        await waiting
    assert caught.value.status == 503
    await them.catalog.shutdown()


@in_loop
async def test_models_that_are_to_be_there_from_the_start_must_fit_together() -> None:
    every = {"load_at_start": True}
    them = models({"a": 6, "b": 6, "c": 1}, dict.fromkeys("abc", every))
    await them.catalog.start()
    (error,) = them.catalog.start_errors
    assert "do not fit the memory budget together: a had to make room again" in error.message
    await them.catalog.shutdown()
