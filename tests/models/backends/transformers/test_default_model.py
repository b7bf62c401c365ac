"""The real default model on the paged engine equals `generate` on the same weights, in float32."""

import pytest
import torch

from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.config import EngineConfig
from stonechat_models.text.tokenizer import Tokenizer
from tests.models.engines import generate_all, greedy, make_engine

TEXTS = [
    "<|im_start|>user\nName three rivers of Europe.<|im_end|>\n<|im_start|>assistant\n",
    "The capital of France is",
]
NUM_TOKENS = 12


@pytest.mark.slow
def test_greedy_tokens_equal_generate(default_model_files, say):
    tokenizer = Tokenizer.from_folder(default_model_files.folder)
    cpu = torch.device("cpu")
    module = load_module(
        default_model_files, EngineConfig(model=""), cpu, torch.float32, progress=say
    )
    prompts = [tokenizer.encode(text) for text in TEXTS]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = module.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NUM_TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        expected.append(output[0, len(prompt) :].tolist())
    engine = make_engine(module, vocab_size=49152, max_model_len=256, block_size=16)
    results = generate_all(engine, prompts, greedy(NUM_TOKENS))
    assert [r.token_ids for r in results] == expected
