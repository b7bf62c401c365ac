"""A chat template with tools and reasoning, and scripts of answers that a model with it writes."""

import json
from typing import Any

from stonechat_models import FinishReason, GenerateRequest, RequestOutput
from tests.server.fake_engine import Script, delta, output

TEMPLATE = """\
{%- if tools %}TOOLS {{ tools | tojson }}
{% endif -%}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>
{% endif %}{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call> ({{ call.id }}){% endfor %}
{%- if message.tool_call_id %} ({{ message.tool_call_id }}){% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def text_script(text: str, finish: FinishReason = FinishReason.STOP, **changes: Any) -> Script:
    """A few characters per step; the last step ends the answer. `changes` are of its delta."""

    def play(request: GenerateRequest) -> list[RequestOutput | Exception | float]:
        pieces = [text[i : i + 3] for i in range(0, len(text), 3)] or [""]
        *firsts, last = pieces
        deltas = [delta(piece) for piece in firsts] + [delta(last, finish=finish, **changes)]
        return [
            output(request, piece, finished=i == len(deltas) - 1, cached=4, written=16)
            for i, piece in enumerate(deltas)
        ]

    return play
