"""JSON schemas of many shapes. The server enforces all of them."""

from typing import Any

_POINT = {
    "type": "object",
    "properties": {"x": {"type": "number"}, "y": {"type": "number"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}

SCHEMAS: dict[str, dict[str, Any]] = {
    "empty object": {"type": "object"},
    "anything": {},
    "string": {"type": "string", "maxLength": 20},
    "bounded string": {"type": "string", "minLength": 3, "maxLength": 5},
    "integer": {"type": "integer", "minimum": -5, "maximum": 120},
    "exclusive bounds": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 100},
    "boolean or null": {"type": ["boolean", "null"]},
    "enum": {"enum": ["red", 'gr"een', 3, None, [1, 2], {"a": "b"}]},
    "const": {"const": {"kind": "fixed", "n": 1}},
    "point": _POINT,
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": "boolean"}},
        "required": ["b"],
    },
    "nested": {
        "type": "object",
        "properties": {
            "user": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "address": {
                        "type": "object",
                        "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
                        "required": ["zip"],
                    },
                },
                "required": ["name", "address"],
            }
        },
        "required": ["user"],
    },
    "array": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 4},
    "array of points": {"type": "array", "items": _POINT, "maxItems": 3},
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "string"}, {"type": "integer"}],
        "items": False,
        "minItems": 2,
    },
    "ref": {
        "$defs": {"point": _POINT},
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}},
        "required": ["from", "to"],
    },
    "recursive list": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["value", "next"],
            }
        },
        "$ref": "#/$defs/node",
    },
    "recursive tree": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2},
        },
        "required": ["name"],
    },
    "anyOf": {"anyOf": [{"type": "string", "maxLength": 9}, {"type": "integer"}, _POINT]},
    "oneOf by constant": {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}},
                "required": ["kind", "lives"],
            },
            {
                "type": "object",
                "properties": {"kind": {"const": "dog"}, "name": {"type": "string"}},
                "required": ["kind", "name"],
            },
        ]
    },
    "allOf": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "string"}}, "required": ["b"]},
        ]
    },
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-\\d{3,5}(\\s[a-z]+)?$"},
    "loose pattern": {"type": "string", "pattern": "ab+c", "maxLength": 12},
    "no spaces": {"type": "string", "pattern": "^\\S+$", "maxLength": 12},
    "date": {"type": "string", "format": "date"},
    "date-time": {"type": "string", "format": "date-time"},
    "time": {"type": "string", "format": "time"},
    "uuid": {"type": "string", "format": "uuid"},
    "email": {"type": "string", "format": "email"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "map of integers": {"type": "object", "additionalProperties": {"type": "integer"}},
    "pattern properties": {
        "type": "object",
        "patternProperties": {"^x_": {"type": "integer"}},
        "additionalProperties": False,
    },
    "map with a minimum": {
        "type": "object",
        "additionalProperties": {"type": "boolean"},
        "minProperties": 1,
    },
    "declared and other keys": {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "additionalProperties": {"type": "integer"},
    },
    "unicode": {
        "type": "object",
        "properties": {"größe": {"enum": ["klein", "groß", "😀"]}},
        "required": ["größe"],
    },
    "pydantic style": {
        "title": "Order",
        "type": "object",
        "$defs": {"Size": {"enum": ["S", "M", "L"], "title": "Size", "type": "string"}},
        "properties": {
            "size": {"allOf": [{"$ref": "#/$defs/Size"}], "default": "M"},
            "count": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        },
        "required": ["size"],
    },
}
