"""The rows of a series of rounds: as a table and as a plot."""

import numpy as np

# In the logs, and no metrics.
OURS = ("learning_rate", "round", "density")


def densities(masks):
    """The share of weights that live, by path and over all."""
    by_path = {path: float(mask.mean()) for path, mask in masks.items()}
    live = sum(int(np.count_nonzero(mask)) for mask in masks.values())
    return live / sum(mask.size for mask in masks.values()), by_path


def make_row(round_, masks, epochs):
    """What came of a round.

    Args:
        round_: Integer.
        masks: Dictionary of arrays, by path.
        epochs: List of the logs of each epoch, with `step`, the updates of
            the round until then.
    """
    density, by_path = densities(masks)
    monitor = "val_loss" if any("val_loss" in e for e in epochs) else "loss"
    seen = [e for e in epochs if monitor in e and not np.isnan(e[monitor])]
    best = min(seen, key=lambda e: e[monitor], default={})
    return {
        "round": round_,
        "density": density,
        "densities": by_path,
        "epochs": len(epochs),
        "monitor": monitor,
        "best": best.get(monitor),
        "best_step": best.get("step"),
        "at_best": _given(best),
        "last": _given(epochs[-1] if epochs else {}),
    }


def _given(logs):
    """What Keras said of the epoch."""
    return {k: v for k, v in logs.items() if k not in ("step", *OURS[1:])}


def metric_name(row):
    """The metric to show: of validation, and no loss, if there is one."""
    names = [n for n in row["at_best"] if "loss" not in n and n not in OURS]
    of_validation = [n for n in names if n.startswith("val_")]
    return next(iter(of_validation or names), None)


def header(row):
    metric = metric_name(row)
    columns = ["round", "density", row["monitor"], "step"]
    columns += [metric] if metric else []
    return "  ".join(f"{c:>12}" for c in columns) + "  density by kernel"


def line(row):
    metric = metric_name(row)
    cells = [
        f"{row['round']}",
        f"{100 * row['density']:.2f}%",
        _number(row["best"]),
        f"{row['best_step']}",
    ]
    cells += [_number(row["at_best"].get(metric))] if metric else []
    by_path = " ".join(f"{100 * d:.1f}%" for d in row["densities"].values())
    return "  ".join(f"{c:>12}" for c in cells) + f"  {by_path}"


def _number(value):
    return "-" if value is None else f"{value:.4f}"


def plot(history, path):
    """Density against the metric, and against the step of the least loss."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "`plot` draws with matplotlib: `pip install matplotlib`"
        ) from error
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    density = [100 * row["density"] for row in history]
    metric = metric_name(history[0]) or history[0]["monitor"]
    values = [row["at_best"].get(metric, np.nan) for row in history]
    left.plot(density, values, marker="o")
    left.set_ylabel(f"{metric} at the least {history[0]['monitor']}")
    right.plot(density, [row["best_step"] for row in history], marker="o")
    right.set_ylabel(f"step of the least {history[0]['monitor']}")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("weights left, %")
        axes.set_xticks(density, [f"{d:.3g}" for d in density], rotation=45)
        axes.minorticks_off()
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    figure.savefig(path)
