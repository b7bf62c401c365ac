"""The objects that the routes share. `create_app` makes them; none is global."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from starlette.requests import Request

from stonechat_server.serving.lifecycle import Phase

if TYPE_CHECKING:
    from stonechat_server.access.auth import Authenticator
    from stonechat_server.admission.records import FinishedSink
    from stonechat_server.engine_protocol import EngineLike
    from stonechat_server.prompt.template_choice import Templates
    from stonechat_server.request.prepare_pool import Preparations
    from stonechat_server.serving.gate import Operations
    from stonechat_server.settings import Settings
    from stonechat_server.structured.answer_spec import Structure


@dataclass(slots=True, kw_only=True)
class Services:
    """The shared objects of one server."""

    settings: "Settings"
    engine: "EngineLike"
    templates: "Templates"
    structure: "Structure"
    authenticator: "Authenticator"
    operations: "Operations"
    preparations: "Preparations"
    sinks: "Sequence[FinishedSink]"
    model_names: tuple[str, ...]
    fingerprint: str
    created: int

    @property
    def is_ready(self) -> bool:
        """False before the start is complete and while draining."""
        return self.operations.lifecycle.phase is Phase.SERVING


def services_of(request: Request) -> Services:
    """The shared objects of the server that handles this request."""
    return cast(Services, request.app.state.server)
