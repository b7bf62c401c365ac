"""Chat templates for models whose folders have none, by architecture."""

from collections.abc import Mapping

VOXTRAL = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}[SYSTEM_PROMPT]{{ message.content }}[/SYSTEM_PROMPT]
{%- elif message.role == 'user' %}[INST]
{%- if message.content is string %}{{ message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'audio' %}[BEGIN_AUDIO][AUDIO]{% else %}{{ part.text }}{% endif %}
{%- endfor %}
{%- endif %}[/INST]
{%- else %}{{ message.content }}{{ eos_token }}
{%- endif %}
{%- endfor %}
"""
"""Mistral's own format (version 7 of its tokenizers), which its folders leave to mistral-common."""
KNOWN: Mapping[str, str] = {"VoxtralForConditionalGeneration": VOXTRAL}
