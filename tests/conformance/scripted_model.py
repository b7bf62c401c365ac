"""An engine that plays a model with tools: one given step a turn, each after a thought."""

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from stonechat_models import GenerateRequest, RequestOutput
from tests.server.fake_engine import (
    ByteTokenizer,
    FakeEngine,
    model_info,
    text_script,
)

TEMPLATE = """\
{#- <think></think> -#}
{%- if tools %}<tools>{{ tools | tojson }}</tools>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}{% if message.tool_calls %}<tool_call>{{ message.tool_calls | tojson }}
</tool_call>{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""
THOUGHT = "<think>I think before I act.</think>\n\n"
RESULT = "<|im_start|>tool\n"
NUM_PROMPT_TOKENS = 1000
"""What every prompt is said to have. Bytes are too many for an agent's idea of a context."""

Step = str | tuple[str, dict[str, Any]]
"""A text, or the name and the arguments of a tool that the model calls."""


def scripted_engine(model: str, steps: Sequence[Step]) -> FakeEngine:
    """Return an engine that takes step n at a prompt with n results of tools.

    Requests without the tool of the first step, as for a title, get the text of the last step.
    """

    def play(request: GenerateRequest) -> list[RequestOutput | Exception | float]:
        prompt = bytes(request.prompt_token_ids).decode()
        step = steps[min(prompt.count(RESULT), len(steps) - 1)]
        if not isinstance(steps[0], str) and f'"{steps[0][0]}"' not in prompt:
            step = steps[-1]
        text = step if isinstance(step, str) else _call(*step)
        pieces = re.findall(r"(?s).{1,20}", THOUGHT + text)
        outputs = text_script(*pieces)(request)
        return [_with_short_prompt(item) for item in outputs]

    info = model_info(name=model, max_model_len=10**6)
    return FakeEngine(play, info, ByteTokenizer(chat_template=TEMPLATE))


def _call(name: str, arguments: dict[str, Any]) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def _with_short_prompt(item: Any) -> Any:
    return msgspec.structs.replace(item, num_prompt_tokens=NUM_PROMPT_TOKENS)
