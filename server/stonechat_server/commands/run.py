"""Chat with a model that is loaded here. No port is opened, and nothing is left running."""

from stonechat_server.commands.chat.command import TalkOptions, talk
from stonechat_server.model_settings import DEFAULT_MODEL
from stonechat_server.options import option


class Options(TalkOptions):
    """The options of `stonechat run`."""

    model: str | None = option(
        None,
        f"the model: a name of the Hugging Face hub, a folder, a GGUF file, or a short name of "
        f"`stonechat models` (default: {DEFAULT_MODEL})",
        flag="MODEL",
    )


def run(options: Options) -> int:
    """Talk until the input ends. Returns 1 if an answer failed, 130 after Ctrl-C."""
    return talk(options, options.model)
