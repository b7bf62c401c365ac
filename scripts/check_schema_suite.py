"""Run the official JSON Schema test suite on the grammars, and print the table of the docs.

    python scripts/check_schema_suite.py FOLDER

FOLDER is a copy of https://github.com/json-schema-org/JSON-Schema-Test-Suite (MIT licence), or the
`json` folder of the jsonschema package's source archive. The exit status is 1 if an accepted schema
lets through a document that the suite calls invalid.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.errors import GrammarError
from stonechat_models.grammar.compiler import CompiledGrammar, GrammarCompiler, GrammarConstraint
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.types import GrammarSpec

DRAFTS = ("draft2020-12", "draft2019-09", "draft7", "draft6", "draft4")
SEPARATORS = ((",", ":"), (", ", ": "))
ANNOTATIONS = frozenset(("content.json",))
"""Files about keywords that only annotate. The grammars need not enforce them."""


@dataclass(slots=True)
class Tally:
    """Counts of one draft. `leaks` are invalid documents that a grammar accepts."""

    schemas: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)


def groups(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for pattern in ("*.json", "optional/*.json", "optional/format/*.json"):
        for path in sorted(folder.glob(pattern)):
            if path.name not in ANNOTATIONS:
                for group in json.loads(path.read_text(encoding="utf-8")):
                    yield path.relative_to(folder).as_posix(), group


def accepts(compiled: CompiledGrammar, tokenizer: Tokenizer, document: object) -> bool:
    """Return whether a usual spelling of the document is allowed, token by token, to its end."""
    for separators in SEPARATORS:
        text = json.dumps(document, ensure_ascii=False, separators=separators)
        constraint = compiled.new_constraint()
        assert isinstance(constraint, GrammarConstraint)
        is_allowed = True
        for token_id in tokenizer.encode(text):
            is_allowed = constraint.allows(token_id)
            if not is_allowed:
                break
            constraint.accept(token_id)
        end = next(iter(tokenizer.eos_token_ids))
        if is_allowed and (constraint.is_finished or constraint.allows(end)):
            return True
    return False


def check_draft(folder: Path, compiler: GrammarCompiler, tokenizer: Tokenizer) -> Tally:
    tally = Tally()
    for name, group in groups(folder):
        try:
            compiled = compiler.compile(GrammarSpec("json_schema", json.dumps(group["schema"])))
        except GrammarError as error:
            tally.schemas["refused"] += 1
            tally.reasons[str(error).split("\n")[0][:90]] += 1
            continue
        tally.schemas["accepted"] += 1
        for test in group["tests"]:
            is_accepted = accepts(compiled, tokenizer, test["data"])
            if is_accepted and not test["valid"]:
                tally.leaks.append(f"{name}: {group['description']}: {test['description']}")
            tally.documents[_outcome(test["valid"], is_accepted)] += 1
    return tally


def _outcome(is_valid: bool, is_accepted: bool) -> str:
    if is_valid:
        return "allowed" if is_accepted else "stricter"
    return "leak" if is_accepted else "refused"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument(
        "suite", type=Path, help="folder of the test suite, which contains `tests/`"
    )
    parser.add_argument("--reasons", action="store_true", help="also print why schemas are refused")
    arguments = parser.parse_args()
    files = resolve_model(EngineConfig(model=""), print)
    tokenizer = Tokenizer.from_folder(files.folder)
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size)
    num_leaks = 0
    print(
        "| draft | schemas accepted | refused (400) | invalid documents let through | "
        "invalid documents stopped | valid documents allowed | valid, but not written |"
    )
    print("|---|---|---|---|---|---|---|")
    for draft in DRAFTS:
        tally = check_draft(arguments.suite / "tests" / draft, compiler, tokenizer)
        documents = tally.documents
        print(
            f"| {draft} | {tally.schemas['accepted']} | {tally.schemas['refused']} "
            f"| {documents['leak']} | {documents['refused']} | {documents['allowed']} "
            f"| {documents['stricter']} |"
        )
        for leak in tally.leaks:
            print("LEAK", leak, file=sys.stderr)
        if arguments.reasons:
            for reason, count in tally.reasons.most_common():
                print(f"{count:4d} {reason}", file=sys.stderr)
        num_leaks += len(tally.leaks)
    return 1 if num_leaks else 0


if __name__ == "__main__":
    sys.exit(main())
