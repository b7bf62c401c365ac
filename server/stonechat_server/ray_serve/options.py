"""How many processes serve, and what each of them gets. Flags and the YAML's `args` derive from
this class."""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from stonechat_server.options import BaseOptions, option

GROUP = "Replicas"


class ReplicaOptions(BaseOptions):
    """The replicas, and the ingresses in front of them."""

    replicas: int = option(
        2, "engines to run; with --max-replicas, the fewest", group=GROUP, metavar="N", ge=1
    )
    max_replicas: int | None = option(
        None,
        "start more engines, up to this many, while requests wait (default: as many as --replicas)",
        group=GROUP,
        metavar="N",
        ge=1,
    )
    target_requests: float = option(
        8.0,
        "requests that an engine should have at a time; with more, further engines start, with "
        "fewer some end",
        group=GROUP,
        metavar="N",
        gt=0.0,
    )
    ingresses: int = option(
        1, "processes that answer HTTP and share the engines", group=GROUP, metavar="N", ge=1
    )
    replica_cpus: float = option(
        1.0, "CPU cores that Ray reserves for an engine", group=GROUP, metavar="N", ge=0.0
    )
    replica_gpus: float = option(
        0.0, "GPUs that Ray reserves for an engine", group=GROUP, metavar="N", ge=0.0
    )
    token_interval: float = option(
        20.0,
        "milliseconds from one message of a stream to the next: an engine sends the tokens of "
        "faster steps together, and each message costs an ingress the same (0: send each token)",
        group=GROUP,
        metavar="MILLISECONDS",
        ge=0.0,
    )
    prefix_routing: bool = option(
        True, "choose the engine by load alone, not by the beginning of the prompt", group=GROUP
    )

    @property
    def most_replicas(self) -> int:
        """How many engines there may be."""
        return self.max_replicas or self.replicas

    @property
    def capacity(self) -> float:
        """How many engines one ingress may fill: its share of all."""
        return self.most_replicas / self.ingresses

    @model_validator(mode="after")
    def _check(self) -> "ReplicaOptions":
        if self.most_replicas < self.replicas:
            raise ValueError(
                f"max_replicas ({self.most_replicas}) must not be less than replicas "
                f"({self.replicas})"
            )
        return self


class AppArguments(ReplicaOptions):
    """The `args` of the app in a config file of Ray Serve."""

    settings: Mapping[str, Any] = option({}, "settings of `stonechat serve`, by name")
