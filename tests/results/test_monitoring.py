"""The scrape config and the dashboard name metrics that a search really exports."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from vqtune.results.monitoring import DASHBOARD, PROMETHEUS

METERS = Path(__file__).parents[2] / "vqtune" / "trial" / "meters.py"
SEARCH = """
    import sys, time
    from pathlib import Path
    from vqtune.search.cluster import cluster, session_root
    with cluster(None, dashboard=True):
        import ray

        @ray.remote(num_cpus=0.1)
        class Trial:
            def report(self, epoch):
                from vqtune.trial.meters import show
                show("demo", 7, epoch, {"score": 0.25, "perplexity": 40.0, "recon": float("nan")})

        trial = Trial.remote()
        print(session_root(), flush=True)
        for epoch in range(1, 90):
            ray.get(trial.report.remote(epoch))
            time.sleep(1)
"""


def _expressions() -> list[str]:
    board = json.loads(DASHBOARD.read_text())
    queries = [variable["definition"] for variable in board["templating"]["list"] if "definition" in variable]
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]] + queries


def test_the_dashboard_asks_only_for_metrics_that_exist_and_are_kept() -> None:
    exported = {f"ray_vqtune_{name}" for name in re.findall(r'^    "(\w+)":', METERS.read_text(), re.M)}
    asked = set(re.findall(r"ray_\w+", " ".join(_expressions())))
    assert exported <= asked, "a gauge that nobody looks at"
    assert {name for name in asked if "vqtune" in name} == exported
    job = yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"][0]
    keep = next(rule["regex"] for rule in job["metric_relabel_configs"] if rule["action"] == "keep")
    assert [name for name in asked if not re.fullmatch(keep, name)] == []


def test_panels_stand_beside_each_other() -> None:
    board = json.loads(DASHBOARD.read_text())
    cells = [
        (x, y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus on this machine")
def test_prometheus_scrapes_a_live_trial(tmp_path: Path) -> None:
    # A short folder of its own: other searches on this machine announce their ports in theirs.
    home = tempfile.mkdtemp(prefix="vq", dir="/tmp")
    search = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SEARCH)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"TMPDIR": home},
    )
    server = None
    try:
        assert search.stdout
        root = Path(search.stdout.readline().strip())
        config = yaml.safe_load(PROMETHEUS.read_text())
        config["global"]["scrape_interval"] = "2s"
        config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(root / "prom_metrics_service_discovery.json")]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        options = ["--web.listen-address=127.0.0.1:9097", f"--storage.tsdb.path={tmp_path / 'data'}"]
        server = subprocess.Popen(
            ["prometheus", f"--config.file={tmp_path / 'prometheus.yml'}", *options], stderr=subprocess.DEVNULL
        )
        score = _wait_for('ray_vqtune_score{study="demo", trial="7"}')
        assert float(score["value"][1]) == 0.25
        assert not [name for name in score["metric"] if name.startswith("otel_")]
        assert float(_wait_for('ray_vqtune_epoch{study="demo"}')["value"][1]) >= 1
        assert _query("ray_vqtune_recon") == [], "a NaN is not exported"
        for expression in _expressions():
            if not expression.startswith("label_values"):
                _query(expression.replace("$study", ".*").replace("$trial", ".*"))  # raises where it does not parse
    finally:
        for process in (server, search):
            if process:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:  # a busy machine; what was to be seen has been seen
                    process.kill()
                    process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _query(expression: str) -> list:  # type: ignore[type-arg]
    url = "http://127.0.0.1:9097/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]["result"]


def _wait_for(expression: str) -> dict:  # type: ignore[type-arg]
    for _ in range(80):
        try:
            if found := _query(expression):
                return found[0]
        except urllib.error.URLError:
            pass
        time.sleep(1)
    raise AssertionError(f"{expression} has not arrived")
