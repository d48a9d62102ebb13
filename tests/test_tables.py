"""Tables and figures that the docs quote: each test is named after the claim it would refute."""
import json
import math
import re

import conftest
import numpy as np
import pytest
from conftest import HERE, command_line
from matplotlib.figure import Figure

import envs
from experiments import poses, tables, trivial
from helpers import data, evidence, plot


def keep(folder, name, number, after=0.0, columns=(), **changes):
    """A run as helpers/run.py writes it, and its evaluations in subfolders; `after` is a number for
    each test task. What is changed to None is left out."""
    test = envs.FAMILIES[folder.name].test
    tasks = [dict(id=i, before=0.0, after=float(a), behavior_mean=1.0, behavior_final=10.0)
             for i, a in zip(test, np.broadcast_to(after, len(test)))]
    run = dict(env=folder.name, variant=name.split("_")[0], seed=number, holdout="", test_batch=256,
               tasks=tasks, behavior_mean=1.0, behavior_final=10.0) | changes
    run = {key: value for key, value in run.items() if value is not None}
    place = folder / f"{name}-s{number}"
    for column in ("", *columns):
        (place / column).mkdir(parents=True, exist_ok=True)
        (place / column / "summary.json").write_text(json.dumps(run))
    (place / "config.json").write_text(json.dumps(run))
    (place / "metrics.csv").write_text("step,before,after\n0,0,0\n9,0,1\n")
    return place


def printed(capsys):
    """Cells of the table that was printed, by its first two columns."""
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return {(first, second): rest for first, second, *rest in cells}


def refused(kind, *folders, program=tables):
    """One sentence and exit code 2, and no picture."""
    picture = folders[0].parent / "x.png"
    conftest.refused(command_line(kind, *folders, "--out", picture, program=program.__file__))
    assert not picture.exists()


def test_the_quantiles_are_students():
    """The integral of the density with n degrees of freedom up to them is 97.5%."""
    for n, quantile in enumerate(evidence.T, 1):
        x = np.linspace(0, quantile, 20_001)
        density = (1 + x ** 2 / n) ** (-(n + 1) / 2) / math.sqrt(n * math.pi) * math.exp(
            math.lgamma((n + 1) / 2) - math.lgamma(n / 2))
        assert 0.5 + np.trapezoid(density, x) == pytest.approx(0.975, abs=3e-4), n


def test_an_interval_holds_the_mean_of_the_tasks_that_were_drawn_in_95_of_100_cases():
    random = np.random.default_rng(0)
    for units in (2, 5, 25):
        held = [low <= 3 <= high for _, low, high in map(
            evidence.interval, random.normal(3, 7, (4000, units)))]
        assert np.mean(held) == pytest.approx(0.95, abs=0.012)
    assert np.isnan(evidence.interval(np.ones(1))[1:]).all()            # one tells of no other


@pytest.mark.parametrize("env, units", [("ant_dir", 10), ("cheetah_dir", 3)])
def test_units_are_tasks_of_all_sets_and_seeds_where_no_task_is_held_out(tmp_path, env, units):
    """Seeds 0 to 2 agree but for 10 times the seed; FOCAL lacks seed 0 and is 1 behind."""
    test = np.arange(len(envs.FAMILIES[env].test))
    for name, seeds, lead in (("macaw", (0, 1, 2), 1.0), ("focal", (1, 2), 0.0)):
        for suffix, first in (("", 0.0), ("_set2", 100.0))[:1 if units == 3 else 2]:
            for seed in seeds:
                keep(tmp_path / env, name + suffix, seed, first + test + lead + 10 * seed)
    macaw, = evidence.units_of(tmp_path / env, ["macaw"])
    assert len(macaw) == units and (macaw[0], macaw[-1]) == (
        (1.5, 21.5) if units == 3 else (11.0, 115.0))
    pair = evidence.units_of(tmp_path / env, ["macaw", "focal"])
    np.testing.assert_allclose(pair[0] - pair[1], np.ones(2 if units == 3 else 10))
    assert evidence.units_of(tmp_path / env, ["macaw", "pearl"]).size == 0


