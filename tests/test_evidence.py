"""Tables and figures that the docs quote: each test is named after the claim it would refute."""
import functools
import json
import pathlib
import resource

import conftest
import numpy as np
import pytest
from conftest import command_line
from matplotlib.figure import Figure

import envs
from experiments import tables
from helpers import data, plot
from helpers.command import BadInput


def keep(folder, name, seed, after, **numbers):
    """A run's summary as helpers/run.py writes it; `after` is a number for each test task."""
    family = envs.FAMILIES[folder.name]
    tasks = [dict(id=i, before=0.0, after=float(a), behavior_final=10.0)
             for i, a in zip(family.test, np.broadcast_to(after, len(family.test)))]
    run = folder / f"{name}-s{seed}"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("step,before,after\n0,0,0\n9,0,1\n")
    which = dict(env=folder.name, variant=name.split("_")[0], seed=seed)
    (run / "config.json").write_text(json.dumps(dict(which, holdout="", test_batch=256)))
    (run / "summary.json").write_text(json.dumps(dict(
        which, tasks=tasks, behavior_mean=1.0, behavior_final=10.0, **numbers)))


def rows(text):
    """Cells of the table that was printed, by its first two columns."""
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]
    return {(first, second): rest for first, second, *rest in cells}


@pytest.fixture
def quick(monkeypatch):
    """No resampling and no data files, for what does not depend on them."""
    monkeypatch.setattr(tables, "interval", lambda x, tasks=True: [x.mean()] * 3)
    monkeypatch.setattr(tables, "aggregate", lambda parts, statistic: [0.0] * 3)
    monkeypatch.setattr(tables, "random_returns", lambda env, tasks: np.zeros(len(tasks)))
    monkeypatch.setattr(tables, "life", lambda env: ([0, 1], [0, 1]))


def test_leads_are_of_the_same_seed(tmp_path, capsys):
    """FOCAL lacks seed 1 of MACAW's: an order by place in a list would give another lead."""
    for seed, after in enumerate((1.0, 50.0, 3.0)):
        keep(tmp_path / "ant_dir", "macaw", seed, after)
    for seed, after in ((0, 0.0), (2, 2.0)):
        keep(tmp_path / "ant_dir", "focal", seed, after)
    tables.results(tmp_path, tmp_path / "x.png")
    assert rows(capsys.readouterr().out)["ant_dir", "FOCAL"][4] == "+1.0 [1.0, 1.0]"


@pytest.mark.parametrize("env, varies", [("ant_dir", True), ("cheetah_dir", False)])
def test_an_interval_is_over_tasks_where_these_stand_for_others(tmp_path, capsys, env, varies):
    count = len(envs.FAMILIES[env].test)
    for seed in range(3):
        keep(tmp_path / env, "macaw", seed, np.arange(count))           # seeds agree, tasks do not
    tables.results(tmp_path, tmp_path / "x.png")
    mean, low, high = tables.interval(np.tile(np.arange(count), (3, 1)), tasks=varies)
    assert (high > mean > low) == varies and mean == (count - 1) / 2
    assert rows(capsys.readouterr().out)[env, "MACAW"][2] == tables.as_text(mean, low, high)


def test_one_seed_alone_has_no_interval():
    x = np.array([[1000.0, 1100.0]])
    assert np.isnan(tables.interval(x, tasks=False)[1:]).all()
    assert np.isfinite(tables.interval(x)).all()


def test_the_interquartile_mean_leaves_out_a_quarter_on_each_side():
    assert tables.iqm(np.array([[-1000.0, 1.0], [2.0, 1000.0]])) == 1.5
    assert tables.iqm(np.arange(9.0)) == np.arange(2.0, 7.0).mean()


