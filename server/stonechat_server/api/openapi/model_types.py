"""The bodies of the actions on a model."""

from stonechat_server.schema.base import WireModel


class LoadRequest(WireModel):
    """The model to load."""

    model: str


class UnloadRequest(LoadRequest):
    """The model to unload."""

    force: bool = False
    """End the requests that run on it, in place of waiting for them."""
