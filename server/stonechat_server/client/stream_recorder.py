"""Records one streamed answer as it arrives: times, token counts and how it ended."""

import msgspec


class MeasuredPromptDetails(msgspec.Struct):
    """The part of `usage` that says what of the prompt came from a cache, and what is media."""

    cached_tokens: int | None = None
    image_tokens: int | None = None
    audio_tokens: int | None = None


class MeasuredUsage(msgspec.Struct):
    """Token counts as the server reports them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: MeasuredPromptDetails | None = None

    @property
    def details(self) -> MeasuredPromptDetails:
        """What the server says of the prompt; it may be nothing."""
        return self.prompt_tokens_details or MeasuredPromptDetails()


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[object] | None = None


class _RecordedChoice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_RecordedChoice] | None = None
    usage: MeasuredUsage | None = None
    error: object = None


ChunkDecoder = msgspec.json.Decoder[_Chunk]


def new_chunk_decoder() -> ChunkDecoder:
    """A decoder for the measured fields of a chunk; it skips all others."""
    return msgspec.json.Decoder(_Chunk)


class StreamRecorder:
    """Parses the bytes of one `text/event-stream` body, which `feed` receives in any pieces.

    Times come from the caller's clock. All events of one call of `feed` have the same time.
    """

    __slots__ = (
        "_data",
        "_decoder",
        "_rest",
        "done",
        "error",
        "finish_reasons",
        "reasoning",
        "text",
        "token_times",
        "usage",
    )

    def __init__(self, decoder: ChunkDecoder) -> None:
        self._decoder = decoder
        self._rest = b""
        self._data: list[bytes] = []
        self.token_times: list[float] = []
        """Arrival time of each chunk with generated text or a part of a tool call."""
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.finish_reasons: dict[int, str] = {}
        self.usage: MeasuredUsage | None = None
        self.done = False
        self.error: str | None = None

    def feed(self, body: bytes, now: float) -> None:
        """Parse the next bytes of the body, which arrived at `now`."""
        lines = (self._rest + body if self._rest else body).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:])
            elif self._data and not line.rstrip(b"\r"):
                payload = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                self._data = []
                self._event(payload.strip(), now)

    def _event(self, payload: bytes, now: float) -> None:
        if payload == b"[DONE]":
            self.done = True
            return
        try:
            chunk = self._decoder.decode(payload)
        except msgspec.DecodeError as error:
            self.error = f"a chunk is not valid: {error}"
            return
        if chunk.error is not None:
            self.error = f"the server sent an error event: {chunk.error}"[:500]
        if chunk.usage is not None:
            self.usage = chunk.usage
        for choice in chunk.choices or ():
            if choice.finish_reason is not None:
                self.finish_reasons[choice.index] = choice.finish_reason
            if choice.delta is not None:
                self._delta(choice.delta, now)

    def _delta(self, delta: _Delta, now: float) -> None:
        text = delta.content or delta.refusal
        reasoning = delta.reasoning_content or delta.reasoning
        if text:
            self.text.append(text)
        if reasoning:
            self.reasoning.append(reasoning)
        if text or reasoning or delta.tool_calls:
            self.token_times.append(now)