def test_a_score_is_one_at_the_end_of_the_agents_and_zero_at_their_birth(tmp_path, capsys,
                                                                             monkeypatch):
    monkeypatch.setattr(data, "read", functools.cache(data.read))
    for env in tables.FAMILIES:
        zero = tables.random_returns(env, envs.FAMILIES[env].test)
        for seed in range(2):
            keep(tmp_path / env, "macaw", seed, 10.0)
            keep(tmp_path / env, "focal", seed, zero)
            keep(tmp_path / env, "pearl", seed, (zero + 10) / 2)
            keep(tmp_path / env, "focal_untuned", seed, zero)
    tables.scores(tmp_path, tmp_path / "x.png")
    table = rows(capsys.readouterr().out)
    assert table["MACAW", "2"][0] == "1.00 [1.00, 1.00]"
    assert table["FOCAL", "2"][:2] == ["0.00 [0.00, 0.00]", "+1.00 [1.00, 1.00]"]
    assert table["Offline PEARL", "2"][2:] == ["0.50"] * 4
    assert table["FOCAL; first settings", "2"][2:] == ["0.00"] * 4


@pytest.mark.parametrize("env", ["cheetah_vel", "walker_params"])
def test_zero_is_what_uniform_actions_earn(env):
    """As in the agents' first steps, which were uniform; the ants' first stored episode was not."""
    x, _ = data.read(data.default_path(env), env)
    returns, tasks = tables.returns_of(x), envs.FAMILIES[env].test
    births = [returns[x["episode_task"] == i][0] for i in tasks]
    np.testing.assert_allclose(tables.random_returns(env, tasks), births, atol=30)


def test_uniform_ants_do_not_stand():
    """A net that stands earns 190, and its first stored episodes about 100."""
    assert all(-80 < x < 0 for x in tables.random_returns("ant_dir", [6, 23]))


def test_a_run_is_of_the_method_and_seed_of_its_name(tmp_path):
    folder = tmp_path / "ant_dir"
    keep(folder, "macaw", 0, 1.0)
    keep(folder, "macaw", 1, 2.0)
    for seed in range(2):
        judge(folder / f"macaw-s{seed}", "aligned", "strangers")
    (folder / "macaw-s1/strangers/summary.json").write_text(
        (folder / "macaw-s0/summary.json").read_text())
    picture = tmp_path / "x.png"
    refused(tables, "whose", folder, "--out", picture, words=["s1/strangers", "seed 0"])
    (folder / "macaw-s1").rename(folder / "meta_bc-s1")
    refused(tables, "results", tmp_path, "--out", picture, words=["meta_bc-s1", "macaw"])


def test_intervals_of_what_runs_adapted_to_are_over_seeds_where_tasks_are_all(tmp_path, capsys):
    folder = tmp_path / "cheetah_dir"
    for seed in range(2):
        keep(folder, "macaw", seed, (0.0, 1000.0))
        judge(folder / f"macaw-s{seed}", "aligned", "strangers")
    tables.whose(folder, tmp_path / "x.png")
    assert rows(capsys.readouterr().out)["MACAW", "2"][0] == "500.0 [500.0, 500.0]"


def test_all_held_out_sets_are_put_together(tmp_path, capsys, quick):
    folder = tmp_path / "ant_dir"
    for name, lead in (("macaw", 2.0), ("meta_bc", 1.0), ("mt_awr", 0.0)):
        keep(folder, name, 0, 10 + lead)
        keep(folder, f"{name}_set1", 0, 20 + lead)
    tables.rotation(tmp_path, tmp_path / "x.png")
    out = capsys.readouterr().out
    assert out.startswith("| family | tasks | MACAW | after - before | Meta-BC | lead | MT+FT | le")
    cells = rows(out)["ant_dir", "10, all"]
    assert cells[0].startswith("17.0 ") and cells[3] == "+1.0 [1.0, 1.0]"
    assert cells[5] == "+2.0 [2.0, 2.0]" and cells[1].startswith("+17.0 ")