def test_leads_are_called_significant_where_the_interval_leaves_out_zero(tmp_path, capsys):
    for suffix in ("", "_set2"):
        for name, after in (("macaw", [9, 10, 11, 10, 10]), ("focal", 0.0), ("meta_bc", 10.0)):
            keep(tmp_path / "ant_dir", name + suffix, 0, after)
    keep(tmp_path / "ant_dir", "mt_awr", 0, 0.0)                        # tested on five tasks alone
    tables.leads(tmp_path, tmp_path / "x.png")
    table = printed(capsys)
    assert table["ant_dir", "FOCAL"] == [
        "10", "+10.0 [9.5, 10.5]", "[10.0, 10.0]", "significant", "100%"]
    assert table["ant_dir", "Meta-BC"] == [
        "10", "+0.0 [-0.5, 0.5]", "[0.0, 0.0]", "not significant", "20%"]
    assert table["ant_dir", "MT+FT"][3] == "too few to tell"
    assert table["ant_dir", "agents' final return"][1] == "+0.0 [-0.5, 0.5]"


def test_a_lead_that_its_runs_share_is_not_significant(tmp_path, capsys):
    """Over ten tasks alone it would be."""
    for suffix, lead in (("", 1.0), ("_set2", 9.0)):
        for name, after in (("macaw", lead), ("focal", 0.0)):
            keep(tmp_path / "ant_dir", name + suffix, 0, after)
    tables.leads(tmp_path, tmp_path / "x.png")
    assert printed(capsys)["ant_dir", "FOCAL"] == ["10", "+5.0 [2.0, 8.0]", "[-45.8, 55.8]",
                                                   "not significant", "100%"]


def test_the_page_says_how_often_our_intervals_hold_the_truth():
    """Fewer than 95% where the tasks of a run share its noise."""
    table = (HERE / "results/coverage.md").read_text()
    found = [float(x) for x in re.findall(r"\| ([\d.]+)% \|$", table, re.MULTILINE)]
    page = (HERE / "docs/results.md").read_text()
    assert len(found) >= 5 and min(found) > 80 and np.median(found) > 93
    assert f"{min(found):.0f} to {max(found):.0f}%" in page


def test_leads_are_of_the_same_seed(tmp_path, capsys):
    """FOCAL lacks seed 1 of MACAW's: by place in a list, its seed 2 would meet that. PEARL has no
    seed of MACAW's."""
    for name, returns in (("macaw", {0: 1.0, 1: 50.0, 2: 3.0}), ("focal", {0: 0.0, 2: 2.0}),
                          ("pearl", {3: 0.0})):
        for seed, after in returns.items():
            keep(tmp_path / "ant_dir", name, seed, after)
    tables.results(tmp_path, tmp_path / "x.png")
    table = printed(capsys)
    assert table["ant_dir", "FOCAL"][-1] == "+1.0"
    assert table["ant_dir", "Offline PEARL"][-1] == ""


def test_leads_while_training_are_of_the_same_step_and_seed(tmp_path, capsys):
    """MACAW lacks FOCAL's step 250, FOCAL MACAW's seed 0: by place they would meet wrongly."""
    for name, seeds, steps in (("macaw", (0, 1, 2), (0, 100, 500)),
                               ("focal", (1, 2), (0, 100, 250, 500))):
        for seed in seeds:
            start = 100 * (name == "macaw") + 10 * seed
            (keep(tmp_path / "cheetah_vel", name, seed) / "metrics.csv").write_text(
                "step,before,after\n" + "".join(f"{k},0,{start + k}\n" for k in steps))
    tables.early(tmp_path, tmp_path / "x.png")
    assert printed(capsys)["cheetah_vel", "FOCAL"] == ["2", "+100.0", "", "+100.0", ""]


def test_fewer_tasks_stand_in_their_columns_at_the_same_seeds(tmp_path, capsys):
    for name in ("macaw", "mt_awr", "focal", "pearl"):
        for suffix, after in (("_few10", 1.0), ("_few3", 0.0), ("_aligned", 2.0)):
            keep(tmp_path / "cheetah_vel", name + suffix, 1, after)
        keep(tmp_path / "cheetah_vel", f"{name}_aligned", 0, 50.0)
    tables.few(tmp_path / "cheetah_vel", tmp_path / "x.png")
    table = printed(capsys)
    assert table["method", "seeds"] == ["3 tasks", "10 tasks", "35 tasks"]
    assert table["FOCAL", "1"] == ["0.0", "1.0", "2.0"]


