"""What the fields of the endpoints for tokens and prompts do."""

from stonechat_server.schema.fields import FIELDS, FieldNote, alias, honoured, no_effect
from stonechat_server.tokens_api.types import MAX_TOKENS

SAMPLING_FIELDS = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "n", "seed", "logit_bias"),
        *("frequency_penalty", "presence_penalty", "repetition_penalty", "prediction"),
        *("max_completion_tokens", "max_tokens", "min_tokens", "stop", "stop_token_ids"),
        *("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"),
        *("logprobs", "top_logprobs", "prompt_logprobs", "stream", "stream_options"),
        *("return_token_ids", "return_tokens_as_token_ids", "metadata", "service_tier"),
        *("user", "safety_identifier", "priority", "cache_salt"),
    }
)
"""The fields of a chat request on which its prompt does not depend."""
NO_EFFECT = "the prompt does not depend on it"
BOUND = f"at most {MAX_TOKENS} tokens, or as many as the context has if it is longer"
SWITCHED_OFF = {"stream": (False,), "logprobs": (False,)}
"""Values that ask for nothing."""

_SHARED = {
    "return_token_strs": honoured(
        f"also return `token_strs`, as the vocabulary spells them; {BOUND}"
    ),
    "with_pieces": honoured(
        "llama.cpp's; `tokens` are objects of `id` and `piece`, a text or a list of bytes; " + BOUND
    ),
}
TOKENIZE_TEXT_FIELDS: dict[str, FieldNote] = {
    "model": FIELDS["model"],
    "prompt": honoured("the text; or `content`, or `messages`"),
    "add_special_tokens": honoured(
        "add what the tokenizer puts around a text (BOS); default true with `prompt`, else false"
    ),
    **_SHARED,
    "content": alias("prompt", "llama.cpp"),
    "add_special": alias("add_special_tokens", "llama.cpp"),
    "parse_special": honoured(
        "llama.cpp's; default true; false: special tokens in the text are ordinary text"
    ),
}
TOKENIZE_CHAT_FIELDS: dict[str, FieldNote] = {
    **{
        name: no_effect(NO_EFFECT, *SWITCHED_OFF.get(name, ()))
        if {name, note.alias_of} & SAMPLING_FIELDS
        else note
        for name, note in FIELDS.items()
    },
    "add_special_tokens": honoured(
        "add what the tokenizer puts around a text (BOS), beside what the chat template writes; "
        "default false"
    ),
    **_SHARED,
}
DETOKENIZE_FIELDS: dict[str, FieldNote] = {
    "model": FIELDS["model"],
    "tokens": honoured(
        f"ids within the vocabulary; special tokens become their texts; {BOUND}, and at most "
        "`--max-body-size` of text"
    ),
}
