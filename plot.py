"""Figures from run folders: `python plot.py runs/a runs/b --out curve.png`."""
import argparse
import csv
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


def curve(folders, path):
    """Held-out return before and after adaptation over meta-steps, a line a run."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for folder in map(pathlib.Path, folders):
        config = json.loads((folder / "config.json").read_text())
        with open(folder / "metrics.csv") as file:
            rows = list(csv.DictReader(file))
        x = [int(row["step"]) for row in rows]
        line, = axes.plot(x, [float(row["after"]) for row in rows],
                          label=f"{config['variant']}, seed {config['seed']}")
        axes.plot(x, [float(row["before"]) for row in rows], ":", color=line.get_color())
    axes.set(xlabel="meta-steps", ylabel="return on held-out tasks",
             title=f"{config['env']}: after (solid) and before (dotted) adaptation")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def growth(sizes, times, path):
    """How a meta-step's time grows: a panel for each size, both axes logarithmic."""
    figure, panels = plt.subplots(1, len(sizes), figsize=(12, 3), sharey=True,
                                  layout="constrained")
    for axes, (name, values) in zip(panels, sizes.items()):
        y = [times[f"{name}_{value}_ms"] for value in values]
        axes.loglog(values, y, "o-")
        axes.loglog(values, [y[0] * value / values[0] for value in values], ":", color="gray")
        axes.set(xlabel=name.replace("_", " "))
        axes.set_xticks(values, values, minor=False)
        axes.minorticks_off()
    panels[0].set(ylabel="ms a meta-step (dotted: linear)")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--out", default="curve.png")
    arguments = parser.parse_args()
    curve(arguments.folders, arguments.out)