def test_leads_while_training_are_of_the_same_step_and_seed(tmp_path, capsys, quick):
    """MACAW lacks FOCAL's step 250, FOCAL MACAW's seed 0: by place they would meet wrongly."""
    folder = tmp_path / "cheetah_vel"
    for name, seeds, steps in (("macaw", (0, 1), (0, 100, 500)),
                               ("focal", (1,), (0, 100, 250, 500))):
        for seed in seeds:
            keep(folder, name, seed, 0.0)
            returns = [100 * (name == "macaw") + 10 * seed + step for step in steps]
            (folder / f"{name}-s{seed}/metrics.csv").write_text("step,before,after\n" + "".join(
                f"{step},0,{after}\n" for step, after in zip(steps, returns)))
    tables.early(tmp_path, tmp_path / "x.png")
    out = capsys.readouterr().out
    assert out.startswith("| family | MACAW's lead over | seeds | 100 steps | 250 steps | 500 st")
    lead = "+100.0 [100.0, 100.0]"
    assert rows(out)["cheetah_vel", "FOCAL"] == ["1", lead, "", lead, ""]


def test_fewer_tasks_stand_in_their_columns(tmp_path, capsys, quick):
    folder = tmp_path / "cheetah_vel"
    for name in ("macaw", "mt_awr", "focal", "pearl"):
        for suffix, after in (("_few10", 1.0), ("_few3", 0.0), ("_aligned", 2.0)):
            keep(folder, name + suffix, 0, after)
    tables.few(folder, tmp_path / "x.png")
    out = capsys.readouterr().out
    assert out.startswith("| method | seeds | 3 tasks | 10 tasks | 35 tasks |")
    assert rows(out)["FOCAL", "1"] == [f"{x}.0 [{x}.0, {x}.0]" for x in range(3)]


def judge(run, *columns):
    """Puts a run's summary in these subfolders too."""
    for column in columns:
        (run / column).mkdir()
        (run / column / "summary.json").write_text((run / "summary.json").read_text())


def test_a_run_counts_where_it_was_judged_everywhere(tmp_path, capsys, quick):
    folder = tmp_path / "cheetah_vel"
    for seed in range(3):
        keep(folder, "macaw", seed, 0.0)
        judge(folder / f"macaw-s{seed}", *("batch8", "batch16", "batch64")[:3 if seed < 2 else 1])
    tables.context(folder, tmp_path / "x.png")
    assert ("MACAW", "2") in rows(capsys.readouterr().out)


def test_leads_over_macaw_are_paired_where_the_seeds_are_the_same(tmp_path, capsys, quick):
    folder = tmp_path / "cheetah_vel"
    tasks = np.arange(len(envs.FAMILIES["cheetah_vel"].test))
    for name, seeds, after in (("macaw", (0, 1), tasks * 100.0),
                               ("focal", (0, 1), tasks * 100.0 + 7), ("meta_bc", (0,), -3.0),
                               ("macaw_aligned", (0, 1, 2), 0.0), ("focal_aligned", (1, 2), 1.0),
                               ("macaw_independent", (0, 1), 0.0)):
        for seed in seeds:
            keep(folder, name, seed, after + 1000 * seed)
            judge(folder / f"{name}-s{seed}", "aligned", "others", "strangers")
    tables.whose(folder, tmp_path / "x.png")
    table = rows(capsys.readouterr().out)
    assert table["FOCAL - MACAW", "2"][:3] == ["+7.0 [7.0, 7.0]"] * 3       # tasks differ by 100
    assert table["FOCAL - MACAW; both batches from aligned agents", "2"][:3] == [
        "+1.0 [1.0, 1.0]"] * 3                              # MACAW's first seed has no partner
    assert ("Meta-BC - MACAW", "1") in table
    assert len([name for name, _ in table if " - MACAW" in name]) == 3


