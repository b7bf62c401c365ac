"""What each field of `POST /v1/responses` does here: one table for docs, checks and tests."""

from stonechat_server.responses_api.request import ResponsesRequest
from stonechat_server.schema.fields import FIELDS as CHAT_FIELDS
from stonechat_server.schema.fields import FieldNote, honoured, no_effect, rejected

_OWN = {
    "input": honoured(
        "a text, or items (none are needed with `previous_response_id`): messages, calls of "
        "functions and custom tools, their results, and reasoning; an `item_reference` to an item "
        "of a stored answer (their items together within `--max-body-size`); images "
        "(`input_image`), audio (`input_audio`), and each of them, a video or a document as "
        "`input_file`; "
        "other files: 400; calls that another service ran itself are left out, and named in "
        "`X-Ignored-Params`"
    ),
    "instructions": honoured("a system message before the conversation; of this request only"),
    "max_output_tokens": honoured(
        "default and maximum: what fits into the context; reasoning counts; -1: no limit"
    ),
    "tools": honoured(
        "at most 128 functions and custom tools, also in a `namespace`; hosted tools: 400, except "
        "Codex's searches beside other tools (`web_search` with `external_web_access`, "
        '`tool_search` with `execution: "client"`), which are left out and named in '
        "`X-Ignored-Params`"
    ),
    "tool_choice": honoured("`none`, `auto`, `required`, one tool, or `allowed_tools`"),
    "max_tool_calls": no_effect("it limits the calls of hosted tools"),
    "text": honoured(
        "`format`: `text`, `json_object` (with a `schema` if there is one), `json_schema`; always "
        "enforced; `verbosity` has no effect"
    ),
    "reasoning": honoured(
        "`effort` is `reasoning_effort`; with `summary`, the whole reasoning comes as the "
        "summary, else as content; `max_tokens` and `enabled` as in chat completions; `context` "
        "and `mode` have no effect"
    ),
    "include": honoured(
        "`reasoning.encrypted_content` (encoded, not encrypted) and "
        "`message.output_text.logprobs`; other values have no effect"
    ),
    "top_logprobs": honoured(
        "0 to 20; 1 and more also ask for log-probabilities, of which streams repeat all at the "
        "end: tokens times alternatives are bounded by `--max-completion-total`"
    ),
    "truncation": honoured(
        "`disabled` (default): 400 if the input is too long; `auto`: the oldest messages are left "
        "out, with the results of their calls, until a quarter of the context is free for the "
        "answer (or `max_output_tokens`, if that is less), so that a user message comes first if "
        "possible; system messages stay"
    ),
    "stream_options": honoured(
        "`include_obfuscation` (off by default); only with `stream: true`; `include_usage` has no "
        "effect: the last event always has the usage"
    ),
    "metadata": honoured("returned in the answer; at most 16 pairs"),
    "store": honoured(
        "default true, except in batches: the answer and its input are kept in memory, within "
        "`--kept-items-size`, `--kept-responses` and `--kept-responses-age`, until the server "
        "stops; the answer has false if there was no room"
    ),
    "previous_response_id": honoured(
        "a stored response of the same key: its conversation comes before `input`, without its "
        "`instructions`; any other id: 400 `previous_response_not_found`"
    ),
    "conversation": rejected("no conversations are stored: use `previous_response_id`"),
    "prompt": rejected("no prompts are stored: send `instructions` and `input`"),
    "background": rejected("the answer comes in this request", False),
    "context_management": rejected("", []),
    "moderation": rejected(""),
    "client_metadata": no_effect("Codex's notes about its session"),
    "access_programs": no_effect("of OpenAI's own models"),
    "background_options": no_effect("of `background`"),
    "image": no_effect("images are sent to the model as they come"),
    "n": rejected("there is one answer", 1),
    "prompt_logprobs": rejected("use chat completions"),
    "return_token_ids": rejected("use chat completions", False),
    "return_tokens_as_token_ids": rejected("use chat completions", False),
    "response_format": rejected("use `text.format`"),
}

FIELDS: dict[str, FieldNote] = {
    **_OWN,
    **{name: CHAT_FIELDS[name] for name in ResponsesRequest.model_fields if name not in _OWN},
}
"""Fields beside `_OWN` do what they do in chat completions."""
