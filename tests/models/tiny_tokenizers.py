"""Tiny vocabularies of each family, built with the `tokenizers` library."""

import json
from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.text.tokenizer_config import TokenizerFiles

EOS = "<|end|>"
OTHER = "<|other|>"
EXTRA = (" the", "ab", "abc", "bc", "cd", "aa", "é", "世界", "👩\u200d👩", "e\u0301", "\n\n", " ")
SPACE = "\u2581"


def byte_alphabet() -> list[str]:
    """Return GPT-2's characters in the order of their bytes, as its `encoder.py` defines them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += [*range(ord("®"), ord("ÿ") + 1)]
    alphabet, num_others = {}, 0
    for byte in range(256):
        if byte in printable:
            alphabet[byte] = chr(byte)
        else:
            alphabet[byte] = chr(256 + num_others)
            num_others += 1
    return [alphabet[byte] for byte in range(256)]


def byte_level_backend(parts: tuple[bytes, ...] = ()) -> Backend:
    """Ids 0-255 are the bytes. Then come EXTRA and `parts`, then the special EOS and OTHER."""
    alphabet = byte_alphabet()
    tokens = list(alphabet)
    for piece in (*(text.encode() for text in EXTRA), *parts):
        token = "".join(alphabet[byte] for byte in piece)
        if token not in tokens:
            tokens.append(token)
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(EOS, special=True), AddedToken(OTHER, special=True)])
    return backend


def ascii_backend() -> Backend:
    """A vocabulary of 129 tokens, for models that are smaller still. Ids 0-127 are ASCII."""
    backend = Backend(models.BPE({char: i for i, char in enumerate(byte_alphabet()[:128])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(EOS, special=True)])
    return backend


def sentencepiece_backend(prefix: bool = True) -> Backend:
    """Return a backend like Llama 2's (with `prefix`) or Gemma's.

    Its tokens are `<unk>`, `</s>`, the 256 byte tokens, then words.
    """
    tokens = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [SPACE, SPACE * 2, SPACE + "Hi", SPACE + "a", "Hi", "a", "b", "ab", "é", "世", "."]
    backend = Backend(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Replace(" ", SPACE)
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return backend


def wrap(backend: Backend, eos: str = EOS) -> Tokenizer:
    files = TokenizerFiles(special_tokens={"eos_token": eos}, special_texts=frozenset({eos}))
    return Tokenizer(backend, files, Path("tokenizer.json"))


def save_byte_level(folder: Path) -> Path:
    """Save the byte-level tokenizer and a chat template in the new folder `folder`."""
    folder.mkdir(parents=True)
    byte_level_backend().save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    config = {"eos_token": EOS, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
