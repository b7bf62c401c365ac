"""Short templates of our own for the families with tags around arguments."""

from tests.server.parsers.families import Family, deepseek


def tags(before: str, key_end: str, after: str, value: str) -> str:
    """Template code that writes arguments between tags."""
    return (
        "{%- for k, v in a|items %}"
        f"{{{{ '{before}' ~ k ~ '{key_end}' ~ ({value}) ~ '{after}' }}}}"
        "{% endfor %}"
    )


JSON_OR_TEXT = "v if v is string else v | tojson"
PYTHON_OR_TEXT = "v | tojson if v is mapping or (v is sequence and v is not string) else v | string"
KIND = (
    "'string' if v is string else 'null' if v is none else 'boolean' if v is boolean"
    " else 'number' if v is number else 'object' if v is mapping else 'array'"
)
"""Template code for the name of a value's type."""
ELEMENTS = (
    "{%- set M = ']<]minimax[>[' %}{%- macro xml(v) %}"
    "{%- if v is mapping %}{%- for k, x in v|items %}"
    "{{ M ~ '<' ~ k ~ '>' ~ xml(x) ~ M ~ '</' ~ k ~ '>' }}{% endfor %}"
    "{%- elif v is string %}{{ v }}{%- elif v is sequence %}"
    "{%- for x in v %}{{ M ~ '<item>' ~ xml(x) ~ M ~ '</item>' }}{% endfor %}"
    "{%- else %}{{ v | tojson }}{% endif %}{%- endmacro %}"
)
"""A macro that writes values as nested elements."""
BARE = (
    "{%- macro bare(v) %}{%- if v is mapping %}{{ '{' }}{%- for k, x in v|items %}"
    "{{ k ~ ':' ~ bare(x) ~ ('' if loop.last else ',') }}{% endfor %}{{ '}' }}"
    "{%- elif v is string %}{{ 'QUOTE' ~ v ~ 'QUOTE' }}{%- elif v is sequence %}{{ '[' }}"
    "{%- for x in v %}{{ bare(x) ~ ('' if loop.last else ',') }}{% endfor %}{{ ']' }}"
    "{%- else %}{{ v | tojson }}{% endif %}{%- endmacro %}"
)
"""A macro that writes values with bare keys."""


def bar_elements(name: str, mark: str, section: str) -> Family:
    """A family with elements for calls and arguments, whose tags begin with `mark`."""
    return Family(
        name,
        f"{{{{ '\\n<{mark}invoke name=\"' ~ c.name ~ '\">\\n' }}}}"
        + tags(
            f'<{mark}parameter name="',
            "\" string=\"' ~ ('true' if v is string else 'false') ~ '\">",
            f"</{mark}parameter>\\n",
            JSON_OR_TEXT,
        )
        + f"{{{{ '</{mark}invoke>' }}}}",
        first=f"\\n\\n<{mark}{section}>",
        last=f"\\n</{mark}{section}>",
    )


def argument_pairs(name: str, begin: str, end: str, after_name: str) -> Family:
    """A family with an element for each key and each value. All tags end with `end`."""
    return Family(
        name,
        f"{{{{ '<{begin}tool_call{end}>' ~ c.name ~ '{after_name}' }}}}"
        + tags(
            f"<{begin}arg_key{end}>",
            f"</{begin}arg_key{end}>\\n<{begin}arg_value{end}>",
            f"</{begin}arg_value{end}>\\n",
            JSON_OR_TEXT,
        )
        + f"{{{{ '</{begin}tool_call{end}>\\n' }}}}",
        first=f"<{begin}tool_calls{end}>\\n",
        last=f"</{begin}tool_calls{end}>",
    )


