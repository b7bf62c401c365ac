"""What the checks of images and of audio have in common."""

from collections.abc import Sequence
from typing import Any

from stonechat_server.scorecard.outcome import HONOURED, Finding, Verdict, ignored, wrong
from stonechat_server.scorecard.server import Answer, Server, taken

QUESTION = "What is it?"


async def ask(server: Server, *parts: object, **fields: Any) -> Answer:
    """Ask for one token about parts of a message."""
    message = {"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}
    return await server.chat(messages=[message], max_tokens=1, **fields)


async def num_tokens(server: Server, *parts: object) -> int:
    """The prompt's tokens. Raises NoAnswerError for another answer than 200."""
    answer = await ask(server, *parts)
    answer.choice()
    return int(answer.usage["prompt_tokens"])


async def adds_tokens(server: Server, *parts: object, what: str) -> Finding:
    """Whether the last part takes tokens of the prompt beside the others."""
    answer = taken(await ask(server, *parts))
    more = answer.usage["prompt_tokens"] - await num_tokens(server, *parts[:-1])
    return HONOURED if more > 1 else ignored(f"the {what} adds no token to the prompt")


async def is_perceived(server: Server, one: object, other: object, what: str) -> Finding:
    """Whether the log-probabilities after two parts of one size differ, and those of one do not."""
    fields = {"logprobs": True, "top_logprobs": 1}
    answers = [taken(await ask(server, part, **fields)) for part in (one, other, other)]
    first, second, third = [(answer.choice().get("logprobs") or {}) for answer in answers]
    if not first.get("content"):
        return Finding(Verdict.UNKNOWN, "there are no log-probabilities to compare")
    if second["content"][0]["token"] != third["content"][0]["token"]:
        return wrong(f"the same {what} gave two greedy answers")
    return HONOURED if first != second else ignored(f"the answer is the same for another {what}")


async def is_counted(server: Server, parts: Sequence[object], key: str, what: str) -> Finding:
    """Whether the details of the usage say how many tokens of the prompt are of a kind."""
    answer = taken(await ask(server, *parts))
    usage = answer.usage
    count = (usage.get("prompt_tokens_details") or {}).get(key)
    if not count:
        return ignored(f"the usage does not say how many tokens are of {what}")
    return HONOURED if 0 < count < usage["prompt_tokens"] else wrong(f"{count} tokens of {what}")
