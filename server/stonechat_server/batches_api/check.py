"""Checks the input of a batch before anything of it runs, and names what is wrong by its line."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from stonechat_server.batches_api.lines import ENDPOINTS, ENVELOPE_BYTES, numbered_lines
from stonechat_server.errors import APIError

MAX_REQUESTS = 50_000
MAX_PROBLEMS = 50
"""So many are listed; the check then ends."""
MAX_ID_LENGTH = 512

ModelOf = Callable[[str | None], str]
"""The name of the model that a request gets. Raises `APIError` 404."""


class Problem(msgspec.Struct, kw_only=True):
    """Something that is wrong with the input."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None
    """From 1."""


class _Body(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw(b"null")
    stream: msgspec.Raw = msgspec.Raw(b"null")


@dataclass(slots=True)
class CheckedInput:
    """What the check has found. The input may run if there are no problems."""

    num_requests: int = 0
    model: str | None = None
    """The one that all requests get."""
    problems: list[Problem] = field(default_factory=list)


@dataclass(slots=True)
class InputCheck:
    """Checks an input: `check` may be called once. It blocks, and may take seconds."""

    endpoint: str | None
    """The one that all requests must have; None: that of the first request."""
    model_of: ModelOf
    max_body_bytes: int
    found: CheckedInput = field(default_factory=CheckedInput, init=False)
    ids: set[str] = field(default_factory=set, init=False)

    def check(self, path: Path) -> CheckedInput:
        """Check the file. Raises `OSError` if it cannot be read."""
        max_bytes = self.max_body_bytes + ENVELOPE_BYTES
        for number, line in numbered_lines(path, max_bytes):
            self.found.num_requests += 1
            if self.found.num_requests > MAX_REQUESTS:
                self._add("too_many_tasks", f"A batch has at most {MAX_REQUESTS} requests.", number)
                break
            if len(line) > max_bytes:
                message = (
                    f"The line is longer than {max_bytes} bytes, which --max-body-size sets, and "
                    "for a model that takes images or audio --max-images-size too."
                )
                self._add("line_too_long", message, number)
            else:
                self._check_line(number, line)
            if len(self.found.problems) >= MAX_PROBLEMS:
                break
        if not self.found.num_requests:
            self._add("empty_file", "The input file has no requests.", None)
        return self.found

    def _check_line(self, number: int, line: bytes) -> None:
        try:
            value = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            message = "This line is not a JSON object in UTF-8."
            self._add("invalid_json_line", message, number)
            return
        for name in ("custom_id", "method", "url", "body"):
            if name not in value:
                message = f"Missing required parameter: '{name}'."
                self._add("missing_required_parameter", message, number, name)
                return
        self._check_id(number, _text(value["custom_id"]))
        if _text(value["method"]) != "POST":
            self._add("invalid_method", "The method must be POST.", number, "method")
        self._check_url(number, _text(value["url"]))
        self._check_body(number, value["body"])

    def _check_id(self, number: int, custom_id: str | None) -> None:
        if not custom_id or len(custom_id) > MAX_ID_LENGTH:
            message = f"The custom_id must be a text of 1 to {MAX_ID_LENGTH} characters."
            self._add("invalid_custom_id", message, number, "custom_id")
        elif custom_id in self.ids:
            message = f"The custom_id '{custom_id}' occurs in an earlier line too."
            self._add("duplicate_custom_id", message, number, "custom_id")
        else:
            self.ids.add(custom_id)

    def _check_url(self, number: int, url: str | None) -> None:
        if self.endpoint is None and url in ENDPOINTS:
            self.endpoint = url
        if url is None or url != self.endpoint:
            wanted = self.endpoint or f"one of {', '.join(ENDPOINTS)}"
            message = f"The url must be the endpoint of the batch: {wanted}."
            self._add("invalid_url", message, number, "url")

    def _check_body(self, number: int, raw: msgspec.Raw) -> None:
        try:
            body = msgspec.json.decode(raw, type=_Body)
        except (msgspec.DecodeError, RecursionError):
            self._add("invalid_body", "The body must be a JSON object.", number, "body")
            return
        if bytes(body.stream).strip() == b"true":
            message = "A batch has no streams: leave out `stream`."
            self._add("invalid_body", message, number, "body.stream")
        name = _text(body.model)
        if name is None and bytes(body.model).strip() != b"null":
            return  # the answer to the request says what is wrong
        try:
            model = self.model_of(name)
        except APIError as error:
            self._add(error.code or "model_not_found", error.message, number, "body.model")
            return
        if self.found.model is None:
            self.found.model = model
        elif model != self.found.model:
            message = f"All requests of a batch must have the same model, here {self.found.model}."
            self._add("mismatched_model", message, number, "body.model")

    def _add(self, code: str, message: str, line: int | None, param: str | None = None) -> None:
        self.found.problems.append(Problem(code=code, message=message, param=param, line=line))


def _text(raw: msgspec.Raw) -> str | None:
    """The value if it is a text."""
    try:
        return msgspec.json.decode(raw, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
