"""The engine's step for devices that run beside the host: the host works while the device does."""

from stonechat_models.engine.engine import Engine
from stonechat_models.engine.sequence import Sequence
from stonechat_models.engine.step import InFlightStep
from stonechat_models.types import FinishReason, TokenOutput


class OverlappedEngine(Engine):
    """An engine whose steps overlap. It gives the same answers as `Engine`.

    A call of `step` reads the tokens of one step while the device runs the next. It launches the
    sampling of that next step, and schedules and launches a third, whose input tokens only the
    device knows. Items of sequences that turn out to have ended are dropped. The outputs are those
    of the step that was read.
    """

    _sampled: InFlightStep | None = None
    """The older of the two steps in flight."""
    _forwarded: InFlightStep | None = None
    """The newer one, which depends on the tokens of the older one."""

    def _step(self) -> list[TokenOutput]:
        outputs = self._finish_sampled()
        if self._forwarded is not None:
            outputs += self._sample_forwarded(self._forwarded)
        items = self._schedule()
        if items:
            try:
                self._forwarded = self._launch(self.model, items, after=self._sampled)
            except Exception as error:
                outputs += self._finish_sampled()
                outputs += self._run_in_halves(items, error)
        return outputs

    def _finish_sampled(self) -> list[TokenOutput]:
        """Read the older step. If that fails, drop the newer step and run the older one again."""
        step, self._sampled = self._sampled, None
        if step is None:
            return []
        try:
            tokens = step.read()
        except Exception as error:
            self._drop_forwarded()
            return self._run_in_halves(step.items, error)
        return self._postprocess(step.items, tokens)

    def _sample_forwarded(self, step: InFlightStep) -> list[TokenOutput]:
        self._forwarded = None
        try:
            step.sample(self.sampler)
        except Exception as error:
            return self._run_in_halves(step.items, error)
        self._sampled = step
        return []

    def _drop_forwarded(self) -> None:
        step, self._forwarded = self._forwarded, None
        if step is not None:
            for item in step.items:
                self.scheduler.cancel(item)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        super()._finish(sequence, reason)
        if not self.has_work:  # the steps in flight are only for sequences that have ended
            self._sampled = self._forwarded = None
