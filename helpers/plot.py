"""Figures and the table of the README, from run folders.

    python -m helpers.plot curve runs/a runs/b --out curve.png      # return over meta-steps
    python -m helpers.plot tasks runs/a runs/b --out tasks.png      # return on each held-out task
    python -m helpers.plot results results --out results.png        # every family; prints a table
    python -m helpers.plot whose results/cheetah_vel --out whose.png    # adapted to whose data
    python -m helpers.plot context results/cheetah_vel --out context.png    # and to how many
    python -m helpers.plot online results --out online.png          # fine-tuning after adaptation
"""
import csv
import json
import pathlib

import numpy as np
from matplotlib.figure import Figure  # not pyplot: needs no display, leaves a notebook's alone

import envs
from helpers import dataset
from helpers.command import BadInput, Parser, check_writable, one_sentence

COLORS = {"macaw": "#0072B2", "meta_bc": "#E69F00", "mt_awr": "#009E73", "focal": "#CC79A7",
          "pearl": "#D55E00", "smac": "#56B4E9"}                # Okabe and Ito
METHODS = {"macaw": "MACAW", "meta_bc": "Meta-BC", "mt_awr": "MT+FT", "focal": "FOCAL",
           "pearl": "Offline PEARL", "pearl_regularised": "PEARL, regularised", "smac": "SMAC",
           "no_advantage": "no advantage head", "no_wt": "no weight transform",
           "no_wt_wide": "no weight transform, equal parameters", "maml_awr": "neither (MAML+AWR)"}
SETTINGS = {"": "", "_one": "; earlier schedule, one inner step",
            "_late": "; earlier schedule, one inner step, D^ts late in life",
            "_whole": "; earlier schedule, D^ts from whole lives",
            "_lives": "; both batches from aligned agents, D^ts from whole lives",
            "_two": "; D^tr from two groups of agents",
            "_aligned": "; both batches from aligned agents",
            "_independent": "; both batches from independent agents",
            "_first": "; adapted to the first third of lives",
            "_middle": "; adapted to the middle third of lives",
            "_last": "; adapted to the last third of lives"}
NAMES = {name + setting: label + words for setting, words in SETTINGS.items()
         for name, label in METHODS.items()}    # of run folders, and in the README


def read(folder, name):
    """One of a run's files: config.json or summary.json as a dict, metrics.csv as columns of
    numbers. Raises BadInput."""
    try:
        with open(pathlib.Path(folder) / name) as file:
            if name.endswith(".json"):
                content = json.load(file)
                needed = ("variant", "env", "seed", *(["tasks"] if "summary" in name else []))
            else:
                rows = list(csv.DictReader(file))
                content = {column: np.array([float(row[column] or "nan") for row in rows])
                           for column in (rows[0] if rows else ())}
                needed = ("step", "before", "after")
            if missing := [key for key in needed if key not in content]:
                raise ValueError(f"no {missing[0]}")
            return content
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"{folder} holds no {name}; name the folder of a run") from None
    except (ValueError, TypeError, KeyError, csv.Error) as problem:
        raise BadInput(f"{folder}/{name} cannot be read ({problem}); make the run anew") from None


