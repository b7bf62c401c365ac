"""What each request field does here: one table that the docs, the tests and the checks share."""

from dataclasses import dataclass
from enum import StrEnum

MAX_PROMPT_LOGPROBS = 524_288
"""Log-probabilities of prompts, those of alternatives included, that one answer may have."""


class FieldStatus(StrEnum):
    """How a field is treated."""

    HONOURED = "honoured"
    REJECTED = "rejected"
    """Any value that is not neutral is a 400 with code `unsupported_parameter`."""
    NO_EFFECT = "no effect"
    """Checked and accepted, but the answer does not depend on it; `X-Ignored-Params` names it."""


@dataclass(frozen=True, slots=True)
class FieldNote:
    """A row of the table. `neutral` are the values that request nothing; null always is one."""

    status: FieldStatus
    note: str
    neutral: tuple[object, ...] = ()
    alias_of: str = ""
    """The field whose other name this is; empty for a field of its own."""


def honoured(note: str) -> FieldNote:
    """A row for a field that does what it says."""
    return FieldNote(FieldStatus.HONOURED, note)


def alias(name: str, users: str) -> FieldNote:
    """A row for another name of the field `name`."""
    return FieldNote(FieldStatus.HONOURED, f"{users}'s name of `{name}`", alias_of=name)


def rejected(note: str, *neutral: object) -> FieldNote:
    """A row for a field that is refused, unless its value is neutral."""
    return FieldNote(FieldStatus.REJECTED, note, neutral)


def no_effect(note: str, *neutral: object) -> FieldNote:
    """A row for a field that changes nothing."""
    return FieldNote(FieldStatus.NO_EFFECT, note, neutral)


