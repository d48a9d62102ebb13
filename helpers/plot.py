"""Figures of runs, from their folders.

    python -m helpers.plot curve runs/a runs/b --out curve.png      # return over meta-steps
    python -m helpers.plot tasks runs/a runs/b --out tasks.png      # return on each held-out task
"""
import csv
import json
import pathlib

import numpy as np
from matplotlib.figure import Figure  # not pyplot: needs no display, leaves a notebook's alone

import envs
from helpers.command import BadInput, Parser, check_writable, one_sentence, replacing
from helpers.data import is_number

COLORS = {"macaw": "#0072B2", "meta_bc": "#E69F00", "mt_awr": "#009E73", "focal": "#CC79A7",
          "pearl": "#D55E00", "smac": "#56B4E9"}                # Okabe and Ito
METHODS = {"macaw": "MACAW", "meta_bc": "Meta-BC", "mt_awr": "MT+FT", "focal": "FOCAL",
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


def is_list(x):
    return isinstance(x, list) and len(x) > 0


def are_numbers(x):
    return is_list(x) and all(map(is_number, x))


def fits(content, name):
    """Whether a config or a summary holds this, as helpers/run.py and experiments.py write it."""
    x = content.get(name)
    if name == "env":
        return isinstance(x, str) and x in envs.FAMILIES
    if name in ("variant", "of"):
        return isinstance(x, str) and x.isprintable()               # it stands in a sentence
    if name == "seed":
        return type(x) is int                                       # True is an int, too
    if name == "online_steps":
        return are_numbers(x)
    if name.endswith("_tasks"):                                     # of each task, at each mark
        return is_list(x) and all(are_numbers(row) and len(row) == len(content["online_steps"])
                                  for row in x)
    if name == "tasks":
        ids = range(len(envs.FAMILIES[content["env"]].tasks))
        return is_list(x) and all(
            isinstance(task, dict) and type(task.get("id")) is int and task["id"] in ids
            and all(is_number(task.get(key)) for key in ("before", "after", "behavior_final"))
            for task in x)
    return is_number(x)


def read(folder, name, needed=("tasks",)):
    """One of a run's files: config.json or summary.json as a dict, metrics.csv as columns of
    numbers. Raises BadInput where it lacks what each such file has, or a summary what is needed."""
    try:
        with open(pathlib.Path(folder) / name) as file:
            if name.endswith(".json"):
                content = json.load(file)
                if not isinstance(content, dict):
                    raise ValueError("no dictionary")
                wanted = ("env", "variant", "seed", *(needed if "summary" in name else ()))
                lacks = next((key for key in wanted if not fits(content, key)), None)
            else:
                rows = list(csv.DictReader(file))
                content = {column: np.array([float(row[column] or "nan") for row in rows])
                           for column in (rows[0] if rows else ())}
                wanted = ("step", "before", "after")
                lacks = next((key for key in wanted if key not in content), None)
            if lacks:
                raise ValueError(f"no {lacks} that can be used")
            return content
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"{folder} holds no {name}; name the folder of a run") from None
    except (ValueError, TypeError, KeyError, csv.Error) as problem:
        raise BadInput(f"{folder}/{name} cannot be read ({problem}); finish the run or make it "
                       "anew") from None


def label_of(run):
    return f"{run['variant']}, seed {run['seed']}"


def vary(env):
    """Whether a family's test tasks stand for others: not where they are all that there are."""
    family = envs.FAMILIES[env]
    return len(family.test) < len(family.tasks)


def check_alike(runs, what):
    """Raises BadInput where what(run), of configs or summaries, is not the same for all of them."""
    for run in runs[1:]:
        if what(run) != what(runs[0]):
            one, other = (f"{label_of(x)} on {x['env']}" for x in (runs[0], run))
            raise BadInput(f"{one}, and {other}, are of different families, held-out tasks "
                           "or sizes of D^tr; leave one of them out")


def label_ends(axes, ends, x):
    """Words beside the ends (height, color) of curves, right of x, moved apart where they would
    lie on each other."""
    gap, lowest = 0.07 * np.ptp(axes.get_ylim()), -np.inf
    for words, (y, color) in sorted(ends.items(), key=lambda item: item[1][0]):
        lowest = max(y, lowest + gap)
        axes.annotate(words, (x, lowest), (8, 0), textcoords="offset points", color=color,
                      va="center", fontsize=14, annotation_clip=False)


