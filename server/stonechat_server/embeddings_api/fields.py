"""What each field of an embeddings request does here: a table for the docs, the tests and the
checks."""

from stonechat_server.schema.fields import FIELDS, FieldNote, honoured, rejected

EMBEDDING_FIELDS: dict[str, FieldNote] = {
    "model": FIELDS["model"],
    "input": honoured(
        "a text, token ids, or a list of up to 2,048 of either; none may be empty, or longer than "
        "the model's limit (400 `context_length_exceeded`)"
    ),
    "encoding_format": honoured(
        "`float` (default) or `base64`: little-endian float32, as clients of OpenAI decode it"
    ),
    "dimensions": honoured(
        "keep this many of the first numbers, and scale to length 1 again; for models trained for "
        "it; 400 above the model's size"
    ),
    "user": FIELDS["user"],
    "input_type": honoured(
        "extension; `query` (`search_query`) or `document` (`passage`, `search_document`): puts "
        "the model's own prompt for it before each text; no effect if the model has none"
    ),
    "prompt_name": honoured(
        "extension; puts the model's prompt of that name before each text; 400 if it has none"
    ),
    "normalize": honoured(
        "extension; whether vectors are scaled to length 1; default: as the model's files say, and "
        "true with `dimensions`"
    ),
    "truncate_prompt_tokens": honoured(
        "extension; cut texts to this many tokens at their end, special tokens included; -1: to "
        "the model's limit; default: longer texts are a 400"
    ),
    "add_special_tokens": honoured(
        "extension; default true: a text gets the tokens that the tokenizer puts around texts; "
        "no effect on token ids"
    ),
    "priority": FIELDS["priority"],
    "cache_salt": honoured(f"{FIELDS['cache_salt'].note}; no effect with a model for embeddings"),
    "messages": rejected("send texts in `input`", []),
    "instruction": rejected("put it into the text, or use `prompt_name` or `input_type`", ""),
}
