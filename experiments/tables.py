"""What the docs quote: tables and figures over many runs, with 95% bootstrap intervals.

    python -m experiments.tables                # all of them: results/NAME.md and results/NAME.png
    python -m experiments.tables results runs/class --out x.png         # one, of other runs

An interval is over seeds and tasks; over seeds alone where the tasks tested are all that there are
(cheetah_dir). Differences are paired: the same task and the same seed.
"""
import contextlib
import io
import json
import os
import pathlib
import re

import numpy as np

import envs
from experiments.poses import GROUPS
from experiments.runs import SUFFIXES
from helpers import data, evidence
from helpers.command import BadInput, Parser, one_sentence
from helpers.evidence import as_text, folders_of, interval, numbers, paired, runs_of, signed, vary
from helpers.plot import COLORS, LABELS, band, check_picture, finish, panels, save

NAMES = {name + suffix: label + words for suffix, words in SUFFIXES.items()
         for name, label in LABELS.items()}     # of run folders


# ------------------------------------------------------------------------------ tables and pictures
def by_family(folder, name, width, height, columns=9):
    """A figure, and a panel and a folder for each family that has runs of this name, a pattern."""
    families = [pathlib.Path(folder) / env for env in sorted(envs.FAMILIES)]
    families = [family for family in families if folders_of(family, name)]
    if not families:
        raise BadInput(f"{folder} holds no FAMILY/{name}-sSEED/summary.json; give one that does")
    columns = min(columns, len(families))
    figure, every = panels(width, height, -(-len(families) // columns), columns)
    for axes, family in zip(every, families):
        axes.set_title(family.name)
    for axes in every[len(families):]:
        axes.set_axis_off()
    return figure, list(zip(every, families))


def dots(rows, columns, path, **texts):
    """A row for each label, a color for each column: small dots are tasks, means over the seeds of
    x (seeds, tasks). rows[label] has such an x for each column, and an interval for each, or one
    for all, in black."""
    figure, (axes,) = panels(9, 1.3 + 0.85 * len(rows))
    for y, (parts, intervals) in enumerate(rows.values()):
        heights = y + 0.18 * (np.arange(len(columns)) - (len(columns) - 1) / 2)
        for k, (height, x, column) in enumerate(zip(heights, parts, columns)):
            axes.plot(x.mean(0), [height] * x.shape[1], "o", ms=6, mew=0, color=f"C{k}", alpha=0.5,
                      label=column)
        for k, (mean, low, high) in enumerate(intervals):
            height, color = (heights[k], f"C{k}") if len(intervals) > 1 else (y, "black")
            axes.plot([low, high], [height] * 2, color=color, lw=2)
            axes.plot(mean, height, "|", color=color, ms=10, mew=3)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.4)
    axes.set(**texts)
    finish(figure, path)


def overview(folder, path):
    """Mean returns on held-out tasks of the main methods, as in the README; no figure."""
    names, rows = ("meta_bc", "mt_awr", "no_advantage", "no_wt", "focal", "robust"), []
    file = folder / "trivial.json"
    trivial = json.loads(file.read_text()) if file.exists() else {}
    for env in envs.FAMILIES:
        runs = runs_of(folder / env, "macaw", ("tasks", "behavior_final", "seconds"))
        others = [runs_of(folder / env, name) for name in names]
        if runs:
            after, tasks = numbers(runs, "after"), list(trivial.get(env, {}).values())
            rows.append([f"`{env}`", *(f"{np.mean([task[key] for task in tasks]):.0f}" if tasks
                                       else "" for key in ("standing", "nearest")),
                         f"{numbers(runs, 'before').mean():.0f}",
                         f"**{after.mean():.0f}** ± {after.mean(1).std():.0f}",
                         *(f"{numbers(found, 'after').mean():.0f}" if found else ""
                           for found in others), f"{runs[0]['behavior_final']:.0f}", len(runs),
                         f"{np.median([run['seconds'] for run in runs]):.0f} s"])
    evidence.table(["family", "standing still", "nearest agent", "not adapted", "MACAW",
                    *(LABELS[name] for name in names), "agents' final return", "runs",
                    "one run, one core"], rows)


def rival(name, variant):
    """The runs of MACAW in the same setting as a variant's runs."""
    return "robust" if name.endswith("_robust") else name.replace(variant, "macaw", 1)


# --------------------------------------------------------------------------------- of many families
def results(folder, path):
    """A panel a family with the mean over seeds and the range of MACAW and the baselines; the table
    has the ablations too."""
    figure, every = by_family(folder, "*", 4.5, 3.4, columns=2)
    rows = []
    for axes, family in every:
        tasks = vary(family.name)
        for name, label in NAMES.items():
            runs = runs_of(family, name, ("tasks", "behavior_mean", "behavior_final"))
            if not runs:
                continue
            before, after = numbers(runs, "before"), numbers(runs, "after")
            variant = runs[0]["variant"]
            pair = paired([runs_of(family, rival(name, variant)), runs])
            own = name == rival(name, variant)              # MACAW's own row
            lead = "" if own or not pair.size else signed(pair[0] - pair[1], tasks)
            rows.append([family.name, label, len(runs), f"{before.mean():.1f}",
                         as_text(*interval(after, tasks)), signed(after - before, tasks), lead,
                         *(f"{runs[0][key]:.1f}" for key in ("behavior_mean", "behavior_final"))])
            if name in COLORS:
                axes.axhline(runs[0]["behavior_final"], color="black", ls=":", lw=1)
                steps, y = evidence.while_training(folders_of(family, name))
                band(axes, steps, y.mean(0), y.min(0), y.max(0), COLORS[name], label)
        axes.set_xscale("symlog", linthresh=10)
        axes.set(xlabel="training steps", xlim=(0, None))
    evidence.table(["family", "method", "seeds", "before", "after", "after - before",
                    "MACAW's lead", "data mean", "data end"], rows)
    figure.supylabel("return on held-out tasks, adapted (dotted: agents at their end)",
                     fontsize="medium")
    finish(figure, path, ncols=6)


def early(folder, path):
    """MACAW's lead after so many training steps, paired by seed (paper, Figure 3). metrics.csv has
    means over the tasks, so intervals are over seeds alone."""
    figure, every = by_family(folder, "macaw", 3.5, 3.6)
    rows, shown = [], (100, 250, 500, 1000)
    for axes, family in every:
        for name in ("meta_bc", "mt_awr", "pearl", "focal"):
            pair = evidence.shared([runs_of(family, "macaw"), runs_of(family, name)])
            if not pair[0]:
                continue
            steps, after = evidence.while_training([
                family / f"{run['variant']}-s{run['seed']}" for runs in pair for run in runs])
            mine, theirs = np.split(after, 2)                               # (seeds, steps)
            leads = [interval(x[:, None], tasks=False) for x in (mine - theirs).T]
            texts = {step: as_text(*lead, sign="+") for step, lead in zip(steps, leads)}
            rows.append([family.name, LABELS[name], len(mine), *(texts.get(k, "") for k in shown)])
            band(axes, steps, *np.transpose(leads), COLORS[name], LABELS[name])
        axes.axhline(0, color=COLORS["macaw"], lw=1)
        axes.set_xscale("symlog", linthresh=10)
        axes.set(xlabel="training steps", xlim=(0, None))
    evidence.table(["family", "MACAW's lead over", "seeds", *(f"{k} steps" for k in shown)], rows)
    every[0][0].set_ylabel("MACAW's lead in return")
    finish(figure, path)


def own(folder, path):
    """SMAC and its controls, adapted to two exploration episodes of their own, before and after
    the online phase; a dot a run. Prints means and intervals over seeds."""
    names, rows = ("smac", "frozen", "no_data"), []
    figure, every = by_family(folder, "smac", 4.5, 3.5)
    for axes, family in every:
        suffix = "_robust" if folders_of(family, "frozen_robust") else ""
        for k, name in enumerate(names):
            runs = runs_of(family, name + suffix, ("tasks", "own_before", "own_after"))
            if not runs:
                continue
            x = np.array([numbers(runs, "after").mean(1), *(
                [run[key] for run in runs] for key in ("own_before", "own_after"))])[..., None]
            rows.append([family.name, LABELS[name], len(runs),
                         *(as_text(*interval(seeds, tasks=False)) for seeds in x),
                         signed(x[2] - x[1], tasks=False)])
            place = [k - 0.15, k + 0.15]
            axes.plot(place, x[1:, :, 0], "-o", color=f"C{k}", alpha=0.5)
            axes.plot(place, x[1:].mean(1), "_", color="black", ms=22, mew=3)
        axes.set_xticks(range(len(names)), [LABELS[name].replace(", ", ",\n") for name in names])
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.grid(axis="y", alpha=0.4)
    evidence.table(["family", "variant", "seeds", "buffer's context", "own, before", "own, after",
                    "change"], rows)
    every[0][0].set_ylabel("return on held-out tasks\n(left before, right after the phase)")
    save(figure, path)


# Of each curve: the runs' name, and the returns (tasks, marks) in their summaries
CURVES = {"adapted (MACAW)": ("online", "adapted_tasks"),
          "not adapted": ("online", "unadapted_tasks"),
          "random weights": ("online", "random_tasks"),
          "adapted, authors' recipe": ("online", "authors_tasks"),
          "Offline PEARL": ("online_pearl", "adapted_tasks")}


def online_runs(family):
    """Summaries of a family's runs of fine-tuning by their name; raises BadInput where one is not
    finished, of another method than its name says, or of another length than the others."""
    found = {}
    for name, methods in (("online", ("macaw", "robust")), ("online_pearl", ("pearl",))):
        needed = [returns for other, returns in CURVES.values() if other == name]
        found[name] = runs_of(family, name, ("of", "online_steps", *needed))
        for run in found[name]:
            if run["of"] not in methods:
                raise BadInput(f"{family}/{name}-s{run['seed']} fine-tunes {run['of']}, not "
                               f"{methods[0]}; move it elsewhere")
    evidence.check_alike(sum(found.values(), []), lambda run: (
        run["online_steps"], len(run["adapted_tasks"])))
    return found


def online(folder, path):
    """Return over environment steps of fine-tuning from each start, beside the agents that made the
    data. Prints each family's table, with the change since step 0, paired."""
    figure, every = by_family(folder, "online", 4.2, 4)
    for axes, family in every:
        found, tasks, rows = online_runs(family), vary(family.name), []
        steps = found["online"][0]["online_steps"]
        for k, (label, (name, returns)) in enumerate(CURVES.items()):
            if found[name]:
                x = np.array([run[returns] for run in found[name]])     # (seeds, tasks, marks)
                rows.append([label, len(x), *(as_text(*interval(x[..., m], tasks))
                                              for m in range(len(steps))),
                             signed(x[..., -1] - x[..., 0], tasks)])
                y = x.mean(1)                                           # (seeds, marks)
                band(axes, steps, y.mean(0), y.min(0), y.max(0), f"C{k}", label)
        axes.plot(*life(family.name), ":", color="black", label="the data's agents, from birth")
        axes.set(xlabel="environment steps of a task")
        evidence.table([family.name, "seeds", *map(str, steps), f"{steps[-1]} - 0"], rows)
    every[0][0].set_ylabel("return on held-out tasks")
    finish(figure, path, ncols=3)


def life(env, pieces=20):
    """Environment steps and mean return of the test tasks' agents from birth to end, of which the
    data file holds an evenly spaced part."""
    x, meta = data.read(data.default_path(env), env)
    length, curves = x["episode_length"], []
    returns = np.add.reduceat(x["rewards"], np.cumsum(length) - length)         # of each episode
    for i in envs.FAMILIES[env].test:
        mine = x["episode_task"] == i
        age = np.cumsum(length[mine])
        piece = np.ceil(pieces * age / age[-1]).astype(int) - 1
        curves.append([returns[mine][piece == k].mean() for k in range(pieces)])
        steps = meta["collector"][str(i)]["steps"]
    return (np.arange(pieces) + 0.5) / pieces * steps, np.mean(curves, 0)


# ------------------------------------------------------------------------------------ of one family
def few(folder, path):
    """Return over the number of training tasks, runs NAME_fewN and, of all
    tasks, NAME_aligned where a method has that, else NAME."""
    found = {f.name.split("-s")[0] for f in folders_of(folder, "macaw_few*")}
    columns = {int(name.removeprefix("macaw_few")): name.removeprefix("macaw") for name in found}
    if not columns:
        raise BadInput(f"{folder} holds no macaw_fewN-sSEED; give a family's folder of results")
    family = envs.FAMILIES[folder.name]
    every = len(family.tasks) - len(family.test)
    sizes, rows = sorted([*columns, every]), []
    figure, (axes,) = panels(8, 4.5)
    for name in ("macaw", "mt_awr", "focal", "pearl"):
        whole = name + "_aligned" * bool(folders_of(folder, f"{name}_aligned"))     # its settings
        x = paired(evidence.shared_of(folder, [
            whole if size == every else name + columns[size] for size in sizes]))
        cells = [interval(seeds, vary(folder.name)) for seeds in x]     # of each size
        rows.append([LABELS[name], x.shape[1], *(as_text(*cell) for cell in cells)])
        band(axes, sizes, *np.transpose(cells), COLORS[name], LABELS[name])
    evidence.table(["method", "seeds", *(f"{size} tasks" for size in sizes)], rows)
    axes.set_xscale("log")
    axes.set_xticks(sizes, sizes)
    axes.minorticks_off()
    axes.set(xlabel="training tasks", title=folder.name,
             ylabel="return on held-out tasks, adapted (95% intervals)")
    finish(figure, path)


def whose(folder, path):
    adapted(folder, path, GROUPS, "adapted to the transitions of")


def context(folder, path):
    adapted(folder, path, {"batch8": "8", "batch16": "16", "batch64": "64", "": "256"},
            "adapted to so many transitions")


def adapted(folder, path, groups, title):
    """Return after adaptation of a family's runs by what they adapted to: a run's own summary and
    those in its subfolders. A family may lack a column: there are no independent ants."""
    everyone, tasks, found = folders_of(folder, "*"), vary(folder.name), {}
    columns = {group: label for group, label in groups.items()
               if any((f / group / "summary.json").exists() for f in everyone)}
    rows, leads, drawn = [], [], {}
    for name, label in NAMES.items():
        found[name] = evidence.evaluations(folder, name, columns)
        if len(columns) < 2 or not found[name][0]:
            continue
        x = paired(found[name])                                         # (columns, seeds, tasks)
        cells = [interval(column, tasks) for column in x]
        rows.append([label, x.shape[1], *(as_text(*cell) for cell in cells),
                     signed(x[-1] - x[0], tasks)])
        drawn[label] = x, cells
        variant = found[name][0][0]["variant"]
        macaw = rival(name, variant)
        both = paired(found[macaw] + found[name])
        if macaw != name and both.size:
            leads.append([f"{LABELS[variant]} - {NAMES[macaw]}", both.shape[1], *(
                signed(mine - theirs, tasks) for theirs, mine in zip(*np.split(both, 2)))])
    if not rows:
        raise BadInput(f"{folder} holds no run with summaries in {', '.join(filter(None, groups))}"
                       "; make them with --evaluate CHECKPOINT --out RUN/FOLDER")
    first, *_, last = columns.values()
    evidence.table(["method", "seeds", *columns.values(), f"{last} - {first}"], rows + leads)
    dots(drawn, columns.values(), path, title=title,
         xlabel="return after adaptation (small dots: tasks)")


# ----------------------------------------------------------------------------------- command line
ROOT = pathlib.Path(__file__).parent.parent
KINDS = {f.__name__: f
         for f in (overview, results, early, few, whose, context, own, online)}
FOLDERS = {             # what the docs quote, under results/
    "": ("overview", "results", "early", "own", "online"),
    "cheetah_vel": ("whose", "few", "context"), "ant_dir": ("whose",),
    "walker_params": ("whose",)}


def filled(text):
    """A page's text with each table between <!-- results/NAME.md --> and <!-- end --> made new."""
    return re.sub(r"<!-- (results/\S+) -->\n.*?<!-- end -->", lambda block: (
        f"<!-- {block[1]} -->\n{(ROOT / block[1]).read_text()}<!-- end -->"), text, flags=re.DOTALL)


def write_all():
    """Each table as results/NAME.md, each figure as results/NAME.png; then the pages' tables."""
    root = ROOT / "results"
    for folder, kinds in FOLDERS.items():
        for kind in kinds:
            name = kind if folder in ("", "cheetah_vel") else f"{kind}_{folder}"
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                KINDS[kind](root / folder, root / f"{name}.png")
            (root / f"{name}.md").write_text(printed.getvalue())
            print(f"results/{name}.md", flush=True)
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        page.write_text(filled(page.read_text()))


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("kind", choices=KINDS, nargs="?")
    parser.add_argument("folder", nargs="?", default="results")
    parser.add_argument("--out", default="x.png", help="the figure's file")
    arguments = parser.parse_args()
    with one_sentence(parser.leave):
        if not arguments.kind:
            return write_all()
        check_picture(arguments.out)
        KINDS[arguments.kind](pathlib.Path(os.path.abspath(arguments.folder)), arguments.out)


if __name__ == "__main__":
    main()
