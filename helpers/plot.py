"""Figures of runs, from their folders.

    python -m helpers.plot curve runs/a runs/b --out curve.png      # return over meta-steps
    python -m helpers.plot tasks runs/a runs/b --out tasks.png      # return on each held-out task
"""
import pathlib

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure  # not pyplot: needs no display, leaves a notebook's alone

import envs
from helpers.command import Parser, check_writable, one_sentence, replacing
from helpers.evidence import check_alike, numbers, read, trivial, vary

RESULTS = pathlib.Path(__file__).parent.parent / "results"
COLORS = {"macaw": "#0072B2", "robust": "#00416B", "meta_bc": "#E69F00", "mt_awr": "#009E73",
          "focal": "#CC79A7", "pearl": "#D55E00", "smac": "#56B4E9"}    # Okabe and Ito's
LABELS = {"macaw": "MACAW", "robust": "MACAW, robust recipe", "paper": "Algorithm 1 as printed",
          "released": "the released settings", "meta_bc": "Meta-BC", "mt_awr": "MT+FT",
          "focal": "FOCAL",
          "pearl": "Offline PEARL", "pearl_regularised": "PEARL, regularised", "smac": "SMAC",
          "frozen": "SMAC, frozen encoder", "no_data": "SMAC, no new episodes",
          "no_advantage": "no advantage head", "no_wt": "no weight transform",
          "no_wt_wide": "no weight transform, equal parameters", "maml_awr": "neither (MAML+AWR)"}


def check_picture(path):
    """Raises BadInput where no picture can be written."""
    check_writable(path, ".png", ".pdf", ".svg")


def save(figure, path):
    """Writes a picture; an old one stays until the new one is whole."""
    with replacing(path) as file:
        figure.savefig(file, format=pathlib.Path(path).suffix[1:], dpi=150)


def panels(width, height, rows=1, columns=1, **options):
    """A figure, and its panels of this size (inches) in reading order."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options).ravel()


def finish(figure, path, ncols=4):
    """Writes a figure, with each label of its panels once below them."""
    named = {label: line for axes in figure.axes
             for line, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(named.values(), named, loc="outside lower center", ncols=ncols)
    save(figure, path)


def band(axes, x, mean, low, high, color, label):
    axes.plot(x, mean, "o-", ms=3, color=color, lw=2, label=label)
    axes.fill_between(x, low, high, color=color, alpha=0.2)


def configs_of(folders):
    """Configs of runs that may stand in one figure; raises BadInput."""
    configs = [read(folder, "config.json") for folder in folders]
    check_alike(configs, lambda run: (run["env"], run.get("holdout"), run.get("test_batch")))
    return configs


def label_ends(axes, ends, x):
    """Words beside the ends (height, color) of curves, right of x, moved apart where they would
    lie on each other."""
    gap, lowest = 0.07 * np.ptp(axes.get_ylim()), -np.inf
    for words, (y, color) in sorted(ends.items(), key=lambda item: item[1][0]):
        lowest = max(y, lowest + gap)
        axes.annotate(words, (x, lowest), (8, 0), textcoords="offset points", color=color,
                      va="center", fontsize=14, annotation_clip=False)


@rc_context({"font.size": 13})
def curve(folders, path):
    """Held-out return before and after adaptation over meta-steps: a line for each run, a color and
    a label for each variant; beside them what the agents reach that made the data."""
    configs, tables = configs_of(folders), [read(folder, "metrics.csv") for folder in folders]
    variants = list(dict.fromkeys(config["variant"] for config in configs))
    figure, (axes,) = panels(9, 4.5)
    last, ends = max(table["step"][-1] for table in tables), {}
    for config, table in zip(configs, tables):
        variant = config["variant"]
        color = COLORS.get(variant, f"C{variants.index(variant)}")
        axes.plot(table["step"], table["after"], color=color)
        axes.plot(table["step"], table["before"], ":", color=color)
        ends[f"{LABELS.get(variant, variant)}, adapted"] = table["after"][-1], color
        ends["not adapted"] = table["before"][-1], color
    if (pathlib.Path(folders[0]) / "summary.json").exists():
        agents = read(folders[0], "summary.json", ("behavior_final",))["behavior_final"]
        axes.axhline(agents, color="black", lw=1)
        ends["the data's agents"] = agents, "black"
    axes.set(xlim=(None, last or 1), xlabel="meta-steps", ylabel="return on held-out tasks",
             title=f"{configs[0]['env']}: after (solid) and before (dotted) adaptation")
    label_ends(axes, ends, last)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


@rc_context({"font.size": 13})
def tasks(folders, path):
    """Return on each held-out task before and after adaptation, a dot a run, beside its agent."""
    config, runs = configs_of(folders)[0], [read(folder, "summary.json") for folder in folders]
    env, ids = config["env"], [task["id"] for task in runs[0]["tasks"]]
    x = np.arange(len(ids)) + 0.04 * (np.arange(len(runs))[:, None] - len(runs) // 2)
    figure, (axes,) = panels(9, 4.5)
    for name, marker, size, color, label in (
            ("behavior_final", "_", 25, "black", "the agent that made the data, at its end"),
            ("after", "o", 8, COLORS["macaw"],
             f"after adaptation to {config.get('test_batch')} transitions"),
            ("before", "s", 8, "#999999", "before")):
        axes.plot(x.ravel(), numbers(runs, name).ravel(), marker, color=color, ms=size,
                  mew=size / 10, label=label)
    known = trivial(RESULTS, env)
    for name, marker, color, label in (("standing", "x", "#D55E00", "standing still"),
                                       ("nearest", "^", "#009E73", "the nearest training agent")):
        if set(map(str, ids)) <= known.keys():
            axes.plot([known[str(i)][name] for i in ids], marker, color=color, ms=8, mew=2,
                      fillstyle="none", label=label)
    axes.set_xticks(range(len(ids)), [name_of(envs.FAMILIES[env].tasks[i], i) for i in ids])
    what = "tasks that were never trained on" if config.get("holdout") or vary(env) else "its tasks"
    axes.set(xlim=(-0.5, len(ids) - 0.5), ylabel="return of an episode", title=f"{env}: {what}")
    axes.grid(axis="y", alpha=0.4)
    figure.legend(loc="outside lower center", ncols=2, markerscale=0.8, fontsize=12)
    save(figure, path)


def name_of(task, i):
    """What a reader wants to know of a task: its one number, if that is all there is to it."""
    (name, value), *more = task.items()
    return f"{name} {value:g}" if not more and np.isscalar(value) else f"task {i}"


def main():
    parser, kinds = Parser(description=__doc__), dict(curve=curve, tasks=tasks)
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    with one_sentence(parser.leave):
        check_picture(arguments.out)
        kinds[arguments.kind](arguments.folders, arguments.out)


if __name__ == "__main__":
    main()
