"""No name that a released version promised has gone."""

import json
from pathlib import Path

import pytest

from tests.promises import Surface, surface

PROMISES = sorted((Path(__file__).parents[1] / "docs" / "data" / "promises").glob("*.json"))


def broken(promised: Surface, present: Surface) -> list[str]:
    return [
        f"{kind}: {name}"
        for kind, names in promised.items()
        for name in names
        if name not in present.get(kind, ())
    ]


@pytest.mark.parametrize("file", PROMISES, ids=lambda file: file.stem)
def test_what_a_version_promised_is_still_there(file: Path) -> None:
    promised = json.loads(file.read_text(encoding="utf-8"))
    assert broken(promised, surface()) == [], "see docs/compatibility.md before you remove a name"


def test_each_kind_of_name_is_recorded() -> None:
    assert PROMISES
    samples = {
        "flags": "stonechat keys add NAME",
        "settings": "max_model_len",
        "variables": "STONECHAT_API_KEY",
        "paths": "POST /v1/chat/completions",
        "honoured fields": "responses instructions",
        "metrics": "stonechat:num_requests_running",
        "names of stonechat_models": "GenerateRequest",
    }
    present = surface()
    assert broken({kind: [name] for kind, name in samples.items()}, present) == []
    assert present.keys() == samples.keys()


def test_a_name_that_has_gone_is_named() -> None:
    promised = {"flags": ["stonechat serve --old", "stonechat serve"], "metrics": ["m"]}
    assert broken(promised, {"flags": ["stonechat serve"]}) == [
        "flags: stonechat serve --old",
        "metrics: m",
    ]
