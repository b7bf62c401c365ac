"""Check an OpenAI-compatible chat endpoint field by field, and compare servers."""

import asyncio
from collections.abc import Sequence

from stonechat_server.client.http import HttpClient
from stonechat_server.options import BaseOptions, OutputFile, option
from stonechat_server.scorecard import (  # they add the checks
    audio,
    form,
    images,
    protocol,
    responses,
    sampling,
)
from stonechat_server.scorecard.outcome import CHECKS, Check, Finding, Verdict
from stonechat_server.scorecard.report import LEGEND, Scorecard, as_json, details, markdown, rows
from stonechat_server.scorecard.server import EARS, EYES, NoAnswerError, Server, find_model, takes
from stonechat_server.terminal.tables import new_console, new_table

__all__ = ["Options", "audio", "form", "images", "protocol", "responses", "run", "sampling"]


class Options(BaseOptions):
    """The options of `stonechat check`."""

    servers: tuple[str, ...] = option(
        ("http://127.0.0.1:8000/v1",), "API roots of the servers, each perhaps as NAME=URL",
        flag="SERVER", nargs="*",
    )  # fmt: skip
    model: str | None = option(None, "model to ask (default: the first that a server lists)")
    api_key: str | None = option(None, "API key", variable="OPENAI_API_KEY")
    verify_tls: bool = option(True, "do not verify the server's certificate", flag="--insecure")
    timeout: float = option(60.0, "longest duration of a request", metavar="SECONDS", gt=0)
    at_once: int = option(2, "checks that run at the same time", metavar="N", ge=1)
    images: bool = option(
        False, "check images also if the server does not say that the model takes them"
    )
    audio: bool = option(
        False, "check audio also if the server does not say that the model takes it"
    )
    responses: bool = option(False, "check the Responses API too, and what it stores")
    json_file: OutputFile | None = option(None, "write all findings as JSON", flag="--json")
    markdown_file: OutputFile | None = option(
        None, "write the table as Markdown", flag="--markdown"
    )


def run(options: Options) -> int:
    """Run the command. Returns 1 if a check finds something wrong.

    Raises `NoAnswerError` if a server cannot be checked.
    """
    console = new_console()
    cards = []
    for text in options.servers:
        url = text
        try:
            label, url = _label_and_url(text)
            cards.append(asyncio.run(examine(label, url, options)))
        except (NoAnswerError, ValueError) as error:
            raise NoAnswerError(f"{url}: {error}") from error
    table = rows(cards)
    console.print(new_table(table[0], table[1:], num_left=2))
    console.print(LEGEND, highlight=False)
    for card in cards:
        console.print(f"\n{card.label}, {card.model}:", highlight=False, markup=False)
        for line in details(card) or ["everything is honoured"]:
            console.print(f"  {line}", highlight=False, markup=False)
    _write(options, cards)
    return 1 if any(card.count(Verdict.WRONG) for card in cards) else 0


def _write(options: Options, cards: Sequence[Scorecard]) -> None:
    if options.json_file is not None:
        options.json_file.write_text(as_json(cards), encoding="utf-8")
    if options.markdown_file is not None:
        options.markdown_file.write_text(markdown(cards), encoding="utf-8")


def _label_and_url(text: str) -> tuple[str, str]:
    name, separator, url = text.partition("=")
    if separator and "/" not in name:
        if not url:
            raise ValueError("give NAME=URL, or the URL alone")
        return name, url
    return text, text


async def examine(label: str, url: str, options: Options) -> Scorecard:
    """Run all checks against a server. Raises NoAnswerError if it does not answer at all."""
    headers = {"Content-Type": "application/json"}
    if options.api_key:
        headers["Authorization"] = f"Bearer {options.api_key}"
    async with HttpClient(url, headers, verify_tls=options.verify_tls) as client:
        model, card = await find_model(client, options.timeout, options.model)
        parts = {"chat"}
        if options.images or takes(card, EYES):
            parts.add("images")
        if options.audio or takes(card, EARS):
            parts.add("audio")
        if options.responses:
            parts.add("responses")
        server = Server(client, model, options.timeout)
        (await server.chat(max_tokens=1)).choice()  # raises if nothing works
        gate = asyncio.Semaphore(options.at_once)

        async def find(check: Check) -> Finding | None:
            if check.part not in parts:
                return None
            async with gate:
                return await check.find(server)

        findings = await asyncio.gather(*map(find, CHECKS))
    return Scorecard(label, url, model, findings)
