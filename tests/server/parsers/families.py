"""Short templates of our own that write calls as the templates of the families do.

The families with tags around arguments are in `tag_families`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Parts of a template. `call` writes the call `c` with arguments `a`.

    `first`, `between` and `last` stand before, between and after the calls.
    """

    name: str
    call: str
    first: str = ""
    between: str = ""
    last: str = ""
    user: str = "<|im_start|>user\\n{}<|im_end|>\\n"
    prompt: str = "<|im_start|>assistant\\n"
    content: str = "{}"
    end: str = "<|im_end|>"
    extra: str = ""
    specials: tuple[str, ...] = ()
    is_single: bool = False
    arguments_end: str = ""

    @property
    def template(self) -> str:
        user = self.user.replace("{}", "' ~ m.content ~ '")
        content = self.content.replace("{}", "' ~ m.content ~ '")
        return (
            "{%- if tools %}{{ 'T ' ~ (tools | tojson) }}{% endif %}"
            "{%- for m in messages %}"
            f"{{%- if m.role == 'user' %}}{{{{ '{user}' }}}}"
            f"{{%- else %}}{{{{ '{self.prompt}' }}}}"
            f"{{%- if m.content %}}{{{{ '{content}' }}}}{{% endif %}}"
            f"{{%- for t in m.tool_calls %}}{{%- set c = t.function %}}{{%- set a = c.arguments %}}"
            f"{{{{ '{self.first}' if loop.first else '{self.between}' }}}}{self.call}"
            f"{{%- endfor %}}{{{{ '{self.last}{self.end}' }}}}{{% endif %}}"
            "{%- endfor %}"
            f"{{%- if add_generation_prompt %}}{{{{ '{self.prompt}' }}}}{{% endif %}}"
            f"{{# {self.extra} #}}"
        )


BAR, LOW = "\uff5c", "\u2581"


def deepseek(words: str) -> str:
    return f"<{BAR}{words.replace(' ', LOW)}{BAR}>"


