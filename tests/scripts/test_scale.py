"""The simulation of many engines shows what it is for."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))
import scale  # type: ignore[import-not-found]


def simulate(replicas: int, ingresses: int = 1, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "engine": "h200-8b", "way": "ingress", "routing": "prefix", "load": 0.5, "seconds": 6.0,
        "interval": 20.0, "seed": 1,
    }  # fmt: skip
    return scale.Simulation(Namespace(**(values | changes)), replicas, ingresses).run()


def test_a_run_is_repeatable() -> None:
    first, second = simulate(1), simulate(1)
    assert first == second
    assert first.tokens > 0
    assert simulate(1, seed=2) != first


def test_one_ingress_saturates_and_several_or_none_do_not() -> None:
    """Six engines make more messages than one core passes on."""

    def typical_delay(*counts: int, **changes: Any) -> float:
        return float(scale.percentile(simulate(*counts, **changes).delays, 0.5))

    options = {"load": 0.9, "interval": 0.0}
    assert typical_delay(6, 1, **options) > 0.2
    assert typical_delay(6, 12, **options) < 0.05
    assert typical_delay(6, 1, way="direct", **options) == 0.0


def test_prefixes_find_more_in_the_cache_than_loads_do() -> None:
    def cached(**changes: Any) -> float:
        result = simulate(6, load=0.1, engine="cpu-135m", seconds=120.0, **changes)
        return float(result.cached / result.asked)

    assert cached() > cached(routing="load") + 0.15


@pytest.mark.parametrize(("share", "value"), [(0.1, 1.0), (0.5, 2.0), (1.0, 3.0)])
def test_percentiles_are_weighted(share: float, value: float) -> None:
    assert scale.percentile([(3.0, 1), (1.0, 4), (2.0, 5)], share) == value
