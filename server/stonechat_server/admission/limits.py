"""The bounds of admission, and the cost of requests with several prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

from stonechat_server.admission.fair_queue import Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """Bounds on the requests that run in the engine and on those that wait for it."""

    max_running_sequences: int
    max_running_tokens: int
    max_queued_requests: int
    max_queued_tokens: int
    max_share: float = 0.5
    """The part of the running ones that one request with several prompts may have at a time."""

    def cost_of(self, costs: Sequence[Cost]) -> Cost:
        """The cost of a request with several prompts that have the same number of choices.

        As many prompts run at a time as fit its share, and at least one.
        """
        max_sequences = int(self.max_running_sequences * self.max_share)
        max_tokens = int(self.max_running_tokens * self.max_share)
        num_at_once = running_tokens = 0
        for cost in sorted(costs, key=lambda cost: -cost.tokens):
            fits = (num_at_once + 1) * cost.num_sequences <= max_sequences
            if num_at_once and not (fits and running_tokens + cost.tokens <= max_tokens):
                break
            num_at_once, running_tokens = num_at_once + 1, running_tokens + cost.tokens
        num_tokens = sum([cost.tokens for cost in costs])
        return Cost(num_tokens, running_tokens, num_at_once * costs[0].num_sequences)
