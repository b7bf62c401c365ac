"""The body of `POST /v1/completions`.

Types and ranges are checked here. `fields.py` says what each field does.
"""

from typing import Annotated, Any

from pydantic import Field, Tag

from stonechat_server.schema.base import ListOf
from stonechat_server.schema.inputs import BY_KIND, Inputs, TokenIds, inputs_of
from stonechat_server.schema.sampling_fields import MinusOne, SamplingFields, Whole

DEFAULT_MAX_TOKENS = 16
"""The token limit of the published API."""
MAX_PROMPTS = 1024

TextLimit = Annotated[Whole, Field(ge=0)] | MinusOne
"""0 generates nothing, which leaves the prompt and its log-probabilities. -1 is no limit."""
SEVERAL = Field(min_length=1, max_length=MAX_PROMPTS)
Prompt = Annotated[
    Annotated[str, Tag("a text")]
    | Annotated[ListOf[str], SEVERAL, Tag("a list of texts")]
    | Annotated[TokenIds, Tag("a list of ids")]
    | Annotated[ListOf[TokenIds], SEVERAL, Tag("lists of ids")],
    BY_KIND,
]


class CompletionRequest(SamplingFields):
    """One or more prompts to continue, and the options for doing so."""

    prompt: Prompt | None = None
    suffix: str | None = None
    echo: bool | None = None
    best_of: Annotated[Whole, Field(ge=1, le=128)] | None = None
    logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    max_tokens: TextLimit | None = None
    max_completion_tokens: TextLimit | None = None
    n_predict: TextLimit | None = None
    num_predict: TextLimit | None = None
    max_new_tokens: TextLimit | None = None
    max_output_tokens: TextLimit | None = None
    add_special_tokens: bool | None = None

    # Fields of chat completions that ask for what this endpoint has not.
    messages: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    top_logprobs: Any = None

    @property
    def prompts(self) -> Inputs:
        """Each prompt, with its path in the body."""
        return inputs_of("prompt", self.prompt or "")

    @property
    def token_limit(self) -> int | None:
        if self.max_tokens is None and self.max_completion_tokens is None:
            return DEFAULT_MAX_TOKENS
        return super().token_limit

    @property
    def num_logprobs(self) -> int | None:
        if self.logprobs is None and self.num_samples > self.num_choices:
            return 0  # the choices are compared by them
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        if not self.echo or self.logprobs is None:
            return self.prompt_logprobs
        return max(self.logprobs, self.prompt_logprobs or 0)

    @property
    def num_samples(self) -> int:
        return self.best_of or self.num_choices

    @property
    def num_choices(self) -> int:
        """How many texts the answer has for each prompt."""
        return self.n or 1
