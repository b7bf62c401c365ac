"""Errors that the engine raises. The server turns them into HTTP answers in one place."""


class EngineError(Exception):
    """Base of every error that `stonechat_models` raises on purpose."""


class ModelLoadError(EngineError):
    """The model cannot be found, read or fitted into memory; the message says why."""


class UnsupportedModelError(ModelLoadError):
    """The model can be read, but the engine would compute wrong results with it: it is refused."""


class InvalidParamsError(EngineError):
    """A sampling parameter is out of range. `param` names the field."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class GrammarError(EngineError):
    """A grammar, regex or JSON schema cannot be compiled or enforced; the message says why."""


class CostlyGrammarError(GrammarError):
    """Compiling a grammar takes too much time or memory; the message states the limit."""


class TooManyChecksError(EngineError):
    """Too many grammars are being checked. Try again later."""


class InvalidMediaError(EngineError):
    """An image or audio clip cannot be used. `index` counts those that were handed over, from 0.

    `reason` reads behind "the image " or "the audio ": "is not a PNG, JPEG, WebP or GIF". `kind` is
    `format` for another kind of file, `empty`, `broken`, `too_large` (pixels, memory or time),
    `too_long` (seconds), or `unfit` for what the model's own processor refuses. Of documents it is
    also `encrypted`, `too_many_pages`, `too_many_characters` or `too_many_images`.
    """

    def __init__(self, index: int, kind: str, reason: str) -> None:
        super().__init__(f"file {index + 1} of the request {reason}")
        self.index = index
        self.kind = kind
        self.reason = reason


class TooManyMediaError(EngineError):
    """Too many images and audio clips are being prepared. Try again later."""


class PromptTooLongError(EngineError):
    """The prompt and one generated token do not fit in the context length."""

    def __init__(self, num_prompt_tokens: int, max_model_len: int) -> None:
        super().__init__(
            f"the prompt has {num_prompt_tokens} tokens and must leave room for at least one more "
            f"within the context length of {max_model_len}"
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.max_model_len = max_model_len


class EngineDeadError(EngineError):
    """The engine has stopped and answers no more requests."""


class StepError(EngineError):
    """A model step failed; only the requests of that step are affected."""