def setting(config):
    """What runs in one figure have in common."""
    return config["env"], config.get("holdout"), config.get("test_batch")


def curve(folders, path):
    """Held-out return before and after adaptation over meta-steps, a line a run, a color and a
    label at its end a variant."""
    configs = [read(folder, "config.json") for folder in folders]
    check_alike(configs, setting)
    variants = {}                           # of each its seeds and its tables
    for folder, config in zip(folders, configs):
        variants.setdefault(config["variant"], []).append(
            (config["seed"], read(folder, "metrics.csv")))
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes, ends, last = figure.subplots(), {}, 0
    for k, (variant, runs) in enumerate(variants.items()):
        color = COLORS.get(variant, f"C{k}")
        for _, table in runs:
            axes.plot(table["step"], table["after"], color=color, lw=2 if len(runs) == 1 else 1)
            axes.plot(table["step"], table["before"], ":", color=color, lw=1)
            last = max(last, *table["step"])
        words = f"seed {runs[0][0]}" if len(runs) == 1 else f"{len(runs)} runs"
        ends[f"{METHODS.get(variant, variant)}, {words}"] = np.mean(
            [table["after"][-1] for _, table in runs]), color
    axes.set_xlim(right=max(last, 1))
    label_ends(axes, ends, last)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("meta-steps", fontsize=14)
    axes.set_ylabel("return on held-out tasks", fontsize=14)
    axes.set_title(f"{configs[0]['env']}: after (solid) and before (dotted) adaptation",
                   fontsize=14)
    axes.tick_params(labelsize=13)
    save(figure, path)


def name_of(task, i):
    """What a reader wants to know of a task: its one number, if that is all there is to it."""
    (name, value), *more = task.items()
    return f"{name} {value:g}" if not more and np.isscalar(value) else f"task {i}"


def tasks(folders, path):
    """Return on each held-out task before and after adaptation, a dot a run, beside its agent."""
    runs = [read(folder, "summary.json") for folder in folders]
    configs = [read(folder, "config.json") for folder in folders]
    check_alike(configs, setting)
    adapted = f"after adaptation to {configs[0].get('test_batch')} transitions"
    ids, env = [task["id"] for task in runs[0]["tasks"]], runs[0]["env"]
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, marker, color, label in (
            ("behavior_final", "_", "black", "the agent that made the data, at its end"),
            ("after", "o", COLORS["macaw"], adapted),
            ("before", "s", "#999999", "before")):
        y = numbers(runs, name)
        spread = np.linspace(-0.06, 0.06, len(runs)) if len(runs) > 1 else np.zeros(1)
        size = 600 if marker == "_" else 70
        axes.scatter((np.arange(len(ids)) + spread[:, None]).ravel(), y.ravel(), size, color,
                     marker=marker, label=label, linewidths=2.5 if marker == "_" else 0.5,
                     edgecolors=None if marker == "_" else "white")
    axes.set_xticks(range(len(ids)), [name_of(envs.FAMILIES[env].tasks[i], i) for i in ids])
    axes.set_ylabel("return of an episode", fontsize=14)
    held_out = configs[0].get("holdout") or vary(env)
    axes.set_title(f"{env}: " + ("tasks that were never trained on" if held_out else "its tasks"),
                   fontsize=14)
    axes.set_xlim(-0.5, len(ids) - 0.5)
    axes.tick_params(labelsize=13)
    axes.grid(axis="y", alpha=0.4)
    figure.legend(loc="outside lower center", ncols=3, markerscale=0.8, fontsize=12)
    save(figure, path)


def numbers(runs, name):
    """A number of each task of each run, (seeds, tasks); raises BadInput where tasks differ."""
    check_alike(runs, lambda run: (run["env"], [task["id"] for task in run["tasks"]]))
    return np.array([[task[name] for task in run["tasks"]] for run in runs])


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
    save(figure, path)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("kind", choices=("curve", "tasks"))
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    with one_sentence(parser.leave):
        check_picture(arguments.out)
        draw = curve if arguments.kind == "curve" else tasks
        draw(arguments.folders, arguments.out)


if __name__ == "__main__":
    main()
