from dummy_task import summary

from projects.bevformer.engine.report import headline_metrics, metrics_table
from projects.bevformer.nuscenes.spec import CLASSES


def rows_of(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_table_has_the_headline_and_a_row_for_every_class():
    figures = summary(nds=0.123456)
    figures["tp_errors"] = dict(figures["tp_errors"], vel_err=1.25)
    figures["mean_dist_aps"]["bus"] = 0.75
    rows = rows_of(metrics_table(figures))
    assert ["mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE"] in rows
    assert ["0.2500", "0.1235", "0.5000", "0.5000", "0.5000", "1.2500", "0.5000"] in rows
    assert ["bus", "0.7500"] + ["0.5000"] * 5 in rows
    assert [row[0] for row in rows if row[0] in CLASSES] == list(CLASSES)


def test_undefined_errors_are_dashes():
    rows = rows_of(metrics_table(summary(nds=0.0)))
    assert ["traffic_cone", "0.2500", "0.5000", "0.5000", "0.5000", "-", "0.5000"] in rows


def test_headline_metrics_have_their_usual_names():
    assert headline_metrics(summary(nds=0.5)) == {
        "mAP": 0.25, "NDS": 0.5, "mATE": 0.5, "mASE": 0.5, "mAOE": 0.5, "mAVE": 0.5, "mAAE": 0.5,
    }  # fmt: skip


def test_metrics_of_other_heads_have_a_table():
    figures = {**summary(nds=0.5), "map_head/iou": 0.25}
    assert ["map_head/iou", "0.2500"] in rows_of(metrics_table(figures))
    assert headline_metrics(figures)["map_head/iou"] == 0.25
    assert rows_of(metrics_table({"map_head/iou": 0.25}))[3] == ["map_head/iou", "0.2500"]
    assert headline_metrics({"map_head/iou": 0.25}) == {"map_head/iou": 0.25}
