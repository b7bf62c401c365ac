"""Reads how a decoder in a GGUF file scores pairs of texts, as llama.cpp does.

Its pooling is `rank`: a matrix makes a number, or two, of the last hidden state. A template in the
file makes the prompt of a pair.
"""

import numpy as np
import numpy.typing as npt

from stonechat_models.checkpoint.gguf.config import architecture_of
from stonechat_models.checkpoint.gguf.metadata import HEAD_PREFIX, ranks
from stonechat_models.checkpoint.gguf.reader import GgufFile
from stonechat_models.checkpoint.gguf.weights import dequantize
from stonechat_models.checkpoint.rerankers import RerankerFiles
from stonechat_models.errors import UnsupportedModelError

HEAD = HEAD_PREFIX + "output.weight"
TEMPLATE_KEY = "tokenizer.chat_template.rerank"
PLACEHOLDERS = ("{query}", "{document}")


def read_gguf_reranker(gguf: GgufFile) -> RerankerFiles | None:
    """Return how the model scores pairs; None if it is no decoder that does.

    Raises `UnsupportedModelError` for a head or a template that is not served.
    """
    if not ranks(gguf) or architecture_of(gguf).is_encoder:
        return None
    template = gguf.metadata.get(TEMPLATE_KEY)
    if not isinstance(template, str) or any(name not in template for name in PLACEHOLDERS):
        raise UnsupportedModelError(
            f"{gguf.path.name} is a reranker without a template for {' and '.join(PLACEHOLDERS)}"
        )
    return RerankerFiles(head=_head(gguf), template="rerank")


def _head(gguf: GgufFile) -> npt.NDArray[np.float32]:
    """Return the vector float32[H] whose product with the last hidden state is the number.

    Of two outputs, such as those of `yes` and `no`, the score is the first one's share after a
    softmax. That is the sigmoid of their difference.
    """
    names = sorted(name for name in gguf.tensors if name.startswith(HEAD_PREFIX))
    rows = dequantize(gguf.tensors[HEAD]).astype(np.float32) if names == [HEAD] else np.empty(0)
    if rows.ndim != 2 or len(rows) > 2:
        found = f"{', '.join(names) or 'none'} of {len(rows)} rows"
        raise UnsupportedModelError(
            f"{gguf.path.name}: of rerankers, only those with a {HEAD} of one or two rows alone "
            f"are served, and it has {found}"
        )
    head: npt.NDArray[np.float32] = rows[0] - rows[1] if len(rows) == 2 else rows[0]
    return head