TAG_FAMILIES = [
    Family(
        "deepseek_v32",
        "{{ '\\n<\uff5cDSML\uff5cinvoke name=\"' ~ c.name ~ '\">\\n' }}"
        + tags(
            '<\uff5cDSML\uff5cparameter name="',
            "\" string=\"' ~ ('true' if v is string else 'false') ~ '\">",
            "</\uff5cDSML\uff5cparameter>\\n",
            JSON_OR_TEXT,
        )
        + "{{ '</\uff5cDSML\uff5cinvoke>' }}",
        first="\\n\\n<\uff5cDSML\uff5cfunction_calls>",
        last="\\n</\uff5cDSML\uff5cfunction_calls>",
        user=deepseek("User") + "{}",
        prompt=deepseek("Assistant") + "</think>",
        end=deepseek("end of sentence"),
    ),
    Family(
        "qwen_coder",
        "{{ '\\n<tool_call>\\n<function=' ~ c.name ~ '>\\n' }}"
        + tags("<parameter=", ">\\n", "\\n</parameter>\\n", PYTHON_OR_TEXT)
        + "{{ '</function>\\n</tool_call>' }}",
    ),
    Family(
        "seed",
        "{{ '\\n<seed:tool_call>\\n<function=' ~ c.name ~ '>\\n' }}"
        + tags("<parameter=", ">", "</parameter>\\n\\n", "v | string")
        + "{{ '</function>\\n</seed:tool_call>\\n' }}",
        user="<seed:bos>user\\n{}<seed:eos>\\n",
        prompt="<seed:bos>assistant\\n",
        end="<seed:eos>",
        extra="</seed:think>",
    ),
    Family(
        "minimax",
        "{{ '<invoke name=\"' ~ c.name ~ '\">\\n' }}"
        + tags('<parameter name="', '">', "</parameter>\\n", JSON_OR_TEXT)
        + "{{ '</invoke>\\n' }}",
        first="\\n<minimax:tool_call>\\n",
        last="</minimax:tool_call>",
        user="]~b]user\\n{}[e~[\\n",
        prompt="]~b]ai\\n",
        end="[e~[",
        extra="</think>",
    ),
    Family(
        "glm",
        "{{ '\\n<tool_call>' ~ c.name ~ '\\n' }}"
        + tags("<arg_key>", "</arg_key>\\n<arg_value>", "</arg_value>\\n", JSON_OR_TEXT)
        + "{{ '</tool_call>' }}",
        user="<|user|>\\n{}",
        prompt="<|assistant|>",
        content="\\n<think></think>\\n{}",
        end="<|user|>",
        specials=("<|user|>", "<|assistant|>"),
    ),
    bar_elements("deepseek_v4", "\uff5cDSML\uff5c", "tool_calls"),
    bar_elements("deepseek_v41", "\uff5cDSML\uff5c ", "calls"),
    bar_elements("gigachat35", "\uff5cGCML\uff5c", "tool_calls"),
    Family(
        "minicpm5",
        "{{ '<function name=\"' ~ c.name ~ '\">' }}"
        + tags('<param name="', '">', "</param>", JSON_OR_TEXT)
        + "{{ '</function>' }}",
        between="\\n",
    ),
    Family(
        "dots",
        "{{ '<invoke name=\"' ~ c.name ~ '\">\\n' }}"
        + tags('<parameter name="', '">', "</parameter>\\n", JSON_OR_TEXT)
        + "{{ '</invoke>\\n' }}",
        first="<dots_function_call>\\n",
        last="</dots_function_call>",
    ),
    Family(
        "step3",
        "{{ '<\uff5ctool_call_begin\uff5c>function<\uff5ctool_sep\uff5c><steptml:invoke name=\"'"
        " ~ c.name ~ '\">' }}"
        + tags('<steptml:parameter name="', '">', "</steptml:parameter>", JSON_OR_TEXT)
        + "{{ '</steptml:invoke><\uff5ctool_call_end\uff5c>' }}",
        first="<\uff5ctool_calls_begin\uff5c>",
        last="<\uff5ctool_calls_end\uff5c>",
        specials=("<\uff5ctool_calls_begin\uff5c>", "<\uff5ctool_call_end\uff5c>"),
    ),
    argument_pairs("hunyuan3", "", "", "<tool_sep>\\n"),
    argument_pairs("hunyuan3_open", "", ":opensource", "<tool_sep:opensource>\\n"),
    argument_pairs("hunyuan4", "", "", ""),
    argument_pairs("hunyuan4_open", "", ":opensource", ""),
    argument_pairs("k2_horizon", "ifm|", "", "\\n"),
    Family(
        "iquest",
        "{{ '\\n<iquestcoder_tool_call>' ~ c.name }}"
        + tags("<arg_key>", "</arg_key><arg_value>", "</arg_value>", JSON_OR_TEXT)
        + "{{ '</iquestcoder_tool_call>' }}",
        specials=("<iquestcoder_tool_call>", "</iquestcoder_tool_call>"),
    ),
    Family(
        "solar2",
        "{{ '\\n<|tool_call:start|>' ~ c.name ~ '\\n' }}"
        + tags("<|tool_arg:start|>", "<|tool_arg:value|>", "<|tool_arg:end|>\\n", JSON_OR_TEXT)
        + "{{ '<|tool_call:end|>' }}",
        specials=("<|tool_call:start|>", "<|tool_arg:value|>", "<|tool_call:end|>"),
    ),
    Family(
        "kimi_k3",
        "{{ '<|open|>call tool=\"' ~ c.name ~ '\" index=\"' ~ loop.index ~ '\"<|sep|>' }}"
        + tags(
            '<|open|>argument key="',
            '" type="\' ~ (' + KIND + ") ~ '\"<|sep|>",
            "<|close|>argument<|sep|>",
            JSON_OR_TEXT,
        )
        + "{{ '<|close|>call<|sep|>' }}",
        first="<|open|>tools<|sep|>",
        last="<|close|>tools<|sep|>",
        specials=("<|open|>", "<|close|>", "<|sep|>"),
    ),
    Family(
        "minimax_m3",
        ELEMENTS + "{{ M ~ '<invoke name=\"' ~ c.name ~ '\">' ~ xml(a) ~ M ~ '</invoke>\\n' }}",
        first="]<]minimax[>[<tool_call>\\n",
        last="]<]minimax[>[</tool_call>",
        specials=("]<]minimax[>[",),
    ),
    Family(
        "gemma4",
        BARE.replace("QUOTE", '<|"|>')
        + "{{ '<|tool_call>call:' ~ c.name ~ bare(a) ~ '<tool_call|>' }}",
        specials=("<|tool_call>", "<tool_call|>", '<|"|>'),
    ),
    Family(
        "function_gemma",
        BARE.replace("QUOTE", "<escape>")
        + "{{ '<start_function_call>call:' ~ c.name ~ bare(a) ~ '<end_function_call>' }}",
        specials=("<start_function_call>", "<end_function_call>", "<escape>"),
    ),
    Family(
        "muse",
        "{{ ' to=' ~ c.name ~ '<|message|><atem:function_calls>\\n<atem:invoke name=\"' ~ c.name"
        " ~ '\">\\n' }}"
        + tags('<atem:parameter name="', '">', "</atem:parameter>\\n", JSON_OR_TEXT)
        + "{{ '</atem:invoke>\\n</atem:function_calls>' }}",
        between="<|eom|><|start|>assistant",
        content=" to=user<|message|>{}<|eom|><|start|>assistant",
        user="<|start|>user<|message|>{}<|eot|>",
        prompt="<|start|>assistant",
        end="<|eot|>",
        extra=" to=self<|message|>",
        specials=("<|message|>", "<|eom|>", "<|start|>", "<|eot|>"),
    ),
]