def curve(folders, path):
    """Held-out return before and after adaptation over meta-steps, a line a run."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for folder in folders:
        config, table = read(folder, "config.json"), read(folder, "metrics.csv")
        line, = axes.plot(table["step"], table["after"],
                          label=f"{config['variant']}, seed {config['seed']}")
        axes.plot(table["step"], table["before"], ":", color=line.get_color())
    axes.set(xlabel="meta-steps", ylabel="return on held-out tasks",
             title=f"{config['env']}: after (solid) and before (dotted) adaptation")
    axes.legend()
    figure.savefig(path, dpi=150)


def name_of(task, i):
    """What a reader wants to know of a task: its one number, if that is all there is to it."""
    (name, value), *more = task.items()
    return f"{name} {value:g}" if not more and np.isscalar(value) else f"task {i}"


def tasks(folders, path):
    """Return on each held-out task before and after adaptation, a dot a run, beside its agent."""
    runs = [read(folder, "summary.json") for folder in folders]
    ids, env = [task["id"] for task in runs[0]["tasks"]], runs[0]["env"]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, marker, color, label in (
            ("behavior_final", "_", "black", "the agent that made the data, at its end"),
            ("after", "o", COLORS["macaw"], "after adaptation to 256 transitions"),
            ("before", "s", "#999999", "before")):
        y = numbers(runs, name)
        spread = np.linspace(-0.06, 0.06, len(runs)) if len(runs) > 1 else np.zeros(1)
        size = 600 if marker == "_" else 70
        axes.scatter((np.arange(len(ids)) + spread[:, None]).ravel(), y.ravel(), size, color,
                     marker=marker, label=label, linewidths=2.5 if marker == "_" else 0.5,
                     edgecolors=None if marker == "_" else "white")
    axes.set_xticks(range(len(ids)), [name_of(envs.FAMILIES[env].tasks[i], i) for i in ids])
    axes.set(ylabel="return of an episode", title=f"{env}: tasks that were never trained on",
             xlim=(-0.5, len(ids) - 0.5))
    axes.grid(axis="y", alpha=0.4)
    axes.legend(markerscale=0.8)
    figure.savefig(path, dpi=150)


def numbers(runs, name):
    """A number of each task of each run, (seeds, tasks)."""
    return np.array([[task[name] for task in run["tasks"]] for run in runs])


def interval(x):
    """Mean of x (seeds, tasks), and its 95% bootstrap interval over seeds and tasks."""
    random = np.random.default_rng(0)
    means = [x[random.integers(len(x), size=(len(x), 1)),
               random.integers(x.shape[1], size=(1, x.shape[1]))].mean() for _ in range(2000)]
    return x.mean(), *np.quantile(means, (0.025, 0.975))


def as_text(mean, low, high, sign=""):
    """What `interval` gives, for a table; sign="+" for differences."""
    return f"{mean:{sign}.1f} [{low:.1f}, {high:.1f}]"


def signed(difference):
    """A difference's mean and interval, as text."""
    return as_text(*interval(difference), sign="+")


def results(folder, path):
    """A panel a family with the mean over seeds and the range of MACAW and the baselines; prints
    the table of docs/results.md, with the ablations too."""
    families = sorted({f.parent.parent for f in pathlib.Path(folder).glob("*/*/summary.json")})
    if not families:
        raise BadInput(f"{folder} holds no FAMILY/VARIANT-sSEED/summary.json; name such a folder")
    count = (len(families) + 1) // 2                                            # of rows
    figure = Figure(figsize=(9, 3.2 * count + 0.6), layout="constrained")
    panels = figure.subplots(count, 2, squeeze=False).ravel()
    for axes in panels[len(families):]:
        axes.set_axis_off()
    print("| family | method | seeds | before | after | after - before | MACAW's lead | data mean |"
          " data end |\n|---|---|---|---|---|---|---|---|---|")
    for axes, family in zip(panels, families):
        for name, label in NAMES.items():
            folders = [f.parent for f in sorted(family.glob(f"{name}-s*/summary.json"))]
            if not folders:
                continue
            runs = [read(f, "summary.json") for f in folders]
            variant = runs[0]["variant"]
            after, rival = numbers(runs, "after"), family.glob(
                f"macaw{name.removeprefix(variant)}-s*/summary.json")  # in the same setting
            lead, gain = "", after - numbers(runs, "before")
            rivals = [read(f.parent, "summary.json") for f in sorted(rival)][:len(runs)]
            if variant != "macaw" and len(rivals) == len(runs):
                lead = signed(numbers(rivals, "after") - after)
            print(f"| {family.name} | {label} | {len(runs)} | {numbers(runs, 'before').mean():.1f} "
                  f"| {as_text(*interval(after))} | {signed(gain)} | {lead} | "
                  f"{runs[0]['behavior_mean']:.1f} | {runs[0]['behavior_final']:.1f} |")
            if name in COLORS:
                axes.axhline(runs[0]["behavior_final"], color="black", ls=":", lw=1)
                band(axes, [read(f, "metrics.csv") for f in folders], COLORS[name], label)
        axes.set(title=family.name, xlabel="training steps")
        axes.set_xscale("symlog", linthresh=10)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.minorticks_off()
    figure.supylabel("return on held-out tasks, adapted (dotted: agents at their end)",
                     fontsize="medium")
    named = {label: line for axes in panels[:len(families)]
             for line, label in zip(*axes.get_legend_handles_labels())}     # each method once
    figure.legend(named.values(), named, loc="outside lower center", ncols=6)
    figure.savefig(path, dpi=150)


