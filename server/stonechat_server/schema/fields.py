"""What each field of a request does here: the one table that docs, tests and checks share."""

from dataclasses import dataclass
from enum import StrEnum


class FieldStatus(StrEnum):
    """How a field is treated."""

    HONOURED = "honoured"
    REJECTED = "rejected"
    """A value that asks for something is a 400 with code `unsupported_parameter`."""
    NO_EFFECT = "no effect"
    """Accepted and checked, but the answer is the same without it; named in `X-Ignored-Params`."""


@dataclass(frozen=True, slots=True)
class FieldNote:
    """A row of the table. `neutral` are values that ask for nothing (null never does)."""

    status: FieldStatus
    note: str
    neutral: tuple[object, ...] = ()


def _honoured(note: str) -> FieldNote:
    return FieldNote(FieldStatus.HONOURED, note)


def _rejected(note: str, *neutral: object) -> FieldNote:
    return FieldNote(FieldStatus.REJECTED, note, neutral)


def _no_effect(note: str, *neutral: object) -> FieldNote:
    return FieldNote(FieldStatus.NO_EFFECT, note, neutral)


FIELDS: dict[str, FieldNote] = {
    "model": _honoured("a name from `/v1/models`; another is a 404 `model_not_found`"),
    "messages": _honoured("all roles; text as a string or as parts; images, audio, files: 400"),
    "temperature": _honoured("0 to 2, default 1; 0 always takes the most likely token"),
    "top_p": _honoured("0 to 1, default 1, exact"),
    "n": _honoured("1 to 128, default 1"),
    "max_completion_tokens": _honoured("default, and at most: what fits the context"),
    "max_tokens": _honoured("older name; `max_completion_tokens` wins when both are given"),
    "stop": _honoured(
        "a string or up to 64; never part of the output; does not count within reasoning and calls "
        "of tools"
    ),
    "frequency_penalty": _honoured("-2 to 2, over generated tokens"),
    "presence_penalty": _honoured("-2 to 2, over generated tokens"),
    "logit_bias": _honoured("token id to -100 … 100"),
    "logprobs": _honoured("of the model's own distribution, before temperature and penalties"),
    "top_logprobs": _honoured("0 to 20; needs `logprobs: true`"),
    "seed": _honoured("any 64-bit integer; the same draws alone or in any batch"),
    "stream": _honoured("server-sent events"),
    "stream_options": _honoured(
        "`include_usage`, `include_obfuscation` (off by default), `continuous_usage_stats`; "
        "only with `stream: true`"
    ),
    "tools": _honoured("functions and custom tools, at most 128; see `tools.md`"),
    "tool_choice": _honoured("`none`, `auto`, `required`, one tool, or `allowed_tools`"),
    "parallel_tool_calls": _honoured("default true; false: at most one call"),
    "functions": _honoured(
        "the form before `tools`, 1 to 128; answered with `function_call`, one call at most"
    ),
    "function_call": _honoured("the form before `tool_choice`: `none`, `auto`, or `{name}`"),
    "response_format": _honoured("`text`, `json_object`, `json_schema`; always enforced"),
    "structured_outputs": _honoured("extension; one of `json`, `regex`, `choice`, `grammar`"),
    "reasoning_effort": _honoured(
        "reaches the chat template; `none` switches thinking off where the template can"
    ),
    "thinking_budget": _honoured(
        "extension; at most so many reasoning tokens; 400 for a model without reasoning marks"
    ),
    "verbosity": _no_effect("", "medium"),
    "prediction": _honoured(
        "text or text parts that the answer may repeat: it comes quicker, and is the same"
    ),
    "modalities": _rejected('`["text"]` is accepted', ["text"], []),
    "audio": _rejected(""),
    "web_search_options": _rejected(""),
    "moderation": _rejected(""),
    "metadata": _honoured("echoed in the plain answer; at most 16 pairs"),
    "store": _no_effect("nothing is stored", False),
    "service_tier": _honoured("answered with `default`, the only tier"),
    "user": _honoured("whom the usage ledger counts the request for"),
    "safety_identifier": _honoured("as `user`, which it goes before"),
    "prompt_cache_key": _no_effect("every prompt's prefix is looked up in the cache"),
    "prompt_cache_options": _no_effect("prefixes are cached until their memory is needed"),
    "prompt_cache_retention": _no_effect("prefixes are cached until their memory is needed"),
    "top_k": _honoured("extension; 0 or -1: off"),
    "min_p": _honoured("extension; 0 to 1, default 0"),
    "repetition_penalty": _honoured("extension; above 0, to 10, default 1; prompt and output"),
    "min_tokens": _honoured("extension; no end before that many tokens"),
    "stop_token_ids": _honoured("extension; up to 64"),
    "ignore_eos": _honoured("extension; generate past the end token"),
    "skip_special_tokens": _honoured("extension; default true"),
    "include_stop_str_in_output": _honoured("extension; default false"),
    "chat_template": _honoured(
        "extension; a Jinja template in place of the model's, "
        "if the server allows it (`--allow-request-templates`), else 400"
    ),
    "chat_template_kwargs": _honoured("extension; variables for the chat template"),
    "documents": _honoured("extension; reach the chat template as `documents`"),
    "add_generation_prompt": _honoured("extension; default true"),
    "continue_final_message": _honoured("extension; go on where the last message ends"),
    "priority": _honoured("extension; lower runs first, default and least 0"),
    "cache_salt": _honoured("extension; cached prefixes are shared only within one salt"),
}