def test_a_family_may_lack_a_group_of_agents(tmp_path, capsys, quick):
    keep(tmp_path / "ant_dir", "macaw", 0, 5.0)
    refused(tables, "whose", tmp_path / "ant_dir", "--out", tmp_path / "x.png", words=["others"])
    judge(tmp_path / "ant_dir/macaw-s0", "aligned")
    refused(tables, "whose", tmp_path / "ant_dir", "--out", tmp_path / "x.png", words=["others"])
    judge(tmp_path / "ant_dir/macaw-s0", "strangers")
    tables.whose(tmp_path / "ant_dir", tmp_path / "x.png")
    table = capsys.readouterr().out
    assert "independent" not in table
    assert rows(table)["MACAW", "1"] == ["5.0 [5.0, 5.0]"] * 2 + ["+0.0 [0.0, 0.0]"]
    keep(tmp_path / "ant_dir", "focal", 0, 5.0)
    judge(tmp_path / "ant_dir/focal-s0", "others")          # now no run has all three
    refused(tables, "whose", tmp_path / "ant_dir", "--out", tmp_path / "y.png", words=["others"])


def test_the_pitch_of_agents_stands_beside_what_is_reached_with_them(tmp_path, capsys, monkeypatch):
    x, meta = data.read(data.default_path("cheetah_vel_strangers"), "cheetah_vel")
    monkeypatch.setattr(data, "DATA", tmp_path)
    with pytest.raises(BadInput, match="cheetah_vel.npz is not there"):
        tables.poses(tmp_path / "cheetah_vel", tmp_path / "x.png")
    data.write(tmp_path / "cheetah_vel_strangers.npz", x, meta)
    x["observations"][:, 1] = 0.5
    data.write(tmp_path / "cheetah_vel.npz", x, meta)
    for seed, after in enumerate((1.0, 4.0)):
        keep(tmp_path / "cheetah_vel", "macaw", seed, after)
        judge(tmp_path / f"cheetah_vel/macaw-s{seed}", "aligned")
    tables.poses(tmp_path / "cheetah_vel", tmp_path / "x.png")
    with pytest.raises(BadInput, match="do not pitch"):
        tables.poses(tmp_path / "ant_dir", tmp_path / "x.png")
    table = rows(capsys.readouterr().out)
    assert table["aligned agents", "7"] == ["0.50", "2.5", ""]
    assert table["strangers", "15"] == ["2.82", "", ""]                 # it runs on its back
    assert len(table) - 2 == 2 * 5 and (tmp_path / "x.png").exists()  # a head has two lines


def test_a_robot_is_drawn_as_it_stands():
    robot = envs.make("cheetah_vel", envs.FAMILIES["cheetah_vel"].tasks[0]).unwrapped
    for pitch, width, height in ((0.0, 1.0, 0.0), (np.pi / 3, 0.5, 0.75 ** 0.5)):
        axes, state = Figure().subplots(), np.zeros(17)
        state[1] = pitch
        tables.draw_robot(axes, robot, state[None], 3.0, "C0")
        x, y = axes.lines[0].get_data()                                 # of the torso, 1 m long
        assert np.ptp(x) == pytest.approx(width, abs=1e-6) and x.mean() == pytest.approx(3.0)
        assert np.ptp(y) == pytest.approx(height, abs=1e-6) and len(axes.lines) == 8
    assert y[x.argmax()] < y[x.argmin()]                                # it ran with its nose down
    robot.close()


def test_own_exploration_is_over_seeds(tmp_path, capsys):
    for seed, own in enumerate(((-3.0, 0.0), (-1.0, 0.0))):
        keep(tmp_path / "cheetah_vel", "smac", seed, 1.0, own_before=own[0], own_after=own[1])
    tables.own(tmp_path, tmp_path / "x.png")
    assert rows(capsys.readouterr().out)["cheetah_vel", "SMAC"][1:] == [
        "1.0 [1.0, 1.0]", "-2.0 [-3.0, -1.0]", "0.0 [0.0, 0.0]", "+2.0 [1.0, 3.0]"]


# ------------------------------------------------------------------------- what is no such evidence
def changed(run, file="summary.json", **values):
    """Writes other values in a run's summary; None takes one out."""
    summary = {**json.loads((run / file).read_text()), **values}
    (run / file).write_text(json.dumps(
        {key: value for key, value in summary.items() if value is not None}))


