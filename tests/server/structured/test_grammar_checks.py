"""Cheap grammars are checked at once; others in a process, for which nobody else waits."""

import json
from collections.abc import Iterator
from concurrent.futures import Future
from threading import Thread

import pytest
from fastapi.testclient import TestClient

from stonechat_models import CostlyGrammarError, EngineDeadError, EngineError, GrammarSpec
from stonechat_server.errors import APIError
from stonechat_server.structured.argument_schemas import ArgumentSchemas
from stonechat_server.structured.grammar_checks import (
    CHECKED_GRAMMARS,
    GrammarCache,
    GrammarPendingError,
)
from tests.server.bodies import error_of, post

HANG_SECONDS = 60.0
COSTLY = GrammarSpec("json_schema", '{"type": "integer", "multipleOf": 999983}')
LONG = GrammarSpec("regex", "(ab|cd)*" * 100)


@pytest.fixture
def cache() -> Iterator[GrammarCache]:
    cache = GrammarCache()
    yield cache
    cache.close()


def reason_later(cache: GrammarCache, spec: GrammarSpec) -> str | None:
    with pytest.raises(GrammarPendingError) as caught:
        cache.reason(spec)
    with pytest.raises(GrammarPendingError) as again:
        cache.reason(spec)
    assert again.value.check is caught.value.check
    caught.value.check.exception(HANG_SECONDS)
    return cache.reason(spec)


class Checker:
    """Has a result for each check, or none yet."""

    def __init__(self, *results: object) -> None:
        self.results = list(results)
        self.specs: list[GrammarSpec] = []

    def submit(self, spec: GrammarSpec) -> "Future[object]":
        self.specs.append(spec)
        check: Future[object] = Future()
        result = self.results.pop(0)
        if isinstance(result, EngineError) and not isinstance(result, CostlyGrammarError):
            check.set_exception(result)
        else:
            check.set_result(result)
        return check

    def close(self) -> None:
        pass


class WaitingChecker(Checker):
    """Has no result until a test sets it."""

    def __init__(self) -> None:
        super().__init__()
        self.checks: dict[GrammarSpec, Future[object]] = {}

    def submit(self, spec: GrammarSpec) -> "Future[object]":
        self.checks[spec] = Future()
        return self.checks[spec]

    def drop(self, spec: GrammarSpec) -> None:
        self.checks[spec].cancel()


def pending_check(cache: GrammarCache, spec: GrammarSpec) -> GrammarPendingError:
    with pytest.raises(GrammarPendingError) as caught:
        cache.reason(spec)
    return caught.value


def test_cheap_grammars_need_no_process(cache: GrammarCache) -> None:
    assert cache.reason(GrammarSpec("json_schema", '{"type": "object"}')) is None
    assert "regex" in (cache.reason(GrammarSpec("regex", "(a")) or "")
    assert cache._checker is None


def test_other_grammars_are_checked_once(cache: GrammarCache) -> None:
    assert reason_later(cache, LONG) is None
    assert cache.reason(LONG) is None


