"""Checks of the fields that decide which tokens come."""

import math
from typing import Any

from stonechat_server.scorecard.outcome import HONOURED, Finding, check, ignored, wrong
from stonechat_server.scorecard.server import Server

GROUP = "sampling"
LONG = "Count from one to fifty in words."


@check(GROUP, "temperature 0 repeats itself")
async def temperature(server: Server) -> Finding:
    """Two greedy answers must be equal."""
    first, second = await server.chat(), await server.chat()
    return HONOURED if first.content == second.content else wrong("two greedy answers differ")


@check(GROUP, "max_tokens")
async def max_tokens(server: Server) -> Finding:
    """The answer ends after so many tokens, with `finish_reason` "length"."""
    return await _limit(server, "max_tokens")


@check(GROUP, "max_completion_tokens")
async def max_completion_tokens(server: Server) -> Finding:
    """The newer name of `max_tokens`."""
    return await _limit(server, "max_completion_tokens")


async def _limit(server: Server, name: str) -> Finding:
    answer = await server.ask(LONG, **{"max_tokens": None, name: 4})
    reason = answer.choice().get("finish_reason")
    count = answer.usage.get("completion_tokens")
    if count is not None and count > 4:
        return ignored(f"{count} tokens came, 4 were asked for")
    return HONOURED if reason == "length" else wrong(f"finish_reason is {reason!r}, not 'length'")


@check(GROUP, "seed")
async def seed(server: Server) -> Finding:
    """Equal seeds give equal answers, and others give others."""
    fields: dict[str, Any] = {"temperature": 1.5, "max_tokens": 16}
    first, again = await server.ask(seed=1, **fields), await server.chat(seed=1, **fields)
    others = {(await server.chat(seed=number, **fields)).content for number in (2, 3, 4)}
    if first.content != again.content:
        return ignored("the same seed gave two answers")
    return HONOURED if others - {first.content} else wrong("all seeds give one answer")


@check(GROUP, "top_p")
async def top_p(server: Server) -> Finding:
    """A tiny `top_p` leaves only the likeliest token, at any temperature."""
    greedy = (await server.chat(max_tokens=12)).content
    answers = [
        await server.ask(max_tokens=12, temperature=2, top_p=1e-6, seed=number) for number in (1, 2)
    ]
    same = all(answer.content == greedy for answer in answers)
    return HONOURED if same else ignored("temperature 2 with top_p 0.000001 is not greedy")


@check(GROUP, "n")
async def n_choices(server: Server) -> Finding:
    """So many choices come, each with its index."""
    answer = await server.ask(n=3, temperature=1, max_tokens=8)
    answer.choice()
    choices = answer.json()["choices"]
    if len(choices) != 3:
        return ignored(f"{len(choices)} choice came, 3 were asked for")
    indices = sorted(choice["index"] for choice in choices)
    return HONOURED if indices == [0, 1, 2] else wrong(f"the indices are {indices}")


@check(GROUP, "stop")
async def stop(server: Server) -> Finding:
    """The answer ends before the text, which is not part of it."""
    plain = (await server.chat()).content
    words = [word for word in plain.split() if plain.find(word) > 0]
    if not words:
        return wrong("the answer without `stop` has only one word")
    word = words[len(words) // 2]
    answer = await server.ask(stop=[word])
    if answer.content == plain:
        return ignored(f"the answer goes on through {word!r}")
    if word in answer.content or not plain.startswith(answer.content.rstrip()):
        return wrong("the answer does not end right before the text")
    reason = answer.choice().get("finish_reason")
    return HONOURED if reason == "stop" else wrong(f"finish_reason is {reason!r}, not 'stop'")


@check(GROUP, "stop as one string")
async def stop_string(server: Server) -> Finding:
    """`stop` may be a string instead of a list."""
    answer = await server.ask(stop="\n\n\n\n")
    answer.choice()
    return HONOURED


@check(GROUP, "logit_bias")
async def logit_bias(server: Server) -> Finding:
    """A bias of 100 makes a token certain."""
    plain = (await server.chat(max_tokens=4)).content
    answer = await server.ask(max_tokens=4, logit_bias={"100": 100})
    return HONOURED if answer.content != plain else ignored("a bias of 100 changes nothing")


@check(GROUP, "frequency_penalty")
async def frequency_penalty(server: Server) -> Finding:
    """A penalty of 2 changes a greedy answer that repeats itself."""
    return await _penalty(server, "frequency_penalty")


@check(GROUP, "presence_penalty")
async def presence_penalty(server: Server) -> Finding:
    """A penalty of 2 changes a greedy answer that repeats itself."""
    return await _penalty(server, "presence_penalty")


async def _penalty(server: Server, name: str) -> Finding:
    text = "Write the word tick forty times: tick tick tick tick"
    plain = await server.chat(text, max_tokens=40)
    answer = await server.ask(text, max_tokens=40, **{name: 2})
    same = answer.content == plain.content
    return ignored("a penalty of 2 changes nothing") if same else HONOURED


@check(GROUP, "logprobs, top_logprobs")
async def logprobs(server: Server) -> Finding:
    """Each token has its log-probability, its bytes and so many alternatives."""
    answer = await server.ask(max_tokens=6, logprobs=True, top_logprobs=3)
    entries = (answer.choice().get("logprobs") or {}).get("content")
    if not entries:
        return ignored("no log-probabilities came")
    count = answer.usage.get("completion_tokens", len(entries))
    if abs(len(entries) - count) > 1:  # the token that ends the answer may be missing
        return wrong(f"{len(entries)} entries for {count} tokens")
    for entry in entries:
        tops = entry["top_logprobs"]
        if len(tops) != 3:
            return wrong(f"{len(tops)} alternatives, 3 were asked for")
        if sum(math.exp(top["logprob"]) for top in tops) > 1.01:
            return wrong("the probabilities of a token's alternatives exceed 1")
        if "bytes" not in entry:
            return wrong("an entry has no `bytes`")
    text = b"".join(bytes(entry["bytes"] or ()) for entry in entries).decode("utf-8", "replace")
    same = text.strip().startswith(answer.content.strip()[:8])
    return HONOURED if same else wrong(f"the bytes say {text!r}")


@check(GROUP, "prediction")
async def prediction(server: Server) -> Finding:
    """A right prediction is accepted, and counted in the usage."""
    plain = (await server.chat()).content
    answer = await server.ask(prediction={"type": "content", "content": plain})
    if answer.content != plain:
        return wrong("the answer changes")
    details = answer.usage.get("completion_tokens_details") or {}
    accepted = details.get("accepted_prediction_tokens")
    return HONOURED if accepted else ignored("no tokens of the prediction were accepted")
