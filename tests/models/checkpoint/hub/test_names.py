"""Names of the Hugging Face hub as people paste them, and which GGUF file each stands for."""

import pytest

from stonechat_models.checkpoint.hub.names import (
    HubName,
    choose_gguf,
    gguf_models,
    parse_hub_name,
    split_parts,
)

REPOSITORY = HubName("owner/name-GGUF")
QUANTISED = HubName("owner/name-GGUF", None, "Q4_K_M")
FILE = HubName("owner/name-GGUF", "sub/x-Q4_K_M.gguf")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name-GGUF", REPOSITORY),
        ("owner/name-GGUF/", REPOSITORY),
        ("gpt2", HubName("gpt2")),
        ("hf.co/owner/name-GGUF", REPOSITORY),
        ("huggingface.co/owner/name-GGUF", REPOSITORY),
        ("https://huggingface.co/owner/name-GGUF/", REPOSITORY),
        ("HTTPS://www.huggingface.co/owner/name-GGUF?library=x#files", REPOSITORY),
        ("hf://owner/name-GGUF", REPOSITORY),
        ("owner/name-GGUF:Q4_K_M", QUANTISED),
        ("hf.co/owner/name-GGUF:Q4_K_M", QUANTISED),
        ("https://hf.co/owner/name-GGUF:Q4_K_M", QUANTISED),
        ("owner/name-GGUF:latest", REPOSITORY),
        ("owner/name-GGUF/sub/x-Q4_K_M.gguf", FILE),
        ("hf.co/owner/name-GGUF/sub/x-Q4_K_M.gguf", FILE),
        (
            "https://huggingface.co/owner/name-GGUF/blob/main/sub/x-Q4_K_M.gguf",
            HubName("owner/name-GGUF", "sub/x-Q4_K_M.gguf", None, "main"),
        ),
        (
            "https://huggingface.co/owner/name-GGUF/resolve/abc/sub/x-Q4_K_M.gguf?download=true",
            HubName("owner/name-GGUF", "sub/x-Q4_K_M.gguf", None, "abc"),
        ),
        (
            "https://huggingface.co/owner/name-GGUF/blob/refs%2Fpr%2F1/a.gguf",
            HubName("owner/name-GGUF", "a.gguf", None, "refs/pr/1"),
        ),
        (
            "https://huggingface.co/owner/name-GGUF/blob/main/config.json",
            HubName("owner/name-GGUF", None, None, "main"),
        ),
        (
            "https://huggingface.co/owner/name-GGUF/tree/main",
            HubName("owner/name-GGUF", None, None, "main"),
        ),
        (
            "https://huggingface.co/owner/name-GGUF/tree/main/Q4_K_M",
            HubName("owner/name-GGUF", None, "Q4_K_M", "main"),
        ),
    ],
)
def test_names_of_the_hub(name: str, expected: HubName) -> None:
    assert parse_hub_name(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        *("", "/tmp/x.gguf", "./x", "../a/b", "~/x", "C:\\x.gguf", "not a name", "owner/na me"),
        *("owner/name:", "owner/name/x.bin", "owner/name/sub", "owner/name/x.gguf:Q4_K_M"),
        *("qwen3:8b", "owner//x.gguf", "https://example.com/owner/name", "hf.co/", "a/b/c/"),
        *("a/b/../c.gguf", "hf.co/a/b/blob/main/../c.gguf"),
        *("hf.co/a/b/x%2F..%2F..%2Fy.gguf", "hf.co/a/b/x%2F%2Fy.gguf", "hf.co/a/..%2Fb"),
        *("hf.co/a/b/blob/..%2F..%2Fx/c.gguf", "hf.co/a/b/tree/..%2F..%2Fx"),
    ],
)
def test_other_texts_are_no_names_of_the_hub(name: str) -> None:
    assert parse_hub_name(name) is None


FILES = (
    "README.md",
    "config.json",
    "BF16/x-BF16-00001-of-00002.gguf",
    "BF16/x-BF16-00002-of-00002.gguf",
    "mmproj-F16.gguf",
    "mtp-x-Q4_K_M.gguf",
    "x-Q4_K_M.gguf",
    "x-Q4_K_S.gguf",
    "x-Q8_0.gguf",
    "x-UD-Q4_K_M.gguf",
    "x.Q5_0.gguf",
    "y-q6_k.gguf",
)


@pytest.mark.parametrize(
    ("quantisation", "expected"),
    [
        (None, "x-Q4_K_M.gguf"),
        ("Q4_K_M", "x-Q4_K_M.gguf"),
        ("q4_k_m", "x-Q4_K_M.gguf"),
        ("UD-Q4_K_M", "x-UD-Q4_K_M.gguf"),
        ("Q5_0", "x.Q5_0.gguf"),
        ("Q6_K", "y-q6_k.gguf"),
        ("BF16", "BF16/x-BF16-00001-of-00002.gguf"),
        ("bf16", "BF16/x-BF16-00001-of-00002.gguf"),
        ("x-Q8_0.gguf", "x-Q8_0.gguf"),
        ("Q4_K", None),
        ("4_K_M", None),
        ("F16", None),
    ],
)
def test_the_file_of_a_quantisation(quantisation: str | None, expected: str | None) -> None:
    assert choose_gguf(FILES, quantisation) == expected
    assert choose_gguf(FILES[::-1], quantisation) == expected


def test_the_choice_without_a_quantisation() -> None:
    assert choose_gguf(["b-Q2_K.gguf", "b-Q8_0.gguf", "b-F16.gguf"], None) == "b-Q8_0.gguf"
    assert choose_gguf(["b-Q2_K.gguf", "a-F16.gguf", "mmproj-a.gguf"], None) == "a-F16.gguf"
    assert choose_gguf(["mmproj-a.gguf", "imatrix.gguf", "model.safetensors"], None) is None


def test_split_files_count_once() -> None:
    assert gguf_models(FILES)[0] == "BF16/x-BF16-00001-of-00002.gguf"
    assert split_parts("BF16/x-BF16-00002-of-00002.gguf") == list(FILES[2:4])
    assert split_parts("x.gguf") == ["x.gguf"]
