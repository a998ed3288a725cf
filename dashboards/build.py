"""Makes the Grafana dashboards: `python -m dashboards.build`. A test compares what is committed."""

from pathlib import Path

from grafana_foundation_sdk.builders import bargauge, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import VisibilityMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef

from dashboards.boards.batch import BATCH
from dashboards.boards.devices import DEVICES
from dashboards.boards.dispatch import DISPATCH
from dashboards.boards.experts import EXPERTS
from dashboards.boards.placement import PLACEMENT
from dashboards.boards.serving import SERVING
from dashboards.panels import Board, Look, Panel

BOARDS = (SERVING, EXPERTS, PLACEMENT, DEVICES, DISPATCH, BATCH)

FOLDER = Path(__file__).parent / "grafana"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHTS = {Look.FIGURE: 4, Look.CURVES: 8, Look.BARS: 8}


def dashboard_json(board: Board) -> str:
    """One dashboard in Grafana's own form."""
    made = Dashboard(board.title).uid(board.uid).description(board.description)
    made = made.tags(["expertmesh"]).time("now-30m", "now").refresh("10s").timezone("browser")
    made = made.with_variable(
        DatasourceVariable("datasource").label("Data source").type("prometheus")
    )
    for panel in board.panels:
        made = made.with_panel(_panel(panel))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def _panel(panel: Panel) -> timeseries.Panel | stat.Panel | bargauge.Panel:
    made: timeseries.Panel | stat.Panel | bargauge.Panel
    if panel.look is Look.CURVES:
        made = timeseries.Panel().fill_opacity(8).show_points(VisibilityMode.NEVER)
    else:
        made = stat.Panel() if panel.look is Look.FIGURE else bargauge.Panel()
    made = made.title(panel.title).description(panel.description).unit(panel.unit).min(0)
    made = made.datasource(SOURCE).height(HEIGHTS[panel.look]).span(panel.width)
    if panel.most is not None:
        made = made.max(panel.most)
    for number, query in enumerate(panel.queries):
        target = Dataquery().expr(query.expr).legend_format(query.legend or "__auto")
        made = made.with_target(target.ref_id(chr(ord("A") + number)))
    return made


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for board in BOARDS:
        (FOLDER / f"{board.uid}.json").write_text(dashboard_json(board))


if __name__ == "__main__":
    main()