def test_columns_of_a_table_have_the_same_seeds(tmp_path, capsys):
    for seed in (0, 1):
        keep(tmp_path / "cheetah_vel", "macaw", seed, 1000.0 * seed, tables.GROUPS)
    keep(tmp_path / "cheetah_vel", "macaw", 2, columns=["aligned"])     # not with every group's
    tables.whose(tmp_path / "cheetah_vel", tmp_path / "x.png")
    assert printed(capsys)["MACAW", "2"] == ["500.0", "500.0", "500.0", "+0.0"]


def test_a_family_may_lack_a_group_of_agents(tmp_path, capsys):
    keep(tmp_path / "ant_dir", "macaw", 0, 5.0, ["aligned"])
    refused("whose", tmp_path / "ant_dir")
    keep(tmp_path / "ant_dir", "macaw", 0, 5.0, ["strangers"])
    tables.whose(tmp_path / "ant_dir", tmp_path / "x.png")
    assert printed(capsys)["MACAW", "1"] == ["5.0", "5.0", "+0.0"]


def test_own_exploration_is_averaged_over_seeds(tmp_path, capsys):
    for seed, before in enumerate((-3.0, -1.0)):
        keep(tmp_path / "cheetah_vel", "smac", seed, 1.0, own_before=before, own_after=0.0)
    tables.own(tmp_path, tmp_path / "x.png")
    assert printed(capsys)["cheetah_vel", "SMAC"][1:] == ["1.0", "-2.0", "0.0", "+2.0"]


def tune(folder, name, seed, of="macaw", marks=(0, 1000), change=1000.0, **others):
    """A run of experiments/online.py; tasks differ by 100, what they gain does not."""
    curve = [[100.0 * task + change * (mark > 0) for mark in marks] for task in range(5)]
    starts = ["adapted"] if "pearl" in name else ["adapted", "unadapted", "random", "authors"]
    curves = {f"{start}_tasks": curve for start in starts} | others
    keep(folder, name, seed, of=of, online_steps=marks, **curves)


def test_online_changes_are_paired(tmp_path, capsys):
    for seed in (0, 1):
        tune(tmp_path / "ant_dir", "online", seed)
    tune(tmp_path / "ant_dir", "online_pearl", 0, "pearl", change=-50.0)
    tables.online(tmp_path, tmp_path / "x.png")
    table = printed(capsys)
    assert table["adapted (MACAW)", "2"][-1] == "+1000.0"
    assert table["Offline PEARL", "1"][-1] == "-50.0"


@pytest.mark.parametrize("changes", [
    dict(unadapted_tasks=None), dict(adapted_tasks=[[0.0, 1.0]]), dict(marks=(0, 2000)),
    dict(of="no_wt")], ids=["not finished", "on fewer tasks", "other steps", "another method"])
def test_online_runs_are_alike(tmp_path, changes):
    tune(tmp_path / "ant_dir", "online", 0)
    tune(tmp_path / "ant_dir", "online", 1, **changes)
    refused("online", tmp_path)


def test_a_robot_is_drawn_as_it_stands():
    robot = envs.make("cheetah_vel", envs.FAMILIES["cheetah_vel"].tasks[0]).unwrapped
    for pitch, width, height in ((0.0, -1.0, 0.0), (np.pi / 3, -0.5, 0.75 ** 0.5)):     # nose down
        axes, state = Figure().subplots(), np.zeros(17)
        state[1] = pitch
        poses.draw_robot(axes, robot, state[None], 3.0, "C0")
        ends = np.array(axes.lines[0].get_data())                       # the torso, 1 m long
        np.testing.assert_allclose(np.diff(ends)[:, 0], (width, height), atol=1e-6)
        assert ends[0].mean() == pytest.approx(3.0)
    robot.close()


