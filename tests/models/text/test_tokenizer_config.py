"""The special tokens and templates that a model's files name."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from stonechat_models.errors import ModelLoadError
from stonechat_models.text.tokenizer_config import TokenizerFiles, read_tokenizer_files


def files_of(folder: Path, **contents: object) -> TokenizerFiles:
    """Write files, named without `.json`, and read them."""
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return read_tokenizer_files(folder)


def test_a_folder_without_files_says_nothing(tmp_path: Path) -> None:
    assert files_of(tmp_path) == TokenizerFiles()


def test_special_tokens_are_texts_or_objects(tmp_path: Path) -> None:
    files = files_of(
        tmp_path,
        special_tokens_map={"bos_token": "<old>", "unk_token": {"content": "<unk>"}},
        tokenizer_config={"bos_token": "<s>", "eos_token": None, "pad_token": "", "sep_token": 7},
    )
    assert files.special_tokens == {"bos_token": "<s>", "unk_token": "<unk>"}
    assert files.special_texts == {"<s>", "<unk>"}


def test_other_special_tokens_may_be_listed_in_several_ways(tmp_path: Path) -> None:
    files = files_of(
        tmp_path,
        tokenizer_config={
            "eos_token": "</s>",
            "additional_special_tokens": ["<a>", {"content": "<b>"}],
            "extra_special_tokens": {"image_token": "<c>"},
            "added_tokens_decoder": {
                "5": {"content": "<d>", "special": True},
                "6": {"content": "plain", "special": False},
                "7": "broken",
            },
        },
    )
    assert files.special_texts == {"</s>", "<a>", "<b>", "<c>", "<d>"}
    assert files.special_tokens == {"eos_token": "</s>"}


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [1, 2]}, {"eos_token_id": 3}, {1, 2}),
        ({"eos_token_id": None}, {"eos_token_id": 3}, {3}),
        ({}, {"text_config": {"eos_token_id": [4]}}, {4}),
        ({}, {"eos_token_id": 3, "text_config": {"eos_token_id": 4}}, {3}),
        ({}, {"text_config": "none"}, set()),
        ({"eos_token_id": True}, {}, set()),
        ({"eos_token_id": "</s>"}, {}, set()),
    ],
)
def test_end_tokens(generation: object, config: object, expected: set[int], tmp_path: Path) -> None:
    files = files_of(tmp_path, generation_config=generation, config=config)
    assert files.eos_token_ids == expected


NAMED_TEMPLATES = [
    {"name": "default", "template": "B"},
    {"name": "tool_use", "template": "C"},
    {"name": "broken"},
    "broken",
]


def test_templates_are_texts_lists_or_files(tmp_path: Path) -> None:
    files = files_of(tmp_path, tokenizer_config={"chat_template": "A"})
    assert files.chat_templates == {"default": "A"}
    files = files_of(tmp_path, tokenizer_config={"chat_template": NAMED_TEMPLATES})
    assert files.chat_templates == {"default": "B", "tool_use": "C"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("D")
    assert files_of(tmp_path).chat_templates == {"default": "B", "rag": "D"}
    (tmp_path / "chat_template.jinja").write_text("ö", encoding="utf-8")
    assert files_of(tmp_path).chat_templates == {"default": "ö", "rag": "D"}


def test_template_files_replace_the_templates_of_the_configuration(tmp_path: Path) -> None:
    files = files_of(
        tmp_path,
        tokenizer_config={"chat_template": NAMED_TEMPLATES},
        chat_template={"chat_template": "A"},
    )
    assert files.chat_templates == {"default": "A"}
    (tmp_path / "chat_template.jinja").write_text("E")
    assert files_of(tmp_path).chat_templates == {"default": "E"}


def test_the_usual_template_is_that_of_transformers(tmp_path: Path) -> None:
    backend = Backend(models.WordLevel({"a": 0}))
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": NAMED_TEMPLATES[:2]}
    ours = files_of(tmp_path, tokenizer_config=config)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert theirs.chat_template == ours.chat_templates == {"default": "B", "tool_use": "C"}
    (tmp_path / "chat_template.jinja").write_text("E")
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path).chat_template == "E"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("D")
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert theirs.chat_template == files_of(tmp_path).chat_templates


@pytest.mark.parametrize(("text", "problem"), [("{", "cannot read"), ("[1]", "not a JSON object")])
@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map", "generation_config"])
def test_a_file_that_is_no_object_is_refused(
    name: str, text: str, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match=problem) as error_info:
        files_of(tmp_path, **{name: text})
    assert f"{name}.json" in str(error_info.value)


@pytest.mark.parametrize(("value", "expected"), [("LlamaTokenizer", "LlamaTokenizer"), (5, "")])
def test_the_class_of_the_tokenizer(tmp_path: Path, value: object, expected: str) -> None:
    assert files_of(tmp_path, tokenizer_config={"tokenizer_class": value}).tokenizer_class == (
        expected
    )
