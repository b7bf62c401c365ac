"""Whole numbers may be written with a fraction, as PHP and R write them: 100.0."""

from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from stonechat_server.api.openapi.wire_types import REQUESTS
from stonechat_server.ollama_api.request import Options


def _types(annotation: Any) -> list[Any]:
    """The types that a value may have, without those of items."""
    if get_origin(annotation) in (list, dict, tuple):
        return []
    return [annotation, *(part for one in get_args(annotation) for part in _types(one))]


def _takes_number(field: FieldInfo) -> bool:
    return int in _types(field.annotation)


FIELDS = [
    (kind, name)
    for kind in (*REQUESTS, Options)
    for name, field in kind.model_fields.items()
    if _takes_number(field)
]


def _accepts(kind: type[BaseModel], name: str, value: object) -> bool:
    try:
        kind.model_validate({name: value})
    except ValidationError as error:
        return all(one["loc"][0] != name for one in error.errors())
    return True


def test_a_whole_number_may_be_a_float() -> None:
    for kind, name in FIELDS:
        for number in (-1, 1, 2):
            assert _accepts(kind, name, float(number)) == _accepts(kind, name, number)
        assert _accepts(kind, name, 1)
        assert not _accepts(kind, name, 1.5)


def test_many_fields_are_numbers() -> None:
    assert {name for _, name in FIELDS} >= {"max_tokens", "top_k", "dimensions", "num_predict"}
