"""Metrics as plain text."""

from terminaltables import AsciiTable

# nuScenes name of a true-positive error -> name in papers and tables.
TP_ERRORS = {
    "trans_err": "mATE",
    "scale_err": "mASE",
    "orient_err": "mAOE",
    "vel_err": "mAVE",
    "attr_err": "mAAE",
}


def _number(value):
    """Four decimals; `-` where the benchmark defines none (NaN, e.g. the velocity of a cone)."""
    return "-" if value is None or value != value else f"{value:.4f}"


def metrics_table(summary):
    """Overall and per-class figures.

    Args:
        summary: content of `metrics_summary.json`.

    Returns:
        str: two tables under each other.
    """
    overall = [["mAP", "NDS", *TP_ERRORS.values()]]
    overall.append(
        [_number(summary["mean_ap"]), _number(summary["nd_score"])]
        + [_number(summary["tp_errors"][name]) for name in TP_ERRORS]
    )
    classes = [["class", "AP", *(name[1:] for name in TP_ERRORS.values())]]
    for class_name, ap in summary["mean_dist_aps"].items():
        errors = summary["label_tp_errors"][class_name]
        classes.append([class_name, _number(ap)] + [_number(errors[name]) for name in TP_ERRORS])
    return f"{AsciiTable(overall).table}\n{AsciiTable(classes).table}"
