"""How near decoding comes to what the machine's memory allows.

A decode step reads every weight once, whatever the number of sequences in it, so that steps a
second are at most bandwidth over weight bytes. It says something only when the server runs on the
machine of the load generator, on its CPU.
"""

from collections.abc import Mapping, Sequence

from stonechat_models import measure_bandwidth
from stonechat_server.bench.results import LevelResult, Roofline
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.target import BenchError


def measure_roofline(
    settings: BenchSettings, facts: Mapping[str, str | int | float | bool | None]
) -> Roofline:
    """Measure the bandwidth, and take the weights' size from the settings or the server.

    Raises BenchError when the size is unknown, or the model runs on another kind of device.
    """
    if settings.weight_bytes is not None:
        weight_bytes, source = settings.weight_bytes, "--weight-bytes"
    else:
        stated = facts.get("weight_bytes")
        if not isinstance(stated, int) or stated <= 0:
            raise BenchError("--roofline: the server states no weight size; give --weight-bytes")
        weight_bytes, source = stated, "the server"
    device = str(facts.get("device", "cpu"))
    if not device.startswith("cpu"):
        raise BenchError(
            f"--roofline measures this machine's main memory; the model is on {device}"
        )
    return Roofline(bandwidth=measure_bandwidth(), weight_bytes=weight_bytes, source=source)


def add_shares(levels: Sequence[LevelResult], roofline: Roofline) -> None:
    """Set each level's `roofline_share`: median decode steps a second over the ceiling."""
    for level in levels:
        step = level.tpot.p50
        if step:
            level.roofline_share = (1.0 / step) / roofline.ceiling
