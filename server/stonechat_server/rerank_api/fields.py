"""What each field of a request for scores does here: tables for the docs, the tests and the
checks."""

from stonechat_server.schema.fields import FIELDS, FieldNote, alias, honoured, rejected

_SHARED: dict[str, FieldNote] = {
    "truncation": honoured(
        "whether pairs beyond the model's limit are cut to it, the longer of both texts first; "
        "default false: they are a 400 `context_length_exceeded`"
    ),
    "truncate": alias("truncation", "Text Embeddings Inference"),
    "truncate_prompt_tokens": honoured(
        "vLLM's way: cut pairs to this many tokens, special tokens included; -1: to the model's "
        "limit"
    ),
    "max_tokens_per_doc": honoured("cut each document to this many tokens at its end"),
    "max_tokens_per_query": honoured("cut the question to this many tokens at its end"),
    "raw_scores": honoured(
        "extension; true: the model's own numbers in place of scores from 0 to 1; default false"
    ),
    "use_activation": honoured("vLLM's way: false is `raw_scores: true`"),
    "user": FIELDS["user"],
    "priority": FIELDS["priority"],
    "cache_salt": honoured(f"{FIELDS['cache_salt'].note}; no effect with a classifier"),
    "instruction": honoured(
        "extension; what is asked of the documents, for models with a chat template; default: what "
        "the model's files say; 400 with a classifier"
    ),
    "instruct": alias("instruction", "SGLang"),
    "mm_processor_kwargs": rejected("only texts are scored", {}),
}
RERANK_FIELDS: dict[str, FieldNote] = {
    "model": FIELDS["model"],
    "query": honoured("the question, not empty"),
    "documents": honoured(
        "up to 2,048 texts, or objects with a `text`; what else an object has comes back with it"
    ),
    "top_n": honoured("how many of the best documents the answer has; default, and 0: all"),
    "return_documents": honoured("whether the answer repeats the documents; default true"),
    **_SHARED,
    "max_chunks_per_doc": rejected("a document is scored in one piece", 1),
    "rank_fields": rejected("a document is scored by its `text`", [], ["text"]),
}
SCORE_FIELDS: dict[str, FieldNote] = {
    "model": FIELDS["model"],
    "text_1": honoured("a text, or a list of as many texts as `text_2` has"),
    "text_2": honoured("a text, or a list of up to 2,048"),
    **_SHARED,
}
