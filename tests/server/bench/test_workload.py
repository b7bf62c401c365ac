"""Synthetic prompts, and prompts from files."""

import json
from pathlib import Path

import pytest

from stonechat_server.bench.targets.workload import (
    ListWorkload,
    Prompt,
    SyntheticWorkload,
    read_prompts_file,
    read_sharegpt,
)


def test_plain_lines_and_json_lines(tmp_path: Path) -> None:
    plain, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    plain.write_text("one\n\ntwo\n")
    lines.write_text('{"prompt": "one", "max_tokens": 5}\n{"messages": [{"role": "user"}]}\n')
    assert [p.messages[0]["content"] for p in read_prompts_file(plain)] == ["one", "two"]
    first, second = read_prompts_file(lines)
    assert first == Prompt([{"role": "user", "content": "one"}], 5)
    assert second.messages == [{"role": "user"}]


@pytest.mark.parametrize("text", ["", '{"other": 1}\n', "not json\n"])
def test_a_bad_prompts_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"p\.jsonl"):
        read_prompts_file(path)


def test_sharegpt_takes_the_first_human_turn(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    turns = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "x" * 40},
        {"from": "human", "value": "q2"},
    ]
    path.write_text(json.dumps([{"id": "1", "conversations": turns}, {"conversations": []}]))
    assert read_sharegpt(path) == [Prompt([{"role": "user", "content": "q"}], 10)]
    path.write_text("[]")
    with pytest.raises(ValueError, match="no conversation"):
        read_sharegpt(path)


def test_all_prompts_of_a_list_are_used_before_one_repeats() -> None:
    prompts = [Prompt([{"content": str(n)}]) for n in range(5)]
    workload = ListWorkload(prompts, seed=3)
    first = [str(workload.prompt(n).messages) for n in range(5)]
    second = [str(workload.prompt(n).messages) for n in range(5, 10)]
    assert sorted(first) == sorted(second) == sorted(str(p.messages) for p in prompts)


def test_the_seed_decides_synthetic_prompts() -> None:
    prompts = SyntheticWorkload(30, 0.2, 1).prompt(4), SyntheticWorkload(30, 0.2, 1).prompt(4)
    assert prompts[0] == prompts[1]
    assert SyntheticWorkload(30, 0.2, 2).prompt(4) != prompts[0]
