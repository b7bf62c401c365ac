import json
import re
from pathlib import Path

from tests.server.bodies import post
from tests.server.conftest import ClientFactory
from tests.server.observability.test_metrics import samples

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_dashboard_queries_metrics_that_exist(new_client: ClientFactory) -> None:
    document = json.loads((DOCS / "grafana-dashboard.json").read_text())
    panels = [panel for panel in document["panels"] if panel["type"] != "row"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    queried_names = {
        name for text in expressions for name in re.findall(r"(?:stonechat:|process_)\w+", text)
    }
    client = new_client()
    post(client)
    served_names = set(samples(client.get("/metrics").text))
    served_names |= {"stonechat:requests_refused_total"}  # has no samples before the first refusal
    assert len(queried_names) > 20
    assert queried_names <= served_names, queried_names - served_names
    places = [tuple(panel["gridPos"][side] for side in "xy") for panel in document["panels"]]
    assert len(set(places)) == len(places)


def test_every_metric_is_documented(new_client: ClientFactory) -> None:
    text = (DOCS / "operations.md").read_text()
    client = new_client()
    post(client)
    for name in samples(client.get("/metrics").text):
        if name.startswith("stonechat:"):
            base_name = re.sub(r"_(bucket|sum|count|created)$", "", name.removeprefix("stonechat:"))
            assert f"`{base_name}" in text or f"`{base_name}_total" in text, name