def test_an_old_picture_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", lambda _, file, **options: file.write(b"half") / 0)
    with pytest.raises(ZeroDivisionError):
        plot.save(Figure(), tmp_path / "x.png")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_figure_says_held_out_where_tasks_are(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(plot, "save", lambda figure, _: titles.append(figure.axes[0].get_title()))
    for env in ("ant_dir", "cheetah_dir"):
        plot.tasks([keep(tmp_path / env, "macaw", 0)], "x.png")
    assert titles == ["ant_dir: tasks that were never trained on", "cheetah_dir: its tasks"]


@pytest.mark.parametrize("other", [dict(env="walker_params"), dict(holdout="3,4"),
                                   dict(test_batch=8)], ids=str)
def test_runs_of_one_figure_are_alike(tmp_path, other):
    runs = keep(tmp_path / "ant_dir", "macaw", 0), keep(tmp_path / "ant_dir", "macaw", 1, **other)
    for kind in ("tasks", "curve"):
        refused(kind, *runs, program=plot)


@pytest.mark.parametrize("kind, changes", [
    ("results", dict(env=None)), ("results", dict(behavior_mean=None)),
    ("own", dict(own_before=0.0)), ("results", dict(tasks=[dict(id=0, after=1, before=0)])),
    ("results", dict(seed=0)), ("results", dict(variant="focal")),
    ("results", dict(env="walker_params"))], ids=str)
def test_a_run_is_what_its_place_says_and_lacks_nothing(tmp_path, kind, changes):
    """The last four: other tasks than the first run's, and three that were moved."""
    keep(tmp_path / "ant_dir", "smac", 0, own_before=0.0, own_after=0.0)
    keep(tmp_path / "ant_dir", "smac", 1, **changes)
    refused(kind, tmp_path)


def test_an_evaluation_is_of_the_run_in_whose_folder_it_lies(tmp_path):
    runs = [keep(tmp_path / "ant_dir", "macaw", seed, 0.0, tables.GROUPS) for seed in (0, 1)]
    (runs[1] / "strangers/summary.json").write_text((runs[0] / "summary.json").read_text())
    refused("whose", tmp_path / "ant_dir")


@pytest.mark.parametrize("file, text", [("summary.json", "[]"), ("summary.json", '{"env": "ant'),
                                        ("metrics.csv", ""), ("metrics.csv", "step,after\n0,a\n")])
def test_a_damaged_file_is_refused(tmp_path, file, text):
    (keep(tmp_path / "ant_dir", "macaw", 0) / file).write_text(text)
    refused("early" if file == "metrics.csv" else "results", tmp_path)


def test_a_copy_of_a_run_does_not_count(tmp_path):
    for seed in (1, 2, 10, "1-2"):
        keep(tmp_path / "ant_dir", "macaw", seed)
    assert [run["seed"] for run in evidence.runs_of(tmp_path / "ant_dir", "macaw")] == [1, 2, 10]


def test_shipped_evaluations_are_of_the_run_in_whose_folder_they_lie():
    """A run that is made again leaves those of its predecessor; the time that training took tells,
    or the returns before adapting, which other agents' data change only by the nudge."""
    def marks(folder):
        run = json.loads((folder / "summary.json").read_text())
        return {("seconds", run["seconds"]), *((task["id"], task["before"])
                                               for task in run["tasks"])}
    evaluations = [path.parent for path in HERE.glob("results/*/*/*/summary.json")]
    assert len(evaluations) > 200
    assert not [str(e) for e in evaluations if not marks(e) & marks(e.parent)]


def test_a_replayed_agent_earns_what_it_earned_and_nobody_stands_for_free():
    x, _ = data.read(data.default_path("cheetah_vel_strangers"), "cheetah_vel")
    first = x["episode_length"][0]
    earned = trivial.play("cheetah_vel", x["episode_task"][0], x["episode_seed"][:1],
                          [x["actions"][:first]])
    assert earned == pytest.approx(float(x["rewards"][:first].sum()), abs=1e-3)
    assert trivial.play("cheetah_vel", 7, [0], np.zeros((1, 200, 6))) == pytest.approx(-120, abs=2)
    points = trivial.features(envs.FAMILIES["ant_dir"].tasks)
    angles = np.array([task["angle"] for task in envs.FAMILIES["ant_dir"].tasks])
    assert np.linalg.norm(points[angles.argmin()] - points[angles.argmax()]) < 0.3     # a circle
