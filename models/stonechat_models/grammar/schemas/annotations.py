"""Tells which keywords of a JSON schema constrain nothing.

They are unknown keywords, annotations such as `title`, null in place of a keyword's value, formats
that no draft of JSON Schema defines, and constraints that every document meets.
"""

from typing import Any

from stonechat_models.grammar.schemas.schema_tree import Schema, change_children

IDENTIFIERS = frozenset(
    ("$anchor", "$dynamicAnchor", "$dynamicRef", "$id", "$recursiveAnchor", "$recursiveRef", "id")
)
CONSTRAINTS = IDENTIFIERS | {
    *("$defs", "$ref", "$schema", "definitions"),
    *("additionalItems", "additionalProperties", "allOf", "anyOf", "const", "contains"),
    *("dependencies", "dependentRequired", "dependentSchemas", "else", "enum"),
    *("exclusiveMaximum", "exclusiveMinimum", "format", "if", "items", "maxContains", "maxItems"),
    *("maxLength", "maxProperties", "maximum", "minContains", "minItems", "minLength"),
    *("minProperties", "minimum", "multipleOf", "not", "oneOf", "pattern", "patternProperties"),
    *("prefixItems", "properties", "propertyNames", "required", "then", "type"),
    *("unevaluatedItems", "unevaluatedProperties", "uniqueItems"),
}
"""All keywords with which a schema of any draft can constrain a document."""

_DRAFTS = tuple(
    f"{scheme}://json-schema.org/{draft}/schema"
    for scheme, draft in (
        *(("http", f"draft-0{number}") for number in (3, 4, 6, 7)),
        *(("https", f"draft/{name}") for name in ("2019-09", "2020-12", "next")),
    )
)
FORMATS = frozenset(
    (
        *("date", "time", "date-time", "duration", "uuid", "regex"),
        *("email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6"),
        *("uri", "uri-reference", "uri-template", "iri", "iri-reference"),
        *("json-pointer", "relative-json-pointer"),
    )
)
"""The formats that JSON Schema defines. Any other, such as `password`, only annotates."""


def without_annotations(schema: Schema, *, keep_ids: bool) -> Schema:
    """Return the schema without what constrains nothing, at every level.

    `keep_ids`: its references are resolved by `$id`, `$anchor` and the like.
    """
    kept = {
        key: value
        for key, value in schema.items()
        if (keep_ids or key not in IDENTIFIERS) and not has_no_effect(key, value, schema)
    }
    if kept.get("unevaluatedProperties") in (True, {}):
        del kept["unevaluatedProperties"]
        kept.setdefault("additionalProperties", True)
    return change_children(kept, lambda child, _: without_annotations(child, keep_ids=keep_ids))


def has_no_effect(key: str, value: object, node: Schema) -> bool:
    """Return whether this keyword of `node` constrains nothing."""
    if key not in CONSTRAINTS or (value is None and key != "const"):
        return True
    match key:
        case "$schema":
            return not isinstance(value, str) or value.removesuffix("#") not in _DRAFTS
        case "format":
            return isinstance(value, str) and value not in FORMATS
        case "propertyNames":
            return allows_every_name(value)
        case "uniqueItems":
            return value is False or node.get("maxItems") in (0, 1)
        case "required":
            return isinstance(value, bool)  # draft 3 has it in the property
        case "minProperties" | "minItems" | "minLength":
            return value == 0 and not isinstance(value, bool)
        case "then" | "else":
            return "if" not in node
        case "if":
            return "then" not in node and "else" not in node
        case "minContains" | "maxContains":
            return "contains" not in node
        case "not":
            return value is False
        case "unevaluatedItems":
            return value is True or value == {}
        case "allOf":
            return value == []
        case "patternProperties" | "dependentRequired" | "dependentSchemas" | "dependencies":
            return value == {}
    return False


def allows_every_name(schema: Any) -> bool:
    """Return whether `schema`, of a property's name, allows every string."""
    if not isinstance(schema, dict):
        return schema is True
    kept = without_annotations(schema, keep_ids=True)
    types = kept.pop("type", "string")
    return not kept and ("string" in types if isinstance(types, list) else types == "string")