WHOSE = {"aligned": "aligned agents", "others": "independent agents", "strangers": "strangers"}
CONTEXT = {"batch8": "8", "batch16": "16", "batch64": "64", "": "256"}


def judged(folder, path, columns, title):
    """Return after adaptation of a family's runs by what they adapted to: a run's own summary and
    those in its subfolders; every task a dot, its mean over seeds. Prints the table."""
    rows = {}
    for name, label in NAMES.items():
        runs = [[f.parent / column for column in columns]
                for f in sorted(pathlib.Path(folder).glob(f"{name}-s*/summary.json"))]
        if runs and all((f / "summary.json").exists() for run in runs for f in run):
            rows[label] = np.array([numbers([read(f, "summary.json") for f in run], "after")
                                    for run in runs])                   # (seeds, columns, tasks)
    if not rows:
        raise BadInput(f"{folder} holds no run with summaries in {', '.join(filter(None, columns))}"
                       "; make them with --evaluate CHECKPOINT --out RUN/FOLDER")
    figure = Figure(figsize=(9, 1.2 + 0.9 * len(rows)), layout="constrained")
    axes = figure.subplots()
    first, *_, last = columns.values()
    print(f"| method | seeds | {' | '.join(columns.values())} | {last} - {first} |")
    print("|---|---|---|" + "---|" * len(columns))
    for y, (label, x) in enumerate(rows.items()):
        cells = [interval(x[:, k]) for k in range(len(columns))]
        print(f"| {label} | {len(x)} |", *(f"{as_text(*cell)} |" for cell in cells),
              f"{signed(x[:, -1] - x[:, 0])} |")                  # paired
        for k, ((mean, low, high), column) in enumerate(zip(cells, columns.values())):
            color, height = f"C{k}", y + 0.18 * (k - (len(columns) - 1) / 2)
            axes.plot(x[:, k].mean(0), np.full(x.shape[2], height), ".", color=color, alpha=0.5)
            axes.plot([low, high], [height] * 2, color=color, lw=2)
            axes.plot(mean, height, "o", color=color, label=None if y else column)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.4)
    axes.set(xlabel="return after adaptation (small dots: tasks)", title=title)
    figure.legend(loc="outside lower center", ncols=len(columns))
    figure.savefig(path, dpi=150)


STARTS = {"adapted": "adapted (MACAW)", "unadapted": "not adapted", "random": "random weights",
          "authors": "adapted, authors' recipe"}


