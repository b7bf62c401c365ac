"""Calls the replicas through a handle of Ray Serve."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from stonechat_server.ray_serve.engine import Stream


class RayReplicas:
    """See `engine.Replicas`. Values travel over gRPC: an object reference for each would cost
    three times as much."""

    def __init__(self, handle: "DeploymentHandle[Any]") -> None:
        self._calls = handle.options(_by_reference=False)
        self._streams = handle.options(stream=True, _by_reference=False)

    def generate(self, request: bytes, hashes: bytes) -> "Stream":
        stream: Stream = self._streams.generate.remote(request, hashes)
        return stream

    def end_choice(self, request_id: str, index: int, replica: str) -> None:
        self._calls.end_choice.remote(request_id, index, replica=replica)

    async def describe(self) -> bytes:
        """The encoded `Description` of one of the replicas, as soon as there is one."""
        description: bytes = await self._calls.describe.remote()
        return description
