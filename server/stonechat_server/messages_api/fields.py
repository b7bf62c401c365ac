"""What each field of a request to `/v1/messages` does: for the docs, the tests and the checks."""

from stonechat_server.schema.fields import FIELDS as CHAT_FIELDS
from stonechat_server.schema.fields import FieldNote, honoured, no_effect, rejected

KEEP_ALL = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
"""Asks for no change of the conversation."""
EXTENSIONS = (
    *("min_p", "seed", "frequency_penalty", "presence_penalty", "repetition_penalty"),
    *("logit_bias", "min_tokens", "stop_token_ids", "ignore_eos", "skip_special_tokens"),
    *("include_stop_str_in_output", "structured_outputs", "reasoning_effort", "thinking_budget"),
    *("prediction", "documents", "chat_template", "chat_template_kwargs", "priority"),
    "cache_salt",
)
"""Fields of chat completions that have the same name and meaning here."""

FIELDS: dict[str, FieldNote] = {
    "model": honoured(
        "a name from `/v1/models`, by default the first that the key may use; "
        "any other name is a 404 `not_found_error`"
    ),
    "messages": honoured(
        "roles `user`, `assistant`, `system`; blocks `text`, `tool_use`, `tool_result`, "
        "`thinking`, `redacted_thinking` (holds nothing that a model can read), `document`, "
        "`search_result`, `image`; the blocks of Anthropic's own tools: 400; "
        "a last `assistant` message with text is continued"
    ),
    "system": honoured("text, or text blocks, which are joined with line breaks"),
    "max_tokens": honoured(
        "required; 0: the prompt is computed and cached, nothing is generated; -1: no limit"
    ),
    "temperature": honoured(
        "0 to 2, default the model's or 1; 0 always chooses the most likely token"
    ),
    "top_p": honoured("0 to 1, default the model's or 1"),
    "top_k": honoured("0 or -1: off; default the model's or 0"),
    "stop_sequences": honoured(
        "up to 64; left out of the output; do not apply within thinking and tool calls"
    ),
    "stream": honoured("server-sent events with Anthropic's names"),
    "tools": honoured(
        "tools with an `input_schema`, at most 128; Anthropic's own (`web_search_…`, `bash_…`, "
        "`text_editor_…`, `computer_…`, `memory_…`): 400"
    ),
    "tool_choice": honoured("`auto`, `any`, `tool`, `none`; `disable_parallel_tool_use`"),
    "thinking": honoured(
        "`enabled`, `disabled`, `adaptive` or `between_tools` (as the template does by itself); "
        "`budget_tokens`, if "
        "the model has reasoning; `display: omitted` moves the text into the signature"
    ),
    "output_config": honoured(
        "`effort` reaches the chat template, and does not switch thinking on or off; "
        "`format` (`json_schema`) is always enforced"
    ),
    "output_format": honoured("older name of `output_config.format`"),
    "metadata": honoured("`user_id` is the user for whom the usage ledger counts the request"),
    "service_tier": honoured("the answer has `standard`, the only tier"),
    "cache_control": honoured(
        "every prompt's prefix is looked up in the cache; `usage` has what was read and written"
    ),
    "context_management": no_effect("messages are never edited", {}, {"edits": []}, KEEP_ALL),
    "diagnostics": no_effect(""),
    "fallbacks": no_effect("there is no other model", []),
    "fallback_credit_token": no_effect(""),
    "billing_policy": no_effect(""),
    "inference_geo": no_effect(""),
    "speed": no_effect("", "standard"),
    "user_profile_id": no_effect(""),
    "workspace_id": no_effect(""),
    "betas": no_effect("as the header `anthropic-beta`", []),
    "container": rejected("nothing is run here"),
    "mcp_servers": rejected("the client must call MCP servers itself", []),
    "compaction": rejected("messages are never edited"),
    "thread": rejected("nothing is stored here"),
    "n": rejected("an answer is one message", 1),
    "logprobs": rejected("an answer of this shape cannot show them", False),
    "top_logprobs": rejected("an answer of this shape cannot show them"),
    "response_format": rejected("use `output_config.format`"),
    **{name: CHAT_FIELDS[name] for name in EXTENSIONS},
}