def test_a_check_that_reaches_a_limit_is_remembered(
    cache: GrammarCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = Checker(CostlyGrammarError("it takes too long to compile (the limit is 3 s)"))
    monkeypatch.setattr(cache, "_checker", checker)
    for _ in range(2):
        with pytest.raises(CostlyGrammarError):
            cache.reason(COSTLY)
    with pytest.raises(APIError) as caught:
        cache.check(COSTLY, "response_format")
    assert (caught.value.status, caught.value.param) == (400, "response_format")
    assert "takes too long to compile (the limit is 3 s)" in caught.value.message
    assert len(checker.specs) == 1


def test_a_check_that_fails_is_tried_again(
    cache: GrammarCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_checker", Checker(EngineError("no memory"), None))
    with pytest.raises(EngineError, match="no memory"):
        cache.reason(COSTLY)
    assert cache.reason(COSTLY) is None


def test_the_number_of_results_is_limited(
    cache: GrammarCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = Checker(*[None] * (CHECKED_GRAMMARS + 2))
    monkeypatch.setattr(cache, "_checker", checker)
    for i in range(CHECKED_GRAMMARS + 1):
        assert cache.reason(GrammarSpec("regex", "a" * 600 + str(i))) is None
    assert cache.reason(GrammarSpec("regex", "a" * 600 + "0")) is None
    assert len(checker.specs) == CHECKED_GRAMMARS + 2


def test_nothing_of_a_check_stays_but_its_result(
    cache: GrammarCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if nobody asks for the grammar again."""
    monkeypatch.setattr(cache, "_checker", checker := WaitingChecker())
    specs = [GrammarSpec("regex", "a" * 600 + str(i)) for i in range(4)]
    pending = [pending_check(cache, spec) for spec in specs]
    checker.checks[specs[0]].set_result(None)
    checker.checks[specs[1]].set_exception(EngineError("no memory"))
    pending[2].drop()
    assert pending[2].check.cancelled()
    assert len(cache._running) == 1
    assert cache.reason(specs[0]) is None
    assert pending_check(cache, specs[2]).check is not pending[2].check
    assert pending_check(cache, specs[3]).check is pending[3].check


def test_a_joined_grammar_is_only_tried_if_it_is_costly(
    cache: GrammarCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_checker", Checker(CostlyGrammarError("too much")))
    cache.check_cost(GrammarSpec("regex", "(a"), "tools")
    with pytest.raises(APIError, match="too much"):
        cache.check_cost(COSTLY, "tools")


def test_closing_ends_the_checks(cache: GrammarCache) -> None:
    with pytest.raises(GrammarPendingError) as caught:
        cache.reason(COSTLY)
    cache.close()
    with pytest.raises(EngineDeadError):
        caught.value.check.result(HANG_SECONDS)
    with pytest.raises(EngineDeadError):
        cache.reason(LONG)


def test_nothing_is_checked_after_closing(cache: GrammarCache) -> None:
    cache.close()
    with pytest.raises(EngineDeadError):
        cache.reason(LONG)


# --- through the server ---


def costly_schema(number: int) -> dict[str, object]:
    return {"type": "integer", "multipleOf": 999_983, "title": str(number)}


def test_a_costly_grammar_is_refused_with_its_field_and_the_limit(client: TestClient) -> None:
    linked = {f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(600)}
    schema = {"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": {**linked, "d600": {}}}
    error = error_of(post(client, structured_outputs={"json": schema}))
    assert error["param"] == "structured_outputs.json"
    assert error["code"] == "invalid_grammar"
    assert "nested too deeply" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"regex": "(ab|cd)*" * 30_000}}, "structured_outputs.regex"),
        (
            {"structured_outputs": {"grammar": f"start: A\nA: /{'(ab|cd)*' * 25_000}/"}},
            "structured_outputs.grammar",
        ),
        (
            {"structured_outputs": {"json": {"pattern": "(ab|cd)*" * 25_000}}},
            "structured_outputs.json",
        ),
        (
            {
                "tools": [
                    {
                        "type": "custom",
                        "custom": {
                            "name": "c",
                            "format": {
                                "type": "grammar",
                                "grammar": {"syntax": "regex", "definition": "a" * 20_000},
                            },
                        },
                    }
                ]
            },
            "tools[0].custom.format.grammar.definition",
        ),
    ],
)
def test_a_long_expression_is_refused(
    client: TestClient, fields: dict[str, object], param: str
) -> None:
    response = post(client, **fields)
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert "characters" in error_of(response)["message"]


def test_others_are_answered_while_costly_grammars_are_checked(client: TestClient) -> None:
    ended: list[int] = []

    def attack(number: int) -> None:
        outputs = {"json": costly_schema(number)}
        ended.append(post(client, structured_outputs=outputs).status_code)

    attackers = [Thread(target=attack, args=(i,)) for i in range(5)]
    for attacker in attackers:
        attacker.start()
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    outputs = [
        {"response_format": {"type": "json_object"}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": schema},
            }
        },
        {"structured_outputs": {"regex": "(ab|cd)*" * 100}},
    ]
    for fields in outputs:
        assert post(client, **fields).status_code == 200
    assert len(ended) < len(attackers)
    assert client.portal is not None
    client.portal.call(client.app.state.server.lifecycle.begin_drain)  # type: ignore[attr-defined]
    for attacker in attackers:
        attacker.join(HANG_SECONDS)
    assert len(ended) == len(attackers)
    assert 503 in ended


def test_too_many_checks_are_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stonechat_models.grammar.checker.MAX_CHECKS", 0)
    response = post(client, structured_outputs={"json": costly_schema(0)})
    assert response.status_code == 429
    assert response.headers["Retry-After"] == "1"
    assert post(client, structured_outputs={"json": {"type": "object"}}).status_code == 200


@pytest.mark.parametrize("is_strict", [False, True])
def test_a_tool_that_is_too_costly(is_strict: bool) -> None:
    def reason_against(spec: GrammarSpec) -> str | None:
        if "multipleOf" in spec.source:
            raise CostlyGrammarError("it takes too long")
        return None

    number = {"type": "integer", "multipleOf": 999_983}
    source = json.dumps({"type": "object", "properties": {"n": number}})
    found = ArgumentSchemas(reason_against)._choose(source, is_strict)
    if is_strict:
        assert found.reason == "it takes too long"
    else:
        assert found.schema["properties"] == {"n": {"type": "integer"}}
        assert found.left_out == ("",)
