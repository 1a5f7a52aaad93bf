"""Files for watching searches with known tools: Prometheus' scrape config and a Grafana dashboard.

    prometheus --config.file="$(python -c 'import vqtune.results.monitoring as m; print(m.PROMETHEUS)')"

In Grafana: Dashboards, New, Import, and the file `DASHBOARD`. The metrics are the gauges of `vqtune.trial.meters`,
which Ray exports with `ray_` before their names. Ray announces its ports only while its dashboard runs, as it does by
default (`--dashboard`).
"""

from pathlib import Path

PROMETHEUS = Path(__file__).parent / "prometheus.yml"
DASHBOARD = Path(__file__).parent / "grafana_dashboard.json"