def online(folder, path):
    """Return over environment steps of fine-tuning, a panel a family, from each start, beside the
    agents that made the data. Prints the table, with each point's change since step 0, paired."""
    families = sorted({f.parent.parent for f in pathlib.Path(folder).glob("*/online-s*/*.json")})
    if not families:
        raise BadInput(f"{folder} holds no FAMILY/online-sSEED/summary.json; name such a folder")
    figure = Figure(figsize=(4.2 * len(families), 4), layout="constrained")
    panels = figure.subplots(1, len(families), squeeze=False)[0]
    for axes, family in zip(panels, families):
        runs = [json.loads(f.read_text()) for f in sorted(family.glob("online-s*/summary.json"))]
        steps = runs[0]["online_steps"]
        print(f"| {family.name} ({len(runs)} seeds) | {' | '.join(map(str, steps))} | "
              f"{steps[-1]} - 0 |\n|{'---|' * (len(steps) + 2)}")
        for k, (start, label) in enumerate(STARTS.items()):
            x = np.array([run[f"{start}_tasks"] for run in runs])       # (seeds, tasks, marks)
            cells = [interval(x[..., m]) for m in range(len(steps))]
            print(f"| {label} | {' | '.join(as_text(*cell) for cell in cells)} | "
                  f"{signed(x[..., -1] - x[..., 0])} |")
            mean = [cell[0] for cell in cells]
            axes.plot(steps, mean, "o-", color=f"C{k}", label=label)
            seeds = x.mean(1)                                           # (seeds, marks)
            axes.fill_between(steps, seeds.min(0), seeds.max(0), color=f"C{k}", alpha=0.2)
        axes.plot(*life(family.name), ":", color="black", label="the data's agents, from birth")
        axes.set(title=family.name, xlabel="environment steps of a task")
    panels[0].set(ylabel="return on held-out tasks")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)


def life(env, pieces=20):
    """Environment steps and mean return of the test tasks' agents over their lives, which the data
    file holds an evenly spaced part of."""
    x, meta = dataset.read(dataset.default_path(env), env)
    family = envs.FAMILIES[env]
    returns = np.add.reduceat(x["rewards"], np.cumsum(x["episode_length"]) - x["episode_length"])
    curves = []
    for i in family.test:
        mine = x["episode_task"] == i
        lived = np.cumsum(x["episode_length"][mine])
        piece = np.ceil(pieces * lived / lived[-1]).astype(int) - 1
        curves.append([returns[mine][piece == k].mean() for k in range(pieces)])
        steps = meta["collector"][str(i)]["steps"]
    return (np.arange(pieces) + 0.5) / pieces * steps, np.mean(curves, 0)


def band(axes, tables, color, label):
    """Mean and range of `after` over runs, at the steps at which all of them were evaluated."""
    x = sorted(set.intersection(*(set(table["step"]) for table in tables)))
    y = np.array([table["after"][np.isin(table["step"], x)] for table in tables])
    axes.plot(x, y.mean(0), color=color, lw=2, label=label)
    axes.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.2)


def growth(sizes, times, path):
    """How a meta-step's time grows: a panel for each size, both axes logarithmic."""
    figure = Figure(figsize=(12, 3), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True)
    for axes, (name, values) in zip(panels, sizes.items()):
        y = [times[f"{name}_{value}_ms"] for value in values]
        axes.loglog(values, y, "o-")
        axes.loglog(values, [y[0] * value / values[0] for value in values], ":", color="gray")
        axes.set(xlabel=name.replace("_", " "))
        ticks = [x for x in values if not any(x < other < 1.2 * x for other in values)]
        axes.set_xticks(ticks, ticks, minor=False)
        axes.minorticks_off()
    panels[0].set(ylabel="ms a meta-step (dotted: linear)")
    figure.savefig(path, dpi=150)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("kind", choices=("curve", "tasks", "results", "whose", "context",
                                         "online"))
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    with one_sentence(parser.leave):
        check_writable(arguments.out)
        if pathlib.Path(arguments.out).suffix not in (".png", ".pdf", ".svg"):
            raise BadInput(f"{arguments.out} is no picture; end it with .png, .pdf or .svg")
        first, out = arguments.folders[0], arguments.out
        match arguments.kind:
            case "curve":
                curve(arguments.folders, out)
            case "tasks":
                tasks(arguments.folders, out)
            case "results":
                results(first, out)
            case "whose":
                judged(first, out, WHOSE, "adapted to the transitions of")
            case "context":
                judged(first, out, CONTEXT, "adapted to so many transitions")
            case "online":
                online(first, out)


if __name__ == "__main__":
    main()
