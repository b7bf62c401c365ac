"""How close decoding comes to the limit that memory bandwidth sets.

A decode step reads every weight once, however many sequences it has. So the number of steps per
second is at most the bandwidth divided by the bytes of the weights. This holds only if the server
runs on the machine of the load generator, on its CPU.
"""

from collections.abc import Mapping, Sequence

from stonechat_models import measure_bandwidth
from stonechat_server.bench.results import LevelResult, Roofline
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.targets.target import BenchError


def measure_roofline(
    settings: BenchSettings, facts: Mapping[str, str | int | float | bool | None]
) -> Roofline:
    """Measure the bandwidth; the size of the weights is from the settings, or else the server.

    Raises BenchError if the size is unknown or the model does not run on a CPU.
    """
    if settings.weight_bytes is not None:
        weight_bytes, source = int(settings.weight_bytes), "--weight-bytes"
    else:
        server_bytes = facts.get("weight_bytes")
        if not isinstance(server_bytes, int) or server_bytes <= 0:
            raise BenchError("--roofline: the server reports no weight size; give --weight-bytes")
        weight_bytes, source = server_bytes, "the server"
    device = str(facts.get("device", "cpu"))
    if not device.startswith("cpu"):
        raise BenchError(
            f"--roofline measures this machine's main memory; the model runs on {device}"
        )
    return Roofline(bandwidth=measure_bandwidth(), weight_bytes=weight_bytes, source=source)


def add_shares(levels: Sequence[LevelResult], roofline: Roofline) -> None:
    """Set each level's `roofline_share`: median decode steps per second over the ceiling."""
    for level in levels:
        step = level.tpot.p50
        if step:
            level.roofline_share = (1.0 / step) / roofline.ceiling
