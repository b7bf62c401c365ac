"""Grammars on a real vocabulary. Random walks choose tokens more evenly than any temperature."""

import json
import os
import random

import jsonschema
import numpy as np
import pytest

from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.grammar.compiler import GrammarCompiler
from stonechat_models.sampling.state import TokenConstraint
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.types import GrammarSpec
from tests.models.example_schemas import SCHEMAS

NUM_WALKS = int(os.environ.get("STONECHAT_TEST_WALKS", "10"))
"""Walks per schema. The environment variable sets another number."""
MAX_TOKENS = 150
PADDING = 64
"""Logits are often wider than the vocabulary."""


@pytest.fixture(scope="module")
def tokenizer(default_model_files: ModelFiles) -> Tokenizer:
    return Tokenizer.from_folder(default_model_files.folder)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.vocab_size + PADDING)


def walk(constraint: TokenConstraint, tokenizer: Tokenizer, rng: random.Random) -> str | None:
    row = np.zeros((tokenizer.vocab_size + PADDING + 31) // 32, dtype=np.int32)
    closer_ids = [tokenizer.encode(text)[0] for text in ('"', "}", "]", '"}', "@")]
    token_ids: list[int] = []
    while len(token_ids) < MAX_TOKENS:
        if constraint.is_finished:
            return tokenizer.decode(token_ids)
        assert constraint.fill_bitmask(row)
        bits = np.unpackbits(row.view(np.uint8), bitorder="little")
        allowed = np.nonzero(bits)[0]
        assert len(allowed)
        assert allowed[-1] < tokenizer.vocab_size
        closers = [i for i in closer_ids if bits[i]]
        is_closing = bool(closers) and rng.random() < 0.2
        token_id = rng.choice(closers) if is_closing else int(allowed[rng.randrange(len(allowed))])
        if token_id in tokenizer.eos_token_ids:
            return tokenizer.decode(token_ids)
        assert token_id not in tokenizer.special_ids
        token_ids.append(token_id)
        constraint.accept(token_id)
    return None


@pytest.mark.parametrize("name", SCHEMAS)
def test_walks_validate(name: str, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    schema = SCHEMAS[name]
    compiled = compiler.compile(GrammarSpec("json_schema", json.dumps(schema)))
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    rng = random.Random(name)
    texts = [walk(compiled.new_constraint(), tokenizer, rng) for _ in range(NUM_WALKS)]
    finished_texts = [text for text in texts if text is not None]
    assert finished_texts
    for text in finished_texts:
        validator.validate(json.loads(text))
