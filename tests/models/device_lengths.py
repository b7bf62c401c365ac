"""A fast attention backend for tests of captured steps: it takes lengths from the device's tensors.

The Triton kernels do so too, but run slowly in Triton's interpreter.
"""

from dataclasses import replace

from stonechat_models.backends.transformers.attention.batched import BatchedBackend


class DeviceLengths:
    """PyTorch's operators over the sequences that `query_start` and `context_lens` describe.

    The outputs of tokens without a context are zeros. Reads no number that the host knows.
    """

    name = "triton"  # so that mixed steps are captured

    def __init__(self):
        self._backend = BatchedBackend()

    def attend(self, query, kv, batch, spec):
        starts, context_lens = batch.query_start.tolist(), batch.context_lens.tolist()
        assert len(starts) == batch.num_seqs + 1
        assert starts[-1] == len(query), "every token belongs to a sequence"
        real = [
            i for i, length in enumerate(context_lens) if length > 0 and starts[i + 1] > starts[i]
        ]
        assert real == list(range(len(real))), "padding comes last"
        num_tokens = starts[len(real)]
        output = query.new_zeros(query.shape[0], query.shape[1], kv.values.shape[2])
        if real:
            width = -(-max(context_lens[: len(real)]) // kv.block_size)
            present = replace(
                batch,
                query_start=batch.query_start[: len(real) + 1],
                context_lens=batch.context_lens[: len(real)],
                block_table=batch.block_table[: len(real), :width],
                query_start_list=starts[: len(real) + 1],
                context_lens_list=context_lens[: len(real)],
            )
            output[:num_tokens] = self._backend.attend(query[:num_tokens], kv, present, spec)
        return output
