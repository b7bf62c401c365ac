"""Write the generated tables into the docs. With `--check`, fail if one is out of date.

The list of model types takes half a minute, so it is only written with `--model-types`. The check
looks whether it names all types of the installed transformers.

python scripts/update_docs.py [--check | --model-types]
"""

import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from stonechat_models.runtime.ranks.split_types import SPLIT_TYPES
from stonechat_server.cli import COMMANDS, load_command
from stonechat_server.commands import serve
from stonechat_server.completions_api.fields import COMPLETION_FIELDS
from stonechat_server.embeddings_api.fields import EMBEDDING_FIELDS
from stonechat_server.infill_api.fields import INFILL_FIELDS
from stonechat_server.messages_api.fields import FIELDS as MESSAGES_FIELDS
from stonechat_server.ollama_api.fields import TABLE as OLLAMA_FIELDS
from stonechat_server.options import detail
from stonechat_server.rerank_api.fields import RERANK_FIELDS, SCORE_FIELDS
from stonechat_server.responses_api.fields import FIELDS as RESPONSES_FIELDS
from stonechat_server.schema.fields import FIELDS as CHAT_FIELDS
from stonechat_server.schema.fields import FieldNote, FieldStatus
from stonechat_server.terminal.flags import (
    Flag,
    actions_of,
    by_headings,
    flags_of,
    settings_of_serve,
)
from stonechat_server.tokens_api.fields import DETOKENIZE_FIELDS, TOKENIZE_TEXT_FIELDS
from stonechat_server.transcriptions_api.fields import TRANSCRIPTION_FIELDS

ROOT = Path(__file__).resolve().parent.parent
MODELS = "docs/models.md"


def field_table(fields: Mapping[str, FieldNote]) -> Iterator[str]:
    """Yield the request fields by status, and otherwise in their order."""
    yield "| Field | Here | Notes |"
    yield "|---|---|---|"
    for status in FieldStatus:
        for name, note in fields.items():
            if note.status is status:
                yield f"| `{name}` | {status} | {_cell(note.note)} |"


def settings_table() -> Iterator[str]:
    """Yield the settings by group."""
    settings = [flag for flag in flags_of(serve.Options) if flag.is_setting]
    for group in dict.fromkeys(detail(flag.field, "group") for flag in settings):
        yield from ("", f"### {group}")
        yield from _flag_table(flag for flag in settings if detail(flag.field, "group") == group)


def command_table(name: str) -> Iterator[str]:
    """Yield the flags of a command, and of its actions if it has any."""
    command = load_command(name)
    yield from ("", str(command.__doc__).strip())
    yield from _options_tables(command.Options)
    for word, action in actions_of(command.Options).items():
        yield from ("", f"`stonechat {name} {word}`: {action.__doc__}")
        yield from _options_tables(action)


def _options_tables(options: type[BaseModel]) -> Iterator[str]:
    named = settings_of_serve(options)
    yield from _flag_table(flag for flag in flags_of(options) if flag not in named)
    if named:
        names = "; ".join(f"`{name}`" if "-" in name else name for name in by_headings(named))
        text = f"It also takes [settings of `stonechat serve`](configuration.md): {names}."
        yield from ("", *textwrap.wrap(text, 100, break_on_hyphens=False))


def _flag_table(flags: Iterable[Flag]) -> Iterator[str]:
    rows = list(flags)
    if rows:
        yield from ("", "| Flag | Default | Meaning |", "|---|---|---|")
    for flag in rows:
        value = f" {flag.metavar}" if flag.metavar and flag.is_optional else ""
        yield f"| `{flag.spelling}{value}` | {_cell(flag.default)} | {_cell(flag.meaning)} |"


def model_types() -> Iterator[str]:
    """Yield how each type of model is served, measured on tiny ones."""
    from tests.models.serving_ways import listing, measured_ways

    yield from listing(measured_ways())


def split_types() -> Iterator[str]:
    """Yield the types of models that several devices may share."""
    names = ", ".join(f"`{name}`" for name in sorted(SPLIT_TYPES))
    yield from ("", *textwrap.wrap(f"{names}.", 100, break_on_hyphens=False), "")


def missing_model_types() -> list[str]:
    """Return the types of the installed transformers that the list of model types lacks."""
    from transformers.models.auto import modeling_auto

    text = (ROOT / MODELS).read_text(encoding="utf-8")
    types = {
        *modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    }
    return sorted(name for name in types if f"`{name}`" not in text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


FIELD_TABLES = {
    "chat-completions": CHAT_FIELDS,
    "completions": COMPLETION_FIELDS,
    "embeddings": EMBEDDING_FIELDS,
    "infill": INFILL_FIELDS,
    "rerank": RERANK_FIELDS,
    "messages": MESSAGES_FIELDS,
    "ollama": OLLAMA_FIELDS,
    "responses": RESPONSES_FIELDS,
    "transcriptions": TRANSCRIPTION_FIELDS,
}
TABLES: dict[str, dict[str, Callable[[], Iterator[str]]]] = {
    **{
        f"docs/api/{page}.md": {"fields": partial(field_table, fields)}
        for page, fields in FIELD_TABLES.items()
    },
    "docs/api/tokens.md": {
        "tokenize": partial(field_table, TOKENIZE_TEXT_FIELDS),
        "detokenize": partial(field_table, DETOKENIZE_FIELDS),
    },
    "docs/api/rerank.md": {
        "fields": partial(field_table, RERANK_FIELDS),
        "score": partial(field_table, SCORE_FIELDS),
    },
    "docs/configuration.md": {"settings": settings_table},
    "docs/tensor-parallel.md": {"split types": split_types},
    "docs/commands.md": {
        name: partial(command_table, name) for name in COMMANDS if name != "serve"
    },
}


def updated(text: str, name: str, lines: Iterator[str]) -> str:
    """Return `text` with `lines` between the marks of table `name`."""
    begin, end = f"<!-- {name}: generated by scripts/update_docs.py -->", f"<!-- /{name} -->"
    head, begin_mark, rest = text.partition(begin)
    _, end_mark, tail = rest.partition(end)
    if not (begin_mark and end_mark):
        raise SystemExit(f"the marks of table {name} are missing in the docs")
    return "\n".join([head + begin, *lines, end]) + tail


def main() -> int:
    """Return 0, or 1 if `--check` finds an old table."""
    is_check = "--check" in sys.argv[1:]
    status = 0
    all_tables = dict(TABLES)
    if "--model-types" in sys.argv[1:]:
        sys.path[:0] = [str(ROOT)]
        all_tables[MODELS] = {"model types": model_types}
    elif missing := missing_model_types():
        print(f"{MODELS} lacks {', '.join(missing)}: run scripts/update_docs.py --model-types")
        status = 1
    for file, tables in all_tables.items():
        path = ROOT / file
        old_text = new_text = path.read_text(encoding="utf-8")
        for name, lines in tables.items():
            new_text = updated(new_text, name, lines())
        if new_text == old_text:
            continue
        if is_check:
            print(f"{file} is not up to date: run scripts/update_docs.py")
            status = 1
        else:
            path.write_text(new_text, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
