"""Bad input ends in one sentence and exit code 2, before the work, and nothing is lost.

One case for each rule. Data files have theirs in test_data.py.
"""
import copy
import os
import subprocess
import sys

import conftest
import numpy as np
import pytest
import torch
from conftest import HERE, POINT, command_line, run_of

import macaw
from helpers import command, run


def snapshot(folder):
    """What is on disk: names, sizes and times of change."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None
            for path in folder.rglob("*")}


def refused(folder, program, *arguments, words=()):
    """One sentence, exit code 2, and nothing on disk changed."""
    before = snapshot(folder)
    result = command_line(*arguments, program=f"{program}.py", cwd=folder)
    conftest.refused(result, *words)
    assert len(result.stderr) < 400, result.stderr
    assert snapshot(folder) == before


FLAGS = [           # a program and its arguments, `taken` is a folder with somebody's thesis.txt
    ("macaw", "--env moon_walk"), ("macaw", "--variant magic"), ("macaw", "--wings 2"),
    ("macaw", "--ste 5"), ("macaw", "stray"), ("macaw", "--env"), ("macaw", "--steps many"),
    ("macaw", "--steps 0"), ("macaw", "--inner-lr nan"), ("macaw", "--policy-lr 1e30"),
    ("macaw", "--tasks-per-step 17"), ("macaw", "--inner-batch 99999"),
    ("macaw", "--test-batch 99999"), ("macaw", "--adapt-data missing"), ("macaw", "--adapt-data ,"),
    ("macaw", "--data nowhere.npz"), ("macaw", "--data ."), ("macaw", "--data taken/thesis.txt"),
    ("macaw", "--holdout 2,x"), ("macaw", "--holdout 77"), ("macaw", "--holdout 3,3"),
    ("macaw", "--holdout " + ",".join(map(str, range(20)))), ("macaw", "--device abacus"),
    ("macaw", "--device cuda:99"), ("macaw", "--resume"), ("macaw", "--resume --out nothing"),
    ("macaw", "--evaluate x.pt --resume --out taken"), ("macaw", "--evaluate nothing.pt"),
    ("macaw", "--evaluate taken/thesis.txt"), ("macaw", "--evaluate ."),
    ("macaw", "--render film.pt"), ("macaw", "--render missing/x.gif"),
    ("macaw", "--render film.gif"),                                     # no pictures of a point
    ("macaw", "--out taken"), ("macaw", "--out taken/thesis.txt"), ("macaw", "--out /proc/run"),
    ("macaw", "--out " + "x" * 300),
    ("baselines/focal", "--tasks-per-step 1"), ("baselines/smac", "--beta 2"),
    ("baselines/smac", "--steps 510 --rounds 11"),
    ("experiments/online", "few --tasks 3 --out missing"),
    ("experiments/online", "online --checkpoint x.pt --out taken"),
    ("experiments/bench", "--seconds 0"), ("experiments/bench", "--json missing/x.json"),
    ("helpers/plot", "curve taken --out x.png"), ("helpers/plot", "curve taken --out x"),
    ("experiments/tables", "results missing --out x.png"),
]


@pytest.mark.parametrize("program, line", FLAGS, ids=lambda text: text[:40])
def test_bad_flags(program, line, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.txt").write_text("precious")
    trains = program in ("macaw", "baselines/focal", "baselines/smac")
    family = ["--env", "point_goal"] if trains and "--env" not in line else []
    refused(tmp_path, program, *family, *line.split())


def test_a_name_of_several_lines_is_said_in_one(tmp_path):
    refused(tmp_path, "macaw", "--env", "point_goal", "--data", "a\nb.npz", words=["a b.npz"])


# ------------------------------------------------------------------------------------- checkpoints

@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The state of a run of two meta-steps."""
    some = run_of(width=8, latent=4, steps=4, folder=tmp_path_factory.mktemp("run"))
    macaw.meta_train(some, until=2)
    some.save()
    return torch.load(some.folder / "checkpoint.pt", weights_only=True)


def within(name, key, value):
    return lambda state: state[name].__setitem__(key, value)


def first_tensor(name, change):
    def apply(state):
        key = next(k for k, x in state[name].items() if x.ndim)
        state[name][key] = change(state[name][key].clone())
    return apply


def moments(change):
    def apply(state):
        for moment in state["optimizer"]["state"].values():
            moment["exp_avg"] = change(moment["exp_avg"])
    return apply


BAD = {
    "future": lambda state: state.update(format=99),
    "no_learner": lambda state: state.pop("learner"),
    "text_rows": lambda state: state.update(rows=["x"]),
    "no_such_step": lambda state: state.update(step=99),
    "unknown_setting": within("config", "wings", 2),
    "missing_setting": lambda state: state["config"].pop("width"),
    "text_width": within("config", "width", "8"), "negative_width": within("config", "width", -8),
    "huge_width": within("config", "width", 4096), "other_env": within("config", "env", "ant_dir"),
    "unknown_env": within("config", "env", "moon_walk"),
    "unknown_variant": within("config", "variant", "magic"),
    "nan_weight": first_tensor("learner", lambda x: x * torch.nan),
    "wide_weight": first_tensor("learner", lambda x: torch.cat([x, x])),
    "missing_weight": lambda state: state["learner"].popitem(),
    "wide_stats": within("stats", "obs_mean", torch.zeros(5)),
    "no_groups": within("optimizer", "param_groups", []),
    "bad_generator": lambda state: state.update(generator=torch.zeros(3)),
}
BAD_TO_RESUME = {
    "stripped_optimizer": within("optimizer", "state", {}),
    "wide_moments": moments(lambda x: torch.zeros(3, 3)),
    "nan_moments": moments(lambda x: x * torch.nan),
    "other_data": lambda state: state.update(data="0" * 64),
    "unknown_train": lambda state: state.update(train=[0, 1, 3, 4, 5, 99]),
}


