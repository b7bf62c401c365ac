"""What each field of Ollama's API does here: a table for the docs, the tests and the checks."""

from stonechat_server.schema.fields import FieldNote, honoured, no_effect, rejected

DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
"""Sampling parameters where neither the request nor the model's makers name one, as in Ollama."""
PLACE = "decided when the server starts"

OPTIONS: dict[str, FieldNote] = {
    "temperature": honoured("0 to 2, default the model's or 0.8"),
    "top_k": honoured("0 or -1: off; default the model's or 40"),
    "top_p": honoured("0 to 1, default the model's or 0.9"),
    "min_p": honoured("0 to 1, default the model's or 0"),
    "seed": honoured("any signed 64-bit integer; -1: a random one"),
    "stop": honoured("a string or up to 64; left out of the output"),
    "num_predict": honoured("default and maximum: what fits into the context; below 1: no limit"),
    "repeat_penalty": honoured("0.01 to 10, default the model's or 1; prompt and output"),
    "frequency_penalty": honoured("-2 to 2, over generated tokens"),
    "presence_penalty": honoured("-2 to 2, over generated tokens"),
    "repeat_last_n": no_effect("`repeat_penalty` counts the whole prompt and output", -1),
    "num_ctx": no_effect("the context is the model's, or that of `--max-model-len`"),
    "num_keep": no_effect("a text that fills the context ends"),
    "typical_p": no_effect("", 1),
    "tfs_z": no_effect("", 1),
    "mirostat": no_effect("", 0),
    "mirostat_eta": no_effect("of `mirostat`"),
    "mirostat_tau": no_effect("of `mirostat`"),
    "penalize_newline": no_effect(""),
    **dict.fromkeys(
        (
            *("draft_num_predict", "embedding_only", "f16_kv", "logits_all", "low_vram"),
            *("main_gpu", "num_batch", "num_gpu", "num_thread", "numa", "use_mlock", "use_mmap"),
            "vocab_only",
        ),
        no_effect(PLACE),
    ),
}
"""The keys of `options`."""

FIELDS: dict[str, FieldNote] = {
    "model": honoured(
        "a name of `/api/tags`, with or without `:latest`; by default the first that the key may "
        "use; any other name is a 404"
    ),
    "messages": honoured(
        "roles `system`, `user`, `assistant`, `tool`; `content`, `images` (base64, of images or "
        "audio), `thinking`, `tool_calls` with `arguments` as an object, `tool_name`, "
        "`tool_call_id`; a last `assistant` message with text is continued; none: the model is "
        "loaded"
    ),
    "prompt": honoured("`/api/generate`, `/api/embeddings`; none: the model is loaded"),
    "system": honoured("a system message before the prompt"),
    "images": honoured("base64, of images or audio; they stand before the prompt"),
    "suffix": honoured(
        "the text that follows the answer (fill-in-the-middle); 400 if the tokenizer has no tokens "
        "for that"
    ),
    "raw": honoured("true: the prompt is continued as it is, without the chat template"),
    "tools": honoured("functions, at most 128; see `tools.md`"),
    "format": honoured("`json` for any JSON object, or a JSON schema; always enforced"),
    "think": honoured(
        "true or false switches thinking on or off if the template can; a level reaches it"
    ),
    "stream": honoured("default true: lines of JSON"),
    "logprobs": honoured("of the model's own distribution, before temperature and penalties"),
    "top_logprobs": honoured("0 to 20; needs `logprobs: true`"),
    "truncate": honoured(
        "default true: `/api/chat` leaves out the oldest messages where they leave too little room "
        "for the answer, `/api/embed` cuts texts at their end"
    ),
    "input": honoured("`/api/embed`; a text, or up to 2,048"),
    "dimensions": honoured(
        "keep this many of the first numbers, and scale to length 1 again; 0: all; 400 above the "
        "model's size"
    ),
    "options": honoured("see the rows `options.…`"),
    "template": rejected(
        "chat templates are Jinja here, set at start; use `raw` or `/api/chat`", ""
    ),
    "context": rejected("send the messages to `/api/chat`", []),
    **dict.fromkeys(("width", "height", "steps"), rejected("no images are made here", 0)),
    "keep_alive": no_effect(
        "the server's `--keep-alive` decides; but 0 without a prompt, input or messages unloads "
        "the model"
    ),
    "shift": no_effect("a text that fills the context ends", False),
}

TABLE = FIELDS | {f"options.{name}": note for name, note in OPTIONS.items()}
"""All rows, for the docs."""
