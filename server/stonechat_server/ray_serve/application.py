"""The app of Ray Serve: `import_path: stonechat_server.ray_serve.application:build`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stonechat_server.observability.ledger.location import OFF, ledger_place
from stonechat_server.ray_serve.options import AppArguments
from stonechat_server.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application

NAME = "stonechat"
LONGEST_REQUEST_SECONDS = 86_400.0
"""How long a stopping process waits for its requests if the settings have no limit."""
MANY_REQUESTS = 10_000
"""Ray Serve sets no limit of its own: the ingress admits what the engines can run."""
REPORT_SECONDS = 5.0
"""How often the replicas tell the routers which prompts they have."""


def build(args: Mapping[str, Any]) -> "Application":
    """Return the app for `AppArguments`. Raises `ValueError` for values that cannot be."""
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    from stonechat_server.ray_serve.ingress import Ingress
    from stonechat_server.ray_serve.limits import Limits
    from stonechat_server.ray_serve.replica import Replica

    options = AppArguments(**args)
    settings = Settings(**options.settings)
    check(options, settings)
    drain = settings.request_timeout or LONGEST_REQUEST_SECONDS
    common = {
        "max_ongoing_requests": MANY_REQUESTS,
        "graceful_shutdown_timeout_s": drain,
        "logging_config": {"enable_access_log": False},
    }
    replica = serve.deployment(
        Replica,
        **common,
        **_scale(options),
        ray_actor_options={"num_cpus": options.replica_cpus, "num_gpus": options.replica_gpus},
        request_router_config=RequestRouterConfig(
            request_router_class="stonechat_server.ray_serve.router:PrefixRouter",
            request_router_kwargs={"by_prefix": options.prefix_routing},
            request_routing_stats_period_s=REPORT_SECONDS,
        ),
    )
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        **common,
        num_replicas=options.ingresses,
        max_surge_percent=100,  # an update starts the new one before it stops the old one
        ray_actor_options={"num_cpus": 0},
    )
    values = _engine_values(options, settings)
    engines = replica.bind(values, options.token_interval / 1000)
    limits = serve.deployment(Limits, **common, ray_actor_options={"num_cpus": 0}).bind()
    app: Application = ingress.bind(
        engines, dict(options.settings), options.capacity, limits if options.ingresses > 1 else None
    )
    return app


def check(options: AppArguments, settings: Settings) -> None:
    """Raise `ValueError` for settings that several processes cannot share."""
    if settings.tls_cert is not None or settings.tls_key is not None:
        raise ValueError("Ray Serve answers HTTP here; let a proxy in front of it do TLS")
    if settings.models:
        raise ValueError("a deployment serves one model; give each of the others a deployment")
    place = ledger_place(settings.ledger, settings.ledger_journal)
    if options.ingresses > 1 and place is not None and place.file is not None:
        raise ValueError(
            "several ingresses need a ledger that they can share: name a PostgreSQL database "
            "(ledger: postgresql://…), or none (ledger: off)"
        )
    if options.ingresses > 1 and settings.files_dir is None:
        raise ValueError(
            "several ingresses need a folder for files that they can share: name one that all "
            "nodes have (files_dir: /shared/files), or none (files_dir: off)"
        )
    if options.ingresses > 1 and place is None and str(settings.files_dir) != OFF:
        raise ValueError(
            "without a ledger, the list of files is in SQLite, which several ingresses cannot "
            "share: name a PostgreSQL database (ledger: postgresql://…), or keep no files "
            "(files_dir: off)"
        )


def _scale(options: AppArguments) -> dict[str, Any]:
    if options.most_replicas == options.replicas:
        return {"num_replicas": options.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": options.replicas,
            "max_replicas": options.most_replicas,
            "target_ongoing_requests": options.target_requests,
        }
    }


def _engine_values(options: AppArguments, settings: Settings) -> dict[str, Any]:
    """The settings of a replica. It uses no more CPU cores than Ray reserves for it."""
    values = dict(options.settings)
    if settings.threads is None and not options.replica_gpus and options.replica_cpus >= 1:
        values["threads"] = int(options.replica_cpus)
    return values
