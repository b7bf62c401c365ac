"""What each field of a text completion does here: a table for the docs, the tests and the checks.

The fields of chat completions that are not in it are unknown here.
"""

from stonechat_server.schema.fields import (
    FIELDS,
    MAX_PROMPT_LOGPROBS,
    FieldNote,
    honoured,
    rejected,
)
from stonechat_server.schema.sampling_fields import SamplingFields

CHAT_ONLY = "a field of `/v1/chat/completions`"

OWN_FIELDS: dict[str, FieldNote] = {
    "model": FIELDS["model"],
    "prompt": honoured(
        "a text, token ids, or a list of up to 1024 of either; the choices of the first prompt "
        "come first; null or an empty text begins with the tokenizer's BOS token, and is a 400 if "
        "it has none; special tokens in texts are tokens, unless the server runs with "
        "`--special-tokens-as-text`; token ids may be those of special tokens all the same"
    ),
    "suffix": honoured(
        "the text that follows the completion (fill-in-the-middle); 400 if the tokenizer has no "
        "tokens for that, with `echo`, and with token ids as the prompt; an empty text counts as "
        "none; special tokens in the prompt and the suffix are text"
    ),
    "max_tokens": honoured("default 16; 0 generates nothing; -1: no limit"),
    "max_completion_tokens": honoured("like `max_tokens`, and takes precedence over it"),
    "n": honoured("1 to 128 for each prompt, default 1"),
    "best_of": honoured(
        "`n` to 128; generates that many texts for each prompt and returns the `n` with the "
        "highest mean log-probability of their tokens, the best first; not with `stream`"
    ),
    "echo": honoured(
        "the text begins with the prompt; with `logprobs`, those of the prompt too (bound: "
        "`prompt_logprobs`); where the tokenizer changes a text (Unicode normalisation, spaces at "
        "added tokens), the text of its tokens is shown, so that `text_offset` fits it"
    ),
    "logprobs": honoured(
        "0 to 20; that many alternatives for each token; of the model's own distribution, before "
        "temperature and penalties; a token that is a part of a character reads `bytes:\\xe2\\x82`"
    ),
    "stop": honoured("a string or up to 64 strings; left out of the output"),
    "structured_outputs": honoured(
        "extension; as for chat completions, for the whole text that is generated"
    ),
    "response_format": honoured("extension; as for chat completions; always enforced"),
    "add_special_tokens": honoured(
        "extension; default true: a prompt that is a text begins as the tokenizer begins texts "
        "(with BOS, for many models); token ids are never changed"
    ),
    "prompt_logprobs": honoured(
        "extension; 0 to 20; each choice has the log-probabilities of its prompt's tokens, and of "
        f"that many alternatives each; at most {MAX_PROMPT_LOGPROBS:,} in all (400 "
        "`request_too_large`)"
    ),
    "return_token_ids": honoured("extension; each choice has `token_ids`, and `prompt_token_ids`"),
    "messages": rejected(CHAT_ONLY, []),
    "tools": rejected(CHAT_ONLY, []),
    "tool_choice": rejected(CHAT_ONLY, "none", "auto"),
    "functions": rejected(CHAT_ONLY, []),
    "function_call": rejected(CHAT_ONLY, "none", "auto"),
    "top_logprobs": rejected("`logprobs` is the number of alternatives"),
}

COMPLETION_FIELDS: dict[str, FieldNote] = OWN_FIELDS | {
    name: FIELDS[name] for name in SamplingFields.model_fields if name not in OWN_FIELDS
}