@pytest.mark.parametrize("name", [*BAD, *BAD_TO_RESUME])
def test_bad_checkpoints(name, checkpoint, tmp_path):
    state = copy.deepcopy(checkpoint)
    {**BAD, **BAD_TO_RESUME}[name](state)
    torch.save(state, tmp_path / "checkpoint.pt")
    refused(tmp_path, "macaw", "--resume", "--out", tmp_path)
    if name in BAD:
        refused(tmp_path, "macaw", "--evaluate", "checkpoint.pt")


def test_a_checkpoint_goes_on_only_as_what_it_is(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    for flag in ("--latent 5", "--env cheetah_vel", "--variant meta_bc", "--seed 7", "--steps 9",
                 "--holdout 3", "--test-steps 5"):
        refused(tmp_path, "macaw", "--resume", "--out", tmp_path, *flag.split(),
                words=[flag.split()[0]])
    refused(tmp_path, "baselines/focal", "--evaluate", "checkpoint.pt", words=["variant macaw"])
    assert command_line("--evaluate", tmp_path / "checkpoint.pt", "--final-draws", 1,
                        "--test-batch", 16, "--test-steps", 5).returncode == 0


def test_returns_that_are_not_finite_are_no_result(tmp_path, checkpoint):
    """Weights that are finite and give actions that are not."""
    learner = {name: x * 1e30 for name, x in checkpoint["learner"].items()}
    torch.save({**checkpoint, "learner": learner}, tmp_path / "checkpoint.pt")
    result = command_line("--evaluate", tmp_path / "checkpoint.pt", "--final-draws", 1,
                          "--test-batch", 16, "--out", tmp_path / "here")
    assert result.returncode == 1
    assert not list((tmp_path / "here").glob("summary*"))


def test_damaged_checkpoints_are_refused_or_read_as_they_were(checkpoint, tmp_path):
    """Cut off, or with one to eight bits flipped."""
    random, path = np.random.default_rng(0), tmp_path / "checkpoint.pt"
    torch.save(checkpoint, path)
    whole = path.read_bytes()
    for _ in range(30):
        content = bytearray(whole)
        for place in random.integers(len(content), size=random.integers(1, 9)):
            content[place] ^= 1 << random.integers(8)
        path.write_bytes(content[:random.integers(len(content))] if random.random() < 0.2
                         else content)
        try:
            found = run.load(macaw.MACAW, path).learner.state_dict()
        except command.BadInput:
            continue
        assert all(torch.equal(found[name], p) for name, p in checkpoint["learner"].items())


# ------------------------------------------------------- run folders, and what the system refuses

def test_a_folder_with_somebodys_own_settings_is_taken(tmp_path):
    (tmp_path / "config.json").write_text('{"my": "precious"}')
    refused(tmp_path, "macaw", "--env", "point_goal", "--out", tmp_path)


def test_two_processes_do_not_share_a_folder(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    with command.lock(tmp_path):
        refused(tmp_path, "macaw", "--resume", "--out", tmp_path, words=["in use"])


@pytest.mark.parametrize("error, code, words", [
    (OSError(28, "No space left on device"), 2, "No space left"), (MemoryError(), 2, "memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "memory"),
    (KeyboardInterrupt(), 130, "--resume"), (command.Terminated(), 143, "--resume"),
    (command.Diverged("value loss is nan"), 1, "nan")])
def test_what_stops_a_run_is_one_sentence_and_loses_nothing(error, code, words, tmp_path,
                                                            monkeypatch):
    choose = run.Run.choose

    def fail(self, count):
        if self.step == 7:
            raise error
        return choose(self, count)
    monkeypatch.setattr(run.Run, "choose", fail)
    result = command_line("--env", "point_goal", "--steps", 12, "--eval-every", 5,
                          "--final-draws", 1, "--out", tmp_path / "run")
    assert result.returncode == code and words in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    monkeypatch.setattr(run.Run, "choose", choose)
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["step"] == 5
    assert command_line("--resume", "--out", tmp_path / "run").returncode == 0


def test_a_full_disk_leaves_the_old_checkpoint(checkpoint, tmp_path, monkeypatch):
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    old = (tmp_path / "checkpoint.pt").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    conftest.refused(command_line("--resume", "--out", tmp_path), "No space left")
    assert (tmp_path / "checkpoint.pt").read_bytes() == old
    assert not list(tmp_path.glob("*.part"))


def test_a_return_that_is_not_finite_is_not_saved(tmp_path):
    some = run_of(steps=20, eval_every=5, folder=tmp_path)
    some.method = some.method._replace(
        test=lambda some, draws: [np.array([np.nan if some.step == 10 else 1.0])] * 2)
    with pytest.raises(command.Diverged, match="--policy-lr"):
        macaw.meta_train(some, until=20)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 5


@pytest.mark.parametrize("line", [
    "macaw.py --env moon_walk", "-m baselines.focal --env moon_walk", "collect.py --env moon_walk",
    f"macaw.py --env cheetah_vel --data {POINT}"])
def test_real_processes_refuse_too(line):
    conftest.refused(subprocess.run([sys.executable, *line.split()], text=True, capture_output=True,
                                    cwd=HERE))


def test_several_processes_refuse_with_one_voice(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    result = subprocess.run([*torchrun, "macaw.py", "--env", "point_goal", "--tasks-per-step", "1",
                             "--out", tmp_path / "run"], cwd=HERE, text=True, capture_output=True)
    said = [text for text in result.stderr.splitlines() if text.startswith("macaw.py: ")]
    assert len(said) == 1 and result.returncode != 0
