"""Ray Serve's router of calls to replicas: by the prompt's beginning, and by load.

Each ingress has its own router. What a router does not know of the other ingresses, the replicas
tell it every few seconds: the prompts that they saw, and how many requests they run.
"""

from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from stonechat_server.ray_serve.prefixes import PrefixTable, split_hashes


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Sends a call to the replica that `PrefixTable` names, or to the one that the call names."""

    def initialize_state(self, by_prefix: bool = True, **table: Any) -> None:
        """Without `by_prefix` the load alone decides. `table` has the options of `PrefixTable`."""
        self._by_prefix = by_prefix
        self._table = PrefixTable(**table)
        self._num_running: Counter[str] = Counter()
        self._reports: dict[str, bytes] = {}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The replicas in the order in which they should be tried."""
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if pending_request is None or not by_name:
            return [list(candidate_replicas)]
        named = pending_request.kwargs.get("replica")
        if named is not None:
            return [[by_name[named]]] if named in by_name else [list(candidate_replicas)]
        hashes = self._hashes(pending_request)
        loads = {name: self._load(replica) for name, replica in by_name.items()}
        ranked = [by_name[name] for name in self._table.rank(hashes, loads)]
        ranked.sort(key=lambda replica: not replica.routing_stats.get("is_alive", True))
        return [[replica] for replica in ranked]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """Note which replica sees the prompt."""
        self._num_running[replica_id.unique_id] += 1
        self._table.note(self._hashes(pending_request), replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Note that the replica has one request less."""
        self._num_running[replica_id.unique_id] -= 1

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Note what the replicas report, and forget those that are no more."""
        super().update_replicas(replicas)
        reports = {r.replica_id.unique_id: r.routing_stats.get("prompts", b"") for r in replicas}
        for name, report in reports.items():
            if report != self._reports.get(name, b""):
                self._table.note_report(split_hashes(report), name)
        self._reports = reports
        for name in [name for name in self._num_running if name not in reports]:
            del self._num_running[name]

    def _hashes(self, request: PendingRequest) -> list[bytes]:
        is_prompt = self._by_prefix and request.metadata.call_method == "generate"
        return split_hashes(request.args[1]) if is_prompt else []

    def _load(self, replica: RunningReplica) -> int:
        """The requests that a replica runs: those of this router, or what the replica last said."""
        said: int | None = self.replica_queue_len_cache.get(replica.replica_id)
        if said is None:
            said = int(replica.routing_stats.get("num_running", 0))
        return max(self._num_running[replica.replica_id.unique_id], said)
