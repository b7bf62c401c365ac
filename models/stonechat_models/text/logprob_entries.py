"""Turns the log-probabilities of tokens into what a client may see."""

from collections.abc import Sequence

from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.types import LogprobEntry, TokenLogprobs, TopLogprob


def logprob_entry(tokenizer: Tokenizer, logprobs: TokenLogprobs, text: str) -> LogprobEntry:
    """Return the entry of a token that is shown as `text`."""
    token_id = logprobs.token_id
    return LogprobEntry(
        token_id=token_id,
        token=text,
        bytes=tokenizer.token_bytes(token_id),
        logprob=logprobs.logprob,
        top=tuple(
            TopLogprob(
                i,
                text if i == token_id else tokenizer.token_text(i),
                tokenizer.token_bytes(i),
                value,
            )
            for i, value in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)
        ),
        rank=logprobs.rank,
    )


def prompt_entries(
    tokenizer: Tokenizer, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]
) -> tuple[LogprobEntry | None, ...]:
    """Return one entry per token of a prompt, None for the first. `token` is its `text_pieces`.

    `logprobs` are those of all tokens but the first.
    """
    pairs = zip(logprobs, tokenizer.text_pieces(token_ids)[1:], strict=True)
    return (None, *(logprob_entry(tokenizer, entry, text) for entry, text in pairs))
