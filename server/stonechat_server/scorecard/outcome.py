"""What a check found."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from stonechat_server.scorecard.server import Answer, NoAnswerError, RefusalError, Server


class Verdict(StrEnum):
    """How a server treats a field or a duty."""

    HONOURED = "honoured"
    WRONG = "wrong"
    IGNORED = "ignored"
    REFUSED = "refused"
    UNKNOWN = "unknown"


MARKS = {
    Verdict.HONOURED: "●",
    Verdict.WRONG: "✗",
    Verdict.IGNORED: "○",
    Verdict.REFUSED: "-",
    Verdict.UNKNOWN: "?",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict of a check, and the reason where it is not "honoured"."""

    verdict: Verdict
    detail: str = ""


HONOURED = Finding(Verdict.HONOURED)


def wrong(detail: str) -> Finding:
    """The field has an effect, but not the right one."""
    return Finding(Verdict.WRONG, detail)


def ignored(detail: str) -> Finding:
    """The field has no effect, and the server does not say so."""
    return Finding(Verdict.IGNORED, detail)


def error_shape(answer: Answer, *statuses: int) -> Finding:
    """Judge an error: it must have one of the statuses, and OpenAI's shape."""
    if answer.status == 200:
        return ignored("the request is answered as if it were valid")
    if answer.status not in statuses:
        return wrong(f"status {answer.status}, expected {statuses[0]}")
    error = answer.json().get("error")
    if not isinstance(error, dict):
        return wrong("the body has no `error` object")
    missing = [name for name in ("message", "type", "param", "code") if name not in error]
    if missing:
        return wrong(f"the error lacks {', '.join(missing)}")
    code = error["code"]
    return HONOURED if code is None or isinstance(code, str) else wrong(f"`code` is {code!r}")


Part = Literal["chat", "images", "audio", "responses"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the scorecard."""

    group: str
    name: str
    run: Callable[[Server], Awaitable[Finding]]
    part: Part = "chat"
    """What must be asked for, but for chat."""

    async def find(self, server: Server) -> Finding:
        """Run the check. An answer that cannot be used is "wrong" or "unknown", never an error."""
        try:
            return await self.run(server)
        except RefusalError as error:
            answer = error.answer
            return Finding(Verdict.REFUSED, f"status {answer.status}: {answer.text[:120]}")
        except NoAnswerError as error:
            return Finding(Verdict.UNKNOWN, str(error))
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            return wrong(f"the answer has another shape ({type(error).__name__}: {error})")


CHECKS: list[Check] = []
"""All checks, in the order of the scorecard."""


def check(
    group: str, name: str, *, part: Part = "chat"
) -> Callable[[Callable[[Server], Awaitable[Finding]]], Callable[[Server], Awaitable[Finding]]]:
    """Add a function to the scorecard."""

    def add(
        function: Callable[[Server], Awaitable[Finding]],
    ) -> Callable[[Server], Awaitable[Finding]]:
        CHECKS.append(Check(group, name, function, part))
        return function

    return add