FIELDS: dict[str, FieldNote] = {
    "model": honoured(
        "a name from `/v1/models`, by default the first that the key may use; "
        "any other name is a 404 `model_not_found`"
    ),
    "messages": honoured(
        "all roles; text as a string or as parts; images (`image_url`), audio (`input_audio`, "
        "`audio_url`), videos (`video_url`), documents and each of these as `file` (`file_id`, "
        "`file_data` or `file_url`), in user messages and results of tools; other files: 400"
    ),
    "temperature": honoured(
        "0 to 2, default the model's or 1; 0 always chooses the most likely token"
    ),
    "top_p": honoured("0 to 1, default the model's or 1; computed exactly"),
    "n": honoured("1 to 128, default 1"),
    "max_completion_tokens": honoured(
        "default and maximum: what fits into the context; -1: no limit"
    ),
    "max_tokens": honoured("older name; `max_completion_tokens` applies if both are given"),
    "stop": honoured(
        "a string or up to 64 strings; left out of the output; does not apply within reasoning and "
        "tool calls"
    ),
    "frequency_penalty": honoured("-2 to 2, over generated tokens"),
    "presence_penalty": honoured("-2 to 2, over generated tokens"),
    "logit_bias": honoured("token id to -100 … 100"),
    "logprobs": honoured("of the model's own distribution, before temperature and penalties"),
    "top_logprobs": honoured("0 to 20; needs `logprobs: true`"),
    "seed": honoured("any signed 64-bit integer; equal seeds draw equally, alone or in any batch"),
    "stream": honoured("server-sent events"),
    "stream_options": honoured(
        "`include_usage`, `include_obfuscation` (off by default), `continuous_usage_stats`; "
        "only with `stream: true`"
    ),
    "tools": honoured("functions and custom tools, at most 128; see `tools.md`"),
    "tool_choice": honoured("`none`, `auto`, `required`, one tool, or `allowed_tools`"),
    "parallel_tool_calls": honoured("default true; false: at most one call"),
    "functions": honoured(
        "older form of `tools`, 1 to 128; the answer has at most one call, in `function_call`"
    ),
    "function_call": honoured("older form of `tool_choice`: `none`, `auto`, or `{name}`"),
    "response_format": honoured(
        "`text`, `json_object` (with a `schema` if there is one), `json_schema`; always enforced"
    ),
    "structured_outputs": honoured(
        "extension; one of `json`, `regex`, `choice`, `grammar` (Lark), `json_object`"
    ),
    "reasoning_effort": honoured(
        "reaches the chat template; `none` switches thinking off if the template can"
    ),
    "thinking_budget": honoured(
        "extension; maximum number of reasoning tokens; 400 if the model has no reasoning markers"
    ),
    "verbosity": no_effect("", "medium"),
    "prediction": honoured(
        "text or text parts that the answer may repeat; makes the answer faster, does not change it"
    ),
    "modalities": rejected('`["text"]` is accepted', ["text"], []),
    "audio": rejected(""),
    "web_search_options": rejected(""),
    "moderation": rejected(""),
    "metadata": honoured("returned in the answer if it is not streamed; at most 16 pairs"),
    "store": no_effect("nothing is stored", False),
    "service_tier": honoured("the answer has `default`, the only tier"),
    "user": honoured("the user for whom the usage ledger counts the request"),
    "safety_identifier": honoured("like `user`, and takes precedence over it"),
    "prompt_cache_key": no_effect("every prompt's prefix is looked up in the cache"),
    "prompt_cache_options": no_effect("prefixes are cached until their memory is needed"),
    "prompt_cache_retention": no_effect("prefixes are cached until their memory is needed"),
    "top_k": honoured("extension; 0 or -1: off; default the model's or 0"),
    "min_p": honoured("extension; 0 to 1, default the model's or 0"),
    "repetition_penalty": honoured(
        "extension; 0.01 to 10, default the model's or 1; prompt and output"
    ),
    "min_tokens": honoured("extension; the answer does not stop before that many tokens"),
    "stop_token_ids": honoured("extension; up to 64 ids; a token with such an id ends the answer"),
    "ignore_eos": honoured("extension; generation continues past EOS"),
    "skip_special_tokens": honoured("extension; default true"),
    "include_stop_str_in_output": honoured("extension; default false"),
    "chat_template": honoured(
        "extension; a Jinja template in place of the model's, "
        "if the server allows it (`--allow-request-templates`), else 400"
    ),
    "chat_template_kwargs": honoured("extension; variables for the chat template"),
    "documents": honoured("extension; reach the chat template as `documents`"),
    "add_generation_prompt": honoured("extension; default true"),
    "continue_final_message": honoured("extension; continue where the last message ends"),
    "priority": honoured(
        "extension; lower values run first; default 0, negative values count as 0"
    ),
    "cache_salt": honoured("extension; only requests with the same salt share cached prefixes"),
    "prompt_logprobs": honoured(
        "extension; 0 to 20; log-probabilities of the prompt's tokens, and of that many "
        f"alternatives each; at most {MAX_PROMPT_LOGPROBS:,} in all (400 `request_too_large`); "
        "nothing of the prompt is read from the cache"
    ),
    "return_token_ids": honoured(
        "extension; the answer has the ids of its tokens, and `prompt_token_ids`"
    ),
    "return_tokens_as_token_ids": honoured(
        "extension; tokens in log-probabilities read `token_id:123`"
    ),
    "repeat_penalty": alias("repetition_penalty", "llama.cpp"),
    "n_predict": alias("max_tokens", "llama.cpp"),
    "num_predict": alias("max_tokens", "Ollama"),
    "max_new_tokens": alias("max_tokens", "SGLang"),
    "max_output_tokens": alias("max_tokens", "OpenAI's Responses API"),
    "min_new_tokens": alias("min_tokens", "SGLang"),
    "stop_sequences": alias("stop", "Anthropic"),
    "random_seed": alias("seed", "Mistral"),
    "thinking_token_budget": alias("thinking_budget", "vLLM"),
    "thinking_budget_tokens": alias("thinking_budget", "llama.cpp"),
    "reasoning": honoured(
        "OpenRouter's; `effort` is `reasoning_effort`, `max_tokens` is `thinking_budget`, "
        "`enabled` is `enable_thinking`"
    ),
    "thinking": honoured(
        "Anthropic's; `type` `enabled` or `disabled` is `enable_thinking`, "
        "`budget_tokens` is `thinking_budget`"
    ),
    "enable_thinking": honoured(
        "Qwen's; false is `reasoning_effort: none`, true sets the template's variables"
    ),
    "think": honoured("Ollama's; `enable_thinking`, or a `reasoning_effort`"),
    "json_schema": alias("structured_outputs.json", "llama.cpp"),
    "guided_json": alias("structured_outputs.json", "vLLM"),
    "regex": alias("structured_outputs.regex", "SGLang"),
    "guided_regex": alias("structured_outputs.regex", "vLLM"),
    "guided_choice": alias("structured_outputs.choice", "vLLM"),
    "grammar": alias("structured_outputs.grammar", "llama.cpp"),
    "ebnf": alias("structured_outputs.grammar", "SGLang"),
    "guided_grammar": alias("structured_outputs.grammar", "vLLM"),
    "format": honoured("Ollama's; `json` for any JSON object, or a JSON schema"),
}

FORM_PREFIX = "structured_outputs."
FORM_FIELDS = frozenset({"format"}) | {
    name for name, note in FIELDS.items() if note.alias_of.startswith(FORM_PREFIX)
}
"""Fields outside `response_format` and `structured_outputs` that set the form of the answer."""
OTHER_NAMES = frozenset({"reasoning", "thinking", "enable_thinking", "think"}) | {
    name for name, note in FIELDS.items() if note.alias_of and name not in FORM_FIELDS
}
"""Fields that stand for others. `request/other_names.py` translates them."""
UNSUPPORTED_FORMS = (
    *("structural_tag", "output_format", "output_schema", "response_schema"),
    *("response_json_schema", "text.format", "output_config.format"),
)
"""Unknown names that ask for a form of the answer. They are refused, as text would be wrong."""
