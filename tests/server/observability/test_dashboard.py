import json
import re
from pathlib import Path

from tests.server.bodies import post
from tests.server.conftest import ClientFactory
from tests.server.observability.test_metrics import samples

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_dashboard_asks_for_metrics_that_exist(new_client: ClientFactory) -> None:
    document = json.loads((DOCS / "grafana-dashboard.json").read_text())
    panels = [panel for panel in document["panels"] if panel["type"] != "row"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    asked = {
        name for text in expressions for name in re.findall(r"(?:stonechat:|process_)\w+", text)
    }
    client = new_client()
    post(client)
    served = set(samples(client.get("/metrics").text))
    served |= {"stonechat:requests_refused_total"}  # has no samples before the first refusal
    assert len(asked) > 20
    assert asked <= served, asked - served
    places = [tuple(panel["gridPos"][side] for side in "xy") for panel in document["panels"]]
    assert len(set(places)) == len(places)


def test_every_metric_is_described(new_client: ClientFactory) -> None:
    text = (DOCS / "operations.md").read_text()
    client = new_client()
    post(client)
    for name in samples(client.get("/metrics").text):
        if name.startswith("stonechat:"):
            bare = re.sub(r"_(bucket|sum|count|created)$", "", name.removeprefix("stonechat:"))
            assert f"`{bare}" in text or f"`{bare}_total" in text, name
