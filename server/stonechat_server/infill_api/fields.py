"""What each field of `POST /infill` does here: a table for the docs, the tests and the checks."""

from stonechat_server.schema.fields import FIELDS, FieldNote, honoured, no_effect

INFILL_FIELDS: dict[str, FieldNote] = {
    "model": FIELDS["model"],
    "input_prefix": honoured(
        "required; the text before the gap, without the beginning of the gap's line; what does not "
        "fit into the context is left out, from its beginning"
    ),
    "prompt": honoured("the beginning of the gap's line; it stands behind `input_prefix`"),
    "input_suffix": honoured(
        "required; the text behind the gap; what does not fit is left out, from its end"
    ),
    "input_extra": honoured(
        "up to 1024 pieces of other files, `{filename, text}`; they stand first, each as a file of "
        "a repository if the model has tokens for that; the first ones are left out if they do not "
        "fit into the context"
    ),
    "n_predict": honoured("default and maximum: what fits into the context; 0: none; -1: no limit"),
    "n_indent": honoured("the text ends before a line, after the first, that is indented less"),
    "t_max_predict_ms": honoured(
        "after so many milliseconds of writing, the text ends once it has a line break; below 1: "
        "no limit"
    ),
    "stop": honoured("a string or up to 64; left out of the output"),
    "stream": honoured("default false"),
    "temperature": honoured("0 to 2, default the model's or 1"),
    "top_k": honoured("0 or -1: off; default the model's or off"),
    "top_p": honoured("0 to 1, default the model's or 1"),
    "min_p": honoured("0 to 1, default the model's or 0"),
    "seed": honoured("any signed 64-bit integer; -1: a random one"),
    "repeat_penalty": honoured("0.01 to 10, default the model's or 1; prompt and output"),
    "frequency_penalty": honoured("-2 to 2, over generated tokens"),
    "presence_penalty": honoured("-2 to 2, over generated tokens"),
    "response_fields": honoured(
        "the answer has these keys alone; `timings/prompt_n` is one within another; a stream has "
        "all keys"
    ),
    "samplers": no_effect("the order of sampling is fixed"),
    "cache_prompt": no_effect("prompts that begin alike always share their cache", True),
    "t_max_prompt_ms": no_effect("the whole prompt is read"),
    "id_slot": no_effect("there are no slots", -1),
    "lora": no_effect("a LoRA adapter is a `model`"),
}
