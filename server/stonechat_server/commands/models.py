"""List, download and delete the models on this machine, and give them short names."""

import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

from stonechat_models import size_text
from stonechat_server.options import BaseOptions, option
from stonechat_server.settings import Settings
from stonechat_server.terminal.flags import Only
from stonechat_server.terminal.tables import new_console, new_table


class List(BaseOptions):
    """List the models on this machine and their short names; also without an action."""

    def run(self) -> None:
        from stonechat_models import list_models, read_aliases

        rows = [
            (
                model.name,
                size_text(model.num_bytes),
                datetime.fromtimestamp(model.last_used, UTC).strftime("%Y-%m-%d"),
            )
            for model in list_models()
        ]
        names = sorted(read_aliases().items())
        rows += [(f"{name} = {model}", "short name", "") for name, model in names]
        if rows:
            new_console().print(new_table(("model", "on disk", "last used"), rows))
        else:
            print("no models yet; `stonechat models pull default` downloads a small one")


class Pull(BaseOptions):
    """Download a model, or resume its download."""

    model: str = option(
        ..., "owner/name, owner/name:Q4_K_M, owner/name/file.gguf, a URL, or default", flag="MODEL"
    )
    settings: Annotated[Settings, Only("revision", "allow_pickle")]

    def run(self) -> None:
        from stonechat_models import fetch_model

        config = replace(self.settings.engine_config(), model=self.model)
        folder = fetch_model(config, lambda line: print(line, file=sys.stderr))
        print(f"{self.model} is ready ({folder})")


class Rm(BaseOptions):
    """Delete models and all files converted from them."""

    models: tuple[str, ...] = option(..., "a model of the list", flag="MODEL", nargs="+")

    def run(self) -> None:
        from stonechat_models import remove_model

        for name in self.models:
            print(f"{name} removed; {size_text(remove_model(name))} freed")


class Alias(BaseOptions):
    """Give a model a short name."""

    name: str = option(..., "the short name", flag="NAME")
    model: str | None = option(
        None, "the model that NAME stands for; without it, the short name is removed", flag="MODEL"
    )

    def run(self) -> None:
        from stonechat_models import alias_model, set_alias

        if self.model is None:
            set_alias(self.name, None)
            print(f"{self.name} is no longer a short name")
        else:
            print(f"{self.name} stands for {alias_model(self.name, self.model)}")


class Options(BaseOptions):
    """The options of `stonechat models`."""

    action: List | Pull | Rm | Alias


def run(options: Options) -> int:
    """Run the action. Returns 130 if it is interrupted. Raises `ModelLoadError`."""
    try:
        options.action.run()
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 130
    return 0
