"""The sandbox of templates, beside what the comparison with transformers covers."""

import jinja2
import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from stonechat_server.prompt.chat_template import new_environment
from stonechat_server.prompt.environment import TemplateRefusalError

SAFE = [
    "{{ dict(a=1, b=2) }} {{ dict([('x', 1)]) }} {{ dict.fromkeys('ab', 0) }}",
    "{% set ns = namespace(self=1, x=2) %}{% set ns.x = 3 %}{{ ns.x }} {{ ns.self }}",
    "{{ {'b': 'é<&', 'a': [1, none]} | tojson(sort_keys=true, indent=1) }}",
    "{{ 'é' | tojson(ensure_ascii=true) }} {{ [1, 2] | tojson(separators=(',', ':')) }}",
    "{{ missing }}|{{ missing is defined }}|{{ {}.x }}|{% for x in missing %}{% endfor %}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i == 4 %}{% break %}{% endif %}"
    "{{ i }}{% endfor %}",
    "  {% if true %}\n x\n  {% endif %}\n{{ '  y ' | trim }}\n",
    "{% generation %}{{ 'a' }}{% generation %}b{% endgeneration %}{% endgeneration %}c",
    "{{ 'a,b'.split(',') }} {{ 'ab' | upper }} {{ [3, 1] | sort }} {{ '%s!' | format('x') }}",
    "{{ strftime_now('%Y') | length }}",
]
UNSAFE = [
    "{{ dict.__class__.mro }}",
    "{{ dict.mro() }}",
    "{{ dict.update({}, {}) }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace() %}{% set ns._hidden = 1 %}",
    "{{ strftime_now.__globals__.json }}",
]


@pytest.mark.parametrize("source", SAFE)
def test_templates_render_as_in_transformers(source: str) -> None:
    expected = _compile_jinja_template(source).render()
    assert new_environment().from_string(source).render() == expected


@pytest.mark.parametrize("source", UNSAFE)
def test_nothing_leads_to_the_interpreter(source: str) -> None:
    with pytest.raises(jinja2.TemplateError):
        new_environment().from_string(source).render()


def test_raise_exception_is_a_refusal() -> None:
    with pytest.raises(TemplateRefusalError, match="no"):
        new_environment().from_string("{{ raise_exception('no') }}").render()


def test_lists_may_grow_and_iterators_are_lists_in_json() -> None:
    source = "{% set x = [1] %}{% set _ = x.append(2) %}{{ x.pop(0) }}{{ x }}"
    assert new_environment().from_string(source).render() == "1[2]"
    source = "{{ [{'a': 1}] | map(attribute='a') | tojson }}"
    assert new_environment().from_string(source).render() == "[1]"
    with pytest.raises(TypeError, match="not JSON"):
        new_environment().from_string("{{ missing | tojson }}").render()
