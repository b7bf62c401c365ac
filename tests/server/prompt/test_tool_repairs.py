"""Templates that translate the types of arguments are given tools that they can render."""

from typing import Any

import pytest

from stonechat_server.prompt.chat_template import ChatTemplate, RenderOptions

TYPES_ONE_BY_ONE = """\
{%- macro written(schema) %}
{%- set known = {'string': 'str', 'integer': 'int', 'number': 'float', 'boolean': 'bool'} %}
{%- if known[schema.type] is defined %}{{ known[schema.type] }}
{%- elif schema.type == 'array' %}{{ 'list[' + written(schema['items']) + ']' }}
{%- elif schema.type == 'object' %}{{ 'dict[str, ' + written(schema.additionalProperties) + ']' }}
{%- else %}{% for type in schema.type %}{{ written({'type': type}) }}{% endfor %}{% endif %}
{%- endmacro %}
{%- for tool in tools %}{{ tool.function.name + ': ' + tool.function.description + '(' }}
{%- for name, schema in tool.function.parameters.properties | items %}
{{- name + ': ' + written(schema) + schema.description }}{% endfor %}{{ ')' }}{% endfor %}
{%- for message in messages %}{{ message.content }}{% endfor %}"""
"""Like Hermes 2 and 3, and Command R: a type that is unknown is read letter by letter, forever."""


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        ({"type": ["string", "null"]}, "str"),
        ({"type": ["null", "integer"]}, "int"),
        ({"type": "null"}, "str"),
        ({}, "str"),
        (True, "str"),
        ({"$ref": "#/$defs/X"}, "str"),
        ({"anyOf": [{"type": "null"}, {"type": "number"}]}, "float"),
        ({"oneOf": [{"enum": [True]}, {"type": "null"}]}, "bool"),
        ({"enum": [None, 3]}, "int"),
        ({"const": "x"}, "str"),
        ({"type": "array", "items": {"type": ["boolean", "null"]}}, "list[bool]"),
        ({"type": "object"}, "dict[str, str]"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "dict[str, int]"),
    ],
)
def test_types_that_a_template_does_not_know(schema: Any, written: str) -> None:
    parameters = {"type": "object", "properties": {"a": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    template = ChatTemplate(TYPES_ONE_BY_ONE, {})
    prompt = template.render([{"role": "user", "content": "Hi"}], RenderOptions(tools=[tool]))
    assert prompt == f"f: (a: {written})Hi"