def refused(program, *arguments, words=()):
    """One sentence with these words and exit code 2, and no picture."""
    conftest.refused(command_line(*arguments, program=program.__file__), *words)
    assert not pathlib.Path(arguments[-1]).exists()


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_an_old_picture_stays_until_the_new_one_is_whole(tmp_path, ending):
    path, figure = tmp_path / f"x.{ending}", Figure()
    figure.subplots().plot([1, 2])
    plot.save(figure, path)
    old, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))        # as if the disk were full
    try:
        with pytest.raises(OSError):
            plot.save(figure, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_every_picture_is_saved_so():
    sources = [pathlib.Path(module.__file__).read_text() for module in (plot, tables)]
    assert sum(source.count("savefig(") for source in sources) == 1


def test_numbers_are_of_the_same_tasks(tmp_path):
    """One run held other tasks out, or fewer, or is of another family."""
    folder, tasks = tmp_path / "ant_dir", dict(before=0, after=1, behavior_final=2)
    for name, others in (("other", [1, 2, 3, 4, 5]), ("fewer", [6, 17, 23, 30])):
        keep(folder, name, 0, 0.0)
        keep(folder, name, 1, 0.0)
        changed(folder / f"{name}-s1", tasks=[dict(tasks, id=i) for i in others])
        with pytest.raises(BadInput, match="leave one of them out"):
            plot.numbers(tables.runs_of(folder, name), "after")
        refused(plot, "tasks", folder / f"{name}-s0", folder / f"{name}-s1", "--out",
                tmp_path / "x.png", words=["seed 0", "seed 1"])
    keep(tmp_path / "walker_params", "other", 0, 0.0)
    changed(tmp_path / "walker_params/other-s0",
            tasks=json.loads((folder / "other-s0/summary.json").read_text())["tasks"])
    runs = [folder / "other-s0", tmp_path / "walker_params/other-s0"]
    for kind in ("tasks", "curve"):
        refused(plot, kind, *runs, "--out", tmp_path / "x.png", words=["different families"])
    for n, change in enumerate((dict(holdout="3,4"), dict(test_batch=8))):
        for seed in (0, 1):
            keep(folder, f"n{n}", seed, 0.0)
        changed(folder / f"n{n}-s1", "config.json", **change)
        for kind in ("tasks", "curve"):
            refused(plot, kind, folder / f"n{n}-s0", folder / f"n{n}-s1", "--out",
                    tmp_path / "x.png", words=["leave one of them out"])


def test_a_figure_says_held_out_where_tasks_are(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(plot, "save", lambda figure, path: titles.append(
        figure.axes[0].get_title()))
    for env in ("ant_dir", "cheetah_dir"):
        keep(tmp_path / env, "macaw", 0, 1.0)
        plot.tasks([tmp_path / env / "macaw-s0"], "x.png")
    assert titles == ["ant_dir: tasks that were never trained on", "cheetah_dir: its tasks"]


def test_all_held_out_sets_are_of_the_same_seeds(tmp_path, capsys, quick):
    """By place, MACAW's seed 1 would stand beside the others' seed 0."""
    folder = tmp_path / "ant_dir"
    for name in ("macaw", "meta_bc", "mt_awr"):
        for seed in (0, 1):
            keep(folder, name, seed, 100.0 * seed)
        keep(folder, f"{name}_set1", 1, 100.0)
    keep(folder, "macaw_set1", 0, 0.0)
    tables.rotation(tmp_path, tmp_path / "x.png")
    cells = rows(capsys.readouterr().out)["ant_dir", "10, all"]
    assert cells[0] == "100.0 [100.0, 100.0]" and cells[3] == "+0.0 [0.0, 0.0]"
    (folder / "meta_bc_set1-s1").rename(folder / "meta_bc_set2-s1")
    refused(tables, "rotation", tmp_path, "--out", tmp_path / "y.png", words=["meta_bc_set1"])


def test_few_tasks_are_of_the_same_seeds(tmp_path, capsys, quick):
    folder = tmp_path / "cheetah_vel"
    for name in ("macaw", "mt_awr", "focal", "pearl"):
        keep(folder, f"{name}_few3", 1, 1.0)
        for seed in (0, 1):
            keep(folder, f"{name}_aligned", seed, float(seed))
    tables.few(folder, tmp_path / "x.png")
    assert rows(capsys.readouterr().out)["FOCAL", "1"] == ["1.0 [1.0, 1.0]"] * 2
    (folder / "focal_aligned-s1").rename(tmp_path / "elsewhere")
    refused(tables, "few", folder, "--out", tmp_path / "y.png", words=["no seed", "focal_few3"])
    (folder / "focal_aligned-s0").rename(tmp_path / "there")
    refused(tables, "few", folder, "--out", tmp_path / "y.png", words=["no focal_aligned-sSEED"])


def test_a_lead_without_a_common_seed_is_an_empty_cell(tmp_path, capsys, quick):
    for env in tables.FAMILIES:
        keep(tmp_path / env, "macaw", 0, 1.0)
        keep(tmp_path / env, "focal", 1, 1.0)
    tables.results(tmp_path, tmp_path / "x.png")
    assert rows(capsys.readouterr().out)["ant_dir", "FOCAL"][4] == ""
    tables.scores(tmp_path, tmp_path / "x.png")
    assert rows(capsys.readouterr().out)["FOCAL", "1"][1] == ""


TASK = dict(id=6, before=0.0, after=1.0, behavior_final=2.0)


@pytest.mark.parametrize("name, value", [
    ("env", "moon_walk"), ("env", ["ant_dir"]), ("env", None), ("seed", "0"), ("seed", True),
    ("variant", 3), ("tasks", None), ("tasks", []), ("tasks", dict(TASK)), ("tasks", [6]),
    *(("tasks", [TASK, {**TASK, **bad}]) for bad in (
        dict(id=50), dict(id=-1), dict(id=6.0), dict(before=None), dict(after="1"),
        dict(after=float("nan")), dict(behavior_final=[])))], ids=str)
def test_a_summary_is_read_with_care(tmp_path, name, value):
    keep(tmp_path / "ant_dir", "macaw", 0, 1.0)
    changed(tmp_path / "ant_dir/macaw-s0", **{name: value})
    with pytest.raises(BadInput, match=f"macaw-s0/summary.json cannot be read .no {name} "):
        plot.read(tmp_path / "ant_dir/macaw-s0", "summary.json")


def test_a_table_lacks_nothing(tmp_path):
    keep(tmp_path / "ant_dir", "macaw", 0, 1.0)
    changed(tmp_path / "ant_dir/macaw-s0", behavior_mean=None)
    refused(tables, "results", tmp_path, "--out", tmp_path / "x.png", words=["behavior_mean"])
    (tmp_path / "ant_dir/macaw-s0/summary.json").write_text("[]")
    refused(tables, "results", tmp_path, "--out", tmp_path / "x.png", words=["no dictionary"])


def test_a_copy_of_a_run_does_not_count(tmp_path):
    """Neither NAME-sSEED-2; one of another seed than its name, or another family, is refused."""
    folder = tmp_path / "ant_dir"
    for seed in (1, 2, 10, "1-2"):
        keep(folder, "macaw", seed, 1.0)
    changed(folder / "macaw-s1-2", seed=1)
    assert [run["seed"] for run in tables.runs_of(folder, "macaw")] == [1, 2, 10]
    changed(folder / "macaw-s2", seed=1)
    refused(tables, "results", tmp_path, "--out", tmp_path / "x.png", words=["s2 holds"])
    changed(folder / "macaw-s2", seed=2, env="walker_params")
    refused(tables, "results", tmp_path, "--out", tmp_path / "x.png", words=["walker_params"])


def test_a_folder_of_no_family_is_refused(tmp_path):
    keep(tmp_path / "ant_dir", "macaw_few3", 0, 1.0)
    (tmp_path / "ant_dir").rename(tmp_path / "mine")
    for kind, folder in (("results", tmp_path), ("few", tmp_path / "mine")):
        refused(tables, kind, folder, "--out", tmp_path / "x.png", words=["mine", "ant_dir"])


def test_a_family_is_found_from_within(tmp_path, monkeypatch, quick):
    for name in ("macaw", "mt_awr", "focal", "pearl"):
        keep(tmp_path / "ant_dir", f"{name}_few3", 0, 1.0)
        keep(tmp_path / "ant_dir", f"{name}_aligned", 0, 1.0)
    monkeypatch.chdir(tmp_path / "ant_dir")
    tables.few(".", "x.png")
    assert pathlib.Path("x.png").exists()
    for folder in ("../ant_dir/", "../ant_dir/.", "macaw_few3-s0/.."):
        assert len(tables.runs_of(folder, "macaw_few3")) == 1


def tune(folder, name, seed, of, marks=(0, 1000), **others):
    """A summary as experiments.py writes it."""
    curve = [list(map(float, marks))] * 5
    starts = ["adapted"] if "pearl" in name else ["adapted", "unadapted", "random", "authors"]
    keep(folder, name, seed, 0.0, of=of, online_steps=marks,
         **{f"{start}_tasks": curve for start in starts})
    changed(folder / f"{name}-s{seed}", tasks=None, **others)


def test_online_changes_are_paired(tmp_path, capsys, quick):
    for seed in (0, 1):
        tune(tmp_path / "ant_dir", "online", seed, "macaw")
    tune(tmp_path / "ant_dir", "online_pearl", 0, "pearl")
    tables.online(tmp_path, tmp_path / "x.png")
    table = rows(capsys.readouterr().out)
    assert table["adapted (MACAW)", "2"][-1] == "+1000.0 [1000.0, 1000.0]"
    assert table["Offline PEARL", "1"][0] == "0.0 [0.0, 0.0]"


@pytest.mark.parametrize("name, seed, of, others", [
    ("online", 1, "macaw", dict(unadapted_tasks=None)),                 # not finished
    ("online", 1, "macaw", dict(random_tasks=[[0.0]] * 5)),
    ("online", 1, "macaw", dict(random_tasks=[[0.0, 1.0], [2.0]])),
    ("online", 1, "macaw", dict(online_steps=None)),
    ("online", 1, "macaw", dict(adapted_tasks=[[0.0, 1.0]])),           # on fewer tasks
    ("online", 1, "macaw", dict(marks=(0, 2000))), ("online", 1, "macaw", dict(marks=(0,))),
    ("online", 1, "focal", {}), ("online", 1, "no_wt", {}), ("online_pearl", 1, "macaw", {}),
    ("online_pearl", 1, "pearl", dict(marks=(0, 2000))),
    ("online_pearl", 1, None, {})], ids=str)
def test_online_runs_are_alike(tmp_path, name, seed, of, others):
    tune(tmp_path / "ant_dir", "online", 0, "macaw")
    tune(tmp_path / "ant_dir", name, seed, of, **others)
    refused(tables, "online", tmp_path, "--out", tmp_path / "x.png", words=[f"{name}-s{seed}"])


@pytest.mark.parametrize("name", ["own_before", "own_after"])
def test_own_exploration_says_what_is_missing(tmp_path, name):
    keep(tmp_path / "ant_dir", "smac", 0, 1.0, own_before=0.0, own_after=0.0)
    changed(tmp_path / "ant_dir/smac-s0", **{name: None})
    refused(tables, "own", tmp_path, "--out", tmp_path / "x.png", words=["smac-s0", name])


def test_shipped_evaluations_are_of_the_run_in_whose_folder_they_lie():
    """A run made anew leaves those of its predecessor; the not adapted policy's returns tell."""
    def before(folder):
        tasks = json.loads((folder / "summary.json").read_text())["tasks"]
        return {task["id"]: task["before"] for task in tasks}
    results = pathlib.Path(__file__).with_name("results")
    evaluations = [path.parent for path in results.glob("*/*/*/summary.json")]
    assert len(evaluations) > 200
    stale = [str(e) for e in evaluations if before(e) != before(e.parent)]
    assert not stale
