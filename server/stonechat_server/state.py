"""What the routes share: handed in by `create_app`, never global."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from starlette.requests import Request

if TYPE_CHECKING:
    from stonechat_server.admission import Admission, FinishedSink
    from stonechat_server.auth import Authenticator
    from stonechat_server.engine import EngineLike
    from stonechat_server.settings import Settings
    from stonechat_server.templates import Templates


@dataclass(slots=True, kw_only=True)
class ServerState:
    """One server's collaborators. `is_ready` is false before start and while stopping."""

    settings: "Settings"
    engine: "EngineLike"
    templates: "Templates"
    authenticator: "Authenticator"
    admission: "Admission"
    sinks: "Sequence[FinishedSink]"
    model_names: tuple[str, ...]
    fingerprint: str
    created: int
    is_ready: bool = False


def server_state(request: Request) -> ServerState:
    """The state of the app that serves this request."""
    return cast(ServerState, request.app.state.server)