CALL_BEGIN, CALL_END, SEP = map(deepseek, ("tool call begin", "tool call end", "tool sep"))
NAMED = "{{ '{\"name\": \"' ~ c.name ~ '\", \"arguments\": ' ~ (a | tojson) ~ '}' }}"
PYTHONIC = (
    "{{ c.name ~ '(' }}{%- for k, v in a|items %}{{ k ~ '=' ~ (v | tojson) }}"
    "{{ '' if loop.last else ', ' }}{% endfor %}{{ ')' }}"
)
JSON_FAMILIES = [
    Family(
        "hermes",
        "{{ '<tool_call>\\n' }}" + NAMED + "{{ '\\n</tool_call>' }}",
        between="\\n",
        content="{}\\n",
    ),
    Family(
        "llama_json",
        "{{ '{\"name\": \"' ~ c.name ~ '\", \"parameters\": ' ~ (a | tojson) ~ '}' }}",
        end="<|eot_id|>",
        extra="<|python_tag|>",
        is_single=True,
    ),
    Family(
        "pythonic",
        PYTHONIC,
        first="[",
        between=", ",
        last="]",
        end="<|eot|>",
        extra="[func_name1(params_name1=params_value1)]",
    ),
    Family(
        "mistral_list",
        "{{ (c | tojson)[:-1] ~ ', \"id\": \"' ~ t.id ~ '\"}' }}",
        first="[TOOL_CALLS] [",
        between=", ",
        last="]",
        end="</s>",
        user="[INST] {}[/INST]",
        prompt="",
        specials=("[TOOL_CALLS]",),
    ),
    Family(
        "mistral",
        "{{ '[TOOL_CALLS]' ~ c.name ~ '[ARGS]' ~ (a | tojson) }}",
        end="</s>",
        user="[INST]{}[/INST]",
        prompt="",
        specials=("[TOOL_CALLS]", "[ARGS]"),
    ),
    Family(
        "deepseek_v3",
        f"{{{{ '{CALL_BEGIN}' ~ t.type ~ '{SEP}' ~ c.name ~ '\\n```json\\n' ~ (c.arguments + '')"
        f" ~ '\\n```{CALL_END}' }}}}",
        first=deepseek("tool calls begin"),
        between="\\n",
        last=deepseek("tool calls end"),
        user=deepseek("User") + "{}",
        prompt=deepseek("Assistant"),
        end=deepseek("end of sentence"),
    ),
    Family(
        "deepseek_v31",
        f"{{{{ '{CALL_BEGIN}' ~ c.name ~ '{SEP}' ~ (c.arguments + '') ~ '{CALL_END}' }}}}",
        first=deepseek("tool calls begin"),
        last=deepseek("tool calls end"),
        user=deepseek("User") + "{}",
        prompt=deepseek("Assistant") + "</think>",
        end=deepseek("end of sentence"),
    ),
    Family(
        "harmony",
        "{{ ' to=functions.' ~ c.name ~ '<|channel|>commentary json<|message|>' ~ (a | tojson) }}",
        content="<|channel|>commentary<|message|>{}<|end|><|start|>assistant",
        user="<|start|>user<|message|>{}<|end|>",
        prompt="<|start|>assistant",
        end="<|call|>",
        specials=(
            "<|channel|>",
            "<|message|>",
            "<|end|>",
            "<|start|>",
            "<|call|>",
            "<|constrain|>",
        ),
        is_single=True,
    ),
    Family(
        "kimi",
        "{{ '<|tool_call_begin|>' ~ t.id ~ '<|tool_call_argument_begin|>' ~ (a | tojson)"
        " ~ '<|tool_call_end|>' }}",
        first="<|tool_calls_section_begin|>",
        last="<|tool_calls_section_end|>",
        user="<|im_user|>user<|im_middle|>{}<|im_end|>",
        prompt="<|im_assistant|>assistant<|im_middle|>",
        specials=("<|tool_call_begin|>", "<|tool_call_end|>", "<|im_middle|>"),
    ),
    Family("nemotron", NAMED, first="<TOOLCALL>[", between=", ", last="]</TOOLCALL>"),
    Family(
        "longcat",
        "{{ '<longcat_tool_call>\\n' }}" + NAMED + "{{ '\\n</longcat_tool_call>' }}",
        between="\\n",
    ),
    Family("granite_20b", "{{ '<function_call> ' }}" + NAMED, between="\\n"),
    Family(
        "internlm2",
        "{{ '<|action_start|><|plugin|>\\n' }}" + NAMED + "{{ '<|action_end|>' }}",
        specials=("<|action_start|>", "<|plugin|>", "<|action_end|>"),
    ),
    Family(
        "functionary",
        "{{ '<function=' ~ c.name ~ '>' ~ (a | tojson) ~ '</function>' }}",
        extra="<|python_tag|>",
    ),
    Family(
        "gigachat",
        "{{ '<|function_call|>' }}" + NAMED,
        is_single=True,
        specials=("<|function_call|>", "<|message_sep|>"),
        end="<|message_sep|>",
    ),
    Family(
        "gigachat3",
        "{{ '<|message_sep|>\\n\\nfunction call<|role_sep|>\\n' }}" + NAMED,
        is_single=True,
        specials=("<|role_sep|>", "<|message_sep|>"),
    ),
    Family(
        "tool_calls",
        NAMED + "{{ '' }}",
        first="<tool_calls>[",
        between=", ",
        last="]</tool_calls>",
    ),
    Family(
        "minimax_m1",
        NAMED + "{{ '\\n' }}",
        first="<tool_calls>\\n",
        last="</tool_calls>",
        extra="<tool_calls>\\n{",
    ),
    Family(
        "functools", NAMED, first=" functools[", between=", ", last="]", content="{}", end="<|end|>"
    ),
    Family("xlam", NAMED, first="[", between=", ", last="]", extra='[{"name": "tool_call_name"'),
    Family(
        "hyperclova",
        NAMED,
        first=" -> tool/function_call\\n[",
        between=", ",
        last="]",
        prompt="<|im_start|>assistant",
        content="\\n{}<|im_end|>\\n<|im_start|>assistant",
    ),
    Family(
        "pangu",
        NAMED,
        first="[unused11][",
        between=", ",
        last="][unused12]",
        specials=("[unused11]", "[unused12]"),
    ),
    Family(
        "mcp",
        "{{ '\\n<server_name>tools</server_name>\\n<tool_name>' ~ c.name ~ '</tool_name>"
        "\\n<arguments>\\n' ~ (a | tojson) ~ '\\n</arguments>' }}",
        first="\\n<use_mcp_tool>",
        last="\\n</use_mcp_tool>",
    ),
    Family(
        "granite",
        "{{ {'name': c.name, 'arguments': a} | tojson(indent=4) }}",
        first="<|tool_call|>[\\n    ",
        between=",\\n    ",
        last="\\n]",
        specials=("<|tool_call|>",),
    ),
    Family(
        "phi",
        NAMED,
        first="<|tool_call|>[",
        between=", ",
        last="]<|/tool_call|>",
        extra="<|/tool|>",
        specials=("<|tool_call|>", "<|/tool_call|>"),
    ),
    Family(
        "apertus",
        "{{ '{\"' ~ c.name ~ '\": ' ~ (a | tojson) ~ '}' }}",
        first="<|tools_prefix|>[",
        between=", ",
        last="]<|tools_suffix|>",
        specials=("<|tools_prefix|>", "<|tools_suffix|>"),
    ),
    Family(
        "cohere",
        '{{ \'{"tool_call_id": "\' ~ loop.index0 ~ \'", "tool_name": "\' ~ c.name'
        " ~ '\", \"parameters\": ' ~ (a | tojson) ~ '}' }}",
        first="<|START_ACTION|>[\\n    ",
        between=",\\n    ",
        last="\\n]<|END_ACTION|>",
        specials=("<|START_ACTION|>", "<|END_ACTION|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        extra="<|START_RESPONSE|>",
    ),
    Family(
        "command_r",
        "{{ {'tool_name': c.name, 'parameters': a} | tojson(indent=4) }}",
        first="Action:\\n```json\\n[\\n    ",
        between=",\\n    ",
        last="\\n]```",
        extra="tool_name",
        content="{}\\n",
    ),
    Family(
        "solar",
        "{{ '<|tool_call:begin|>' ~ t.id.replace('.', '-').replace(':', '-') ~ '<|tool_call:name|>'"
        " ~ c.name ~ '<|tool_call:args|>' ~ (a | tojson) ~ '<|tool_call:end|>' }}",
        first="<|tool_calls|>",
        specials=("<|tool_calls|>", "<|tool_call:begin|>", "<|tool_call:name|>", "<|content|>"),
    ),
    Family(
        "lfm2",
        PYTHONIC,
        first="<|tool_call_start|>[",
        between=", ",
        last="]<|tool_call_end|>",
        specials=("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    Family(
        "olmo3",
        PYTHONIC,
        first="<function_calls>",
        between="\\n",
        last="</function_calls>",
    ),
    Family(
        "functionary32",
        "{{ c.name ~ '\\n' ~ (a | tojson) }}",
        between=">>>",
        prompt="<|start_header_id|>assistant<|end_header_id|>\\n\\n>>>",
        content="all\\n{}>>>",
        extra=">>>all\\n",
    ),
]
