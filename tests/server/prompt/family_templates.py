"""Short chat templates of our own with the marks and the demands of model families.

Each demands of its input what the family's template demands, and writes turns as it does.
"""

CHATML_REASONING = """\
{%- if tools %}<|im_start|>system
{{ messages[0].content + '\\n' if messages[0].role == 'system' }}
{%- for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- set content = message.content if message.content is string else '' %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{%- set reasoning = message.reasoning_content if message.reasoning_content is string else '' %}
{%- if not reasoning and '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if reasoning %}{{ '<think>\\n' + reasoning + '\\n</think>\\n\\n' }}{% endif %}
{{- content }}
{%- for call in message.tool_calls or [] %}
{%- set call = call.function if call.function else call %}
{{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments if call.arguments is string else call.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}"""
"""Like Qwen3: reasoning under `reasoning_content`, or in tags within the content."""

TAGGED_ARGUMENTS = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
<function={{ call.function.name }}>
{%- for key, value in call.function.arguments | items %}
<parameter={{ key }}>
{{ value if value is string else value | tojson | safe }}
</parameter>
{%- endfor %}
</function>
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Like Qwen3-Coder: arguments must be objects."""

NO_SYSTEM = """\
{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{{- message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
"""Like Gemma 2: no system role, no tools, alternating turns."""

SINGLE_CALLS = """\
{{ bos_token }}<|start_header_id|>system<|end_header_id|>

Today: {{ strftime_now('%d %b %Y') }}

{{ messages[0].content | trim if messages[0].role == 'system' }}<|eot_id|>
{%- for message in messages if message.role != 'system' %}
{%- if not (message.role == 'tool' or 'tool_calls' in message) %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
{{- message.content | trim + '<|eot_id|>' }}
{%- elif 'tool_calls' in message %}
{%- if not message.tool_calls | length == 1 %}
{{- raise_exception('This model only supports single tool-calls at once!') }}
{%- endif %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", ' }}
{{- '"parameters": ' }}{{ call.arguments | tojson }}{{ '}<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
"""Like Llama 3.2: one call a message, only the first system message."""

STRICT_IDS = """\
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}
{%- set turns = messages[1:] %}
{%- else %}{% set system = 'You are a helpful default.' %}{% set turns = messages %}{% endif %}
{{- bos_token + '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' }}
{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for message in turns %}
{%- if message.role == 'user' %}{{ '[INST]' + message.content + '[/INST]' }}
{%- elif message.role == 'assistant' %}
{%- if not message.content and not message.tool_calls %}
{{- raise_exception('An answer must have content or calls.') }}
{%- endif %}
{%- if message.content %}{{ message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}
{%- if call.id is undefined or call.id | length != 9 %}
{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
{%- endif %}
{%- set arguments = call.function.arguments %}
{{- '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id + '[ARGS]' }}
{{- arguments if arguments is string else arguments | tojson }}
{%- endfor %}
{{- eos_token }}
{%- elif message.role == 'tool' %}
{{- '[TOOL_RESULTS]' + message.tool_call_id + '[TOOL_CONTENT]' + message.content }}
{{- '[/TOOL_RESULTS]' }}
{%- else %}{{ raise_exception('Only user, assistant and tool roles are supported.') }}
{%- endif %}
{%- endfor %}"""
"""Like Mistral Small 3.2: ids of nine characters, a default system text."""

THINKING_ONLY = """\
{{- '<|start|>system<|message|>Reasoning: ' + (reasoning_effort or 'medium') + '<|end|>' }}
{%- if messages[0].role in ('system', 'developer') %}
{{- '<|start|>developer<|message|>' + messages[0].content + '<|end|>' }}
{%- set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}
{%- for message in turns %}
{%- if message.role == 'assistant' and 'tool_calls' in message %}
{%- if message.content and message.thinking %}
{{- raise_exception('Cannot pass both content and thinking in a message with tool calls!') }}
{%- endif %}
{%- set thought = message.content or message.thinking %}
{%- if thought %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + thought + '<|end|>' }}
{%- endif %}
{%- for call in message.tool_calls %}
{{- '<|start|>assistant to=functions.' + call.function.name + '<|message|>' }}
{{- call.function.arguments | tojson + '<|call|>' }}
{%- endfor %}
{%- elif message.role == 'assistant' %}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
{%- elif message.role == 'tool' %}
{{- '<|start|>functions.' + message.name + '<|message|>' + message.content | tojson + '<|end|>' }}
{%- else %}
{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""
"""Like gpt-oss: reasoning under `thinking`, never beside content and calls."""

JOINED_ARGUMENTS = """\
{%- set ns = namespace(system='', is_first=true) %}
{%- for message in messages if message.role == 'system' %}
{%- set ns.system = message.content %}
{%- endfor %}
{{- bos_token + ns.system }}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '<|User|>' + message.content }}
{%- elif message.role == 'assistant' %}{{ '<|Assistant|>' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{{- '<|call|>' + call.function.name + '<|sep|>' + call.function.arguments + '<|call end|>' }}
{%- endfor %}
{{- eos_token }}
{%- elif message.role == 'tool' %}{{ '<|output|>' + message.content + '<|output end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|Assistant|>{% endif %}"""
"""Like DeepSeek V3: arguments must be text; the last system message replaces the others."""

DOCUMENTS = """\
{%- for document in documents or [] %}
<doc>{{ document.title }}: {{ document.text | replace('\\n', ' ') }}</doc>
{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '[A]' }}{% generation %}{{ message.content }}{% endgeneration %}
{%- else %}
{{- '[' + message.role | upper + ']' + (message.content or '') }}
{%- endif %}
{%- if loop.index > 30 %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}[A]{% endif %}"""
"""Documents, the `generation` tag, a loop that breaks; a system message is a turn."""

FAMILIES = {
    "chatml_reasoning": CHATML_REASONING,
    "tagged_arguments": TAGGED_ARGUMENTS,
    "no_system": NO_SYSTEM,
    "single_calls": SINGLE_CALLS,
    "strict_ids": STRICT_IDS,
    "thinking_only": THINKING_ONLY,
    "joined_arguments": JOINED_ARGUMENTS,
    "documents": DOCUMENTS,
}
