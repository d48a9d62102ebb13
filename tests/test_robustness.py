"""What is wrong is said in one sentence, before the work, and nothing is lost.

A table of bad inputs, most of them given to the programs in this process, some to real ones; kills
at chosen moments; a fuzz of files. The counts stand in docs/reliability.md.
"""
import copy
import multiprocessing
import os
import signal
import subprocess
import sys

import conftest
import numpy as np
import pytest
import torch
from conftest import HERE, POINT, command_line, run_of
from gymnasium.spaces import Box, Discrete

import envs
import macaw
from experiments import tables
from helpers import command, run
from helpers.command import BadInput


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


# ------------------------------------------------------------------------------------------- flags

FLAGS = [           # a program, its arguments, words that are in its answer
    ("macaw", "--env moon_walk", "moon_walk", "point_goal"),
    ("macaw", "--variant magic", "magic", "meta_bc"), ("macaw", "--steps 0"),
    ("macaw", "--steps -5", "--steps", "-5"), ("macaw", "--steps many", "--steps", "many"),
    ("macaw", "--steps 1e3"), ("macaw", "--seed -1"), ("macaw", "--inner-lr nan", "--inner-lr"),
    ("macaw", "--inner-lr inf"), ("macaw", "--policy-lr 1e30", "--policy-lr"),
    ("macaw", "--value-lr -1"), ("macaw", "--sigma -1"), ("macaw", "--width 0"),
    ("macaw", "--width 1000000", "--width"), ("macaw", "--latent -1"), ("macaw", "--inner-lr 0"),
    ("macaw", "--temperature 0"), ("macaw", "--gamma 1.5"), ("macaw", "--late 1"),
    ("macaw", "--tasks-per-step 0"), ("macaw", "--tasks-per-step 17", "tasks-per-step", "16"),
    ("macaw", "--inner-batch 1"), ("macaw", "--inner-batch 99999", "transitions", "smaller"),
    ("macaw", "--outer-batch 0"), ("macaw", "--test-batch 99999"), ("macaw", "--eval-every 0"),
    ("macaw", "--adapt-data missing.npz"), ("macaw", "--adapt-data ,"), ("macaw", "--test-steps 0"),
    ("macaw", "--inner-steps -1"), ("macaw", "--weight-decay -1"), ("macaw", "--evaluate="),
    ("macaw", "--evaluate x.pt --resume --out taken"), ("macaw", "--device meta"),
    ("macaw", "--advantage-coef 1e9"), ("macaw", "--render film.pt"),
    ("focal", "--tasks-per-step 1"), ("smac", "--beta 2"), ("smac", "--steps 500"),
    ("smac", "--steps 510 --rounds 11"), ("experiments", "few --tasks 3 --out missing"),
    ("experiments", "online --checkpoint x.pt --out taken"), ("macaw", "--wings 2", "--wings"),
    ("macaw", "--env"), ("macaw", "--ste 5"), ("macaw", "stray"),
    ("macaw", "--device abacus", "abacus"), ("macaw", "--device cuda:99"),
    ("macaw", "--holdout 2,x", "2,x"), ("macaw", "--holdout 77", "77"),
    ("macaw", "--holdout 3,3,3"), ("macaw", "--holdout " + ",".join(map(str, range(20)))),
    ("macaw", "--holdout -1"), ("macaw", "--data nowhere.npz", "nowhere.npz", "collect.py"),
    ("macaw", "--data ."), ("macaw", "--resume", "--out"),
    ("macaw", "--resume --out nothing", "nothing"),
    ("macaw", "--evaluate nothing.pt", "nothing.pt"), ("macaw", "--evaluate ."),
    ("macaw", "--render missing/x.gif"), ("macaw", "--render ."),
    ("macaw", "--render film.gif"),                                     # no pictures of a point
    ("macaw", "--out " + "x" * 300), ("macaw", "--out taken"), ("macaw", "--out taken/thesis.txt"),
    ("macaw", "--out taken/thesis.txt/run"), ("macaw", "--out /proc/run"),
    ("collect", "--env moon_walk"), ("collect", "--tasks 2,99"), ("collect", "--tasks 0,0"),
    ("collect", "--tasks a"), ("collect", "--steps 39"), ("collect", "--keep 10"),
    ("collect", "--steps 0"), ("collect", "--out missing/x.npz"), ("collect", "--out taken"),
    ("collect", "--out taken/thesis.txt"), ("collect", "--join x.npz --out y.npz"),
    ("collect", "--join taken/thesis.txt --out y.npz"), ("collect", "--width 0"),
    ("collect", "--join= --out y.npz"), ("collect", "--join x.npz, --out y.npz"),
    ("collect", "--lr 2"), ("collect", "--gamma -1"), ("collect", "--updates 0"),
    ("bench", "--seconds nan"), ("bench", "--seconds 0"), ("bench", "--json missing/x.json"),
    ("bench", "--json taken/thesis.txt"), ("bench", "--json /dev/null"),
    ("bench", "--figure missing/x.png"), ("bench", "--device abacus"),
    *(("helpers/plot", line) for line in (
        "curve missing --out x.png", "curve taken --out x.png", "poster taken --out x.png",
        "curve taken", "curve taken --out x", "curve taken --out missing/x.png",
        "curve --out x.png")),
    *(("experiments/tables", line) for line in (
        *(f"{kind} taken --out x.png" for kind in tables.KINDS),
        "results missing --out x.png", "scores taken --out x")),
]


@pytest.mark.parametrize("case", FLAGS, ids=lambda case: f"{case[0]} {case[1]}"[:40])
def test_bad_flags(case, tmp_path):
    program, line, *words = case
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.txt").write_text("precious")
    family = ["--env", "point_goal"] if program in ("macaw", "focal", "smac", "collect") else []
    refused(tmp_path, program, *(family if "--env" not in line else []), *line.split(), words=words)


def test_a_name_of_several_lines_is_said_in_one(tmp_path):
    refused(tmp_path, "macaw", "--env", "point_goal", "--data", "a\nb.npz", words=["a b.npz"])


def test_a_folder_of_runs_that_is_not_there_ends_no_program_in_a_loop(tmp_path):
    (tmp_path / "runs").symlink_to("scratch")                       # not mounted
    refused(tmp_path, "macaw", "--env", "point_goal", words=["runs"])


@pytest.mark.parametrize("word, changes", [
    ("JSON", dict(tasks=[dict(goal=(1.0, 0.0))] * 20)), ("JSON", dict(tasks=[np.zeros(2)] * 20)),
    ("test", dict(test=(2, 99))), ("test", dict(test=())),
    ("[-1, 1]", dict(action_space=Box(-2.0, 2.0, (2,)))), ("flat", dict(action_space=Discrete(2))),
    ("flat", dict(observation_space=Box(-1.0, 1.0, (3, 3))))])
def test_families_that_do_not_fit_are_refused(word, changes, tmp_path, monkeypatch):
    """A user's own; before the agents have lived for an hour."""
    family = envs.FAMILIES["point_goal"]
    for name, value in changes.items():
        if name.endswith("space"):
            monkeypatch.setattr(envs.PointGoal, name, value)
        else:
            monkeypatch.setitem(envs.FAMILIES, "point_goal", family._replace(**{name: value}))
    for program in ("collect", "macaw"):
        refused(tmp_path, program, "--env", "point_goal", "--out", "x",
                words=[word, "the family point_goal"])


# ------------------------------------------------------------------------------------- checkpoints

@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The state of a run of two meta-steps."""
    some = run_of(width=8, latent=4, steps=4)
    some.folder = tmp_path_factory.mktemp("run")
    macaw.meta_train(some, until=2)
    some.save()
    return torch.load(some.folder / "checkpoint.pt", weights_only=True)


def field(name, value):
    return lambda state: state.__setitem__(name, value)


def within(name, key, value):
    return lambda state: state[name].__setitem__(key, value)


def first_tensor(name, change):
    def apply(state):
        key = next(k for k, x in state[name].items() if x.ndim)
        state[name][key] = change(state[name][key].clone())
    return apply


def poisoned(x):
    x.view(-1)[0] = float("nan")
    return x


def moments(change):
    def apply(state):
        for moment in state["optimizer"]["state"].values():
            moment["exp_avg"] = change(moment["exp_avg"])
    return apply


CHECKPOINTS = {
    **{f"no_{name}": lambda state, name=name: state.pop(name) for name in run.STATE},
    **{f"bad_{name}": field(name, None) for name in run.STATE},
    "future": field("format", 99), "unknown_setting": within("config", "wings", 2),
    "missing_setting": lambda state: state["config"].pop("width"),
    "text_width": within("config", "width", "8"), "negative_width": within("config", "width", -8),
    "huge_width": within("config", "width", 4096), "other_width": within("config", "width", 9),
    "unknown_env": within("config", "env", "moon_walk"),
    "other_env": within("config", "env", "cheetah_vel"),
    "unknown_variant": within("config", "variant", "magic"),
    "bad_steps": within("config", "steps", 0), "bad_gamma": within("config", "gamma", 7.0),
    "text_rows": field("rows", ["x"]), "rows_without_step": field("rows", [{}]),
    "later_step": field("step", 99), "earlier_step": field("step", -1),
    "nan_weight": first_tensor("learner", poisoned),
    "wide_weight": first_tensor("learner", lambda x: torch.cat([x, x])),
    "text_weight": lambda state: state["learner"].update({next(iter(state["learner"])): "x"}),
    "missing_weight": lambda state: state["learner"].popitem(),
    "extra_weight": within("learner", "wings", torch.zeros(2)),
    "nan_stats": within("stats", "obs_mean", torch.full((2,), float("nan"))),
    "wide_stats": within("stats", "obs_mean", torch.zeros(5)),
    "missing_stats": lambda state: state["stats"].pop("obs_std"),
    "no_groups": within("optimizer", "param_groups", []),
    "missing_groups": lambda state: state["optimizer"].pop("param_groups"),
    "bad_generator": field("generator", torch.zeros(3)),
}
FOR_RESUME = {
    "stripped_optimizer": within("optimizer", "state", {}),
    "wide_moments": moments(lambda x: torch.zeros(3, 3)),
    "nan_moments": moments(lambda x: x * torch.nan),
    "other_data": field("data", "0" * 64), "unknown_train": field("train", [0, 1, 3, 4, 5, 99]),
}


@pytest.mark.parametrize("name", [*CHECKPOINTS, *FOR_RESUME])
def test_bad_checkpoints(name, checkpoint, tmp_path):
    state = copy.deepcopy(checkpoint)
    {**CHECKPOINTS, **FOR_RESUME}[name](state)
    torch.save(state, tmp_path / "checkpoint.pt")
    refused(tmp_path, "macaw", "--resume", "--out", tmp_path)
    if name in CHECKPOINTS:
        refused(tmp_path, "macaw", "--evaluate", "checkpoint.pt")


def plain_array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


FILES = {"empty": lambda path: path.write_bytes(b""), "text": lambda path: path.write_text("hello"),
         "pipe": os.mkfifo, "data": lambda path: path.write_bytes(POINT.read_bytes()),
         "array": plain_array, "folder": lambda path: path.mkdir()}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_checkpoint(name, tmp_path):
    FILES[name](tmp_path / "checkpoint.pt")
    refused(tmp_path, "macaw", "--evaluate", "checkpoint.pt", words=["checkpoint.pt"])
    refused(tmp_path, "macaw", "--resume", "--out", tmp_path, words=["checkpoint.pt"])


def test_a_checkpoint_is_evaluated_and_resumed_only_as_what_it_is(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    for flag in ("--latent 5", "--env cheetah_vel", "--variant meta_bc", "--seed 7", "--steps 9",
                 "--policy-lr 0.1", "--holdout 3"):
        refused(tmp_path, "macaw", "--resume", "--out", tmp_path, *flag.split(),
                words=[flag.split()[0]])
    assert command_line("--evaluate", tmp_path / "checkpoint.pt", "--final-draws", 1,
                        "--test-batch", 16).returncode == 0


def test_a_checkpoint_of_another_program_is_sent_there(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    refused(tmp_path, "focal", "--evaluate", tmp_path / "checkpoint.pt", words=["variant macaw"])


def test_returns_that_are_not_finite_are_no_result(tmp_path, checkpoint):
    """Weights that are finite and give actions that are not."""
    learner = {name: x * 1e30 for name, x in checkpoint["learner"].items()}
    torch.save({**checkpoint, "learner": learner}, tmp_path / "checkpoint.pt")
    result = command_line("--evaluate", tmp_path / "checkpoint.pt", "--final-draws", 1,
                          "--test-batch", 16, "--out", tmp_path / "here")
    assert result.returncode == 1 and "return" in result.stderr
    assert not list((tmp_path / "here").glob("summary*"))


# ------------------------------------------------------------------------------------- run folders

def test_a_folder_with_somebodys_own_settings_is_taken(tmp_path):
    (tmp_path / "config.json").write_text('{"my": "precious"}')
    refused(tmp_path, "macaw", "--env", "point_goal", "--out", tmp_path, words=["is taken"])


def test_broken_run_folders_are_not_drawn(tmp_path):
    config = '{"variant": "macaw", "env": "point_goal", "seed": 0}'
    table = "step,before,after\n1,2,3\n"
    for number, (names, texts) in enumerate([
            (("config.json",), (config,)), (("metrics.csv",), (table,)),
            (("config.json", "metrics.csv"), ("{", table)),
            (("config.json", "metrics.csv"), ("[]", table)),
            (("config.json", "metrics.csv"), (config, "")),
            (("config.json", "metrics.csv"), (config, "step,before\n1,2\n")),
            (("config.json", "metrics.csv"), (config, "step,before,after\n1,2,x\n"))]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, text in zip(names, texts):
            (folder / name).write_text(text)
        refused(tmp_path, "helpers/plot", "curve", folder, "--out", "x.png", words=[str(folder)])


def test_two_processes_do_not_share_a_folder(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    with command.lock(tmp_path):
        refused(tmp_path, "macaw", "--resume", "--out", tmp_path, words=["in use"])
    with command.lock(tmp_path / "x.npz.lock"):
        refused(tmp_path, "collect", "--env", "point_goal", "--out", "x.npz", words=["in use"])


# -------------------------------------------------------------------------- what the system refuses

@pytest.mark.parametrize("error, code, words", [
    (PermissionError(13, "Permission denied", "x"), 2, "Permission denied"),
    (OSError(28, "No space left on device"), 2, "No space left"), (MemoryError(), 2, "memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "memory"),
    (KeyboardInterrupt(), 130, "--resume"), (command.Terminated(), 143, "--resume"),
    (command.Diverged("the value loss is nan"), 1, "nan")])
def test_what_stops_a_run_is_one_sentence_and_loses_nothing(error, code, words, tmp_path,
                                                            monkeypatch):
    line = ["--env", "point_goal", "--steps", 12, "--eval-every", 5, "--final-draws", 1,
            "--out", tmp_path / "run"]
    choose, calls = run.Run.choose, []

    def fail(self, count):
        calls.append(self.step)
        if self.step == 7:
            raise error
        return choose(self, count)
    monkeypatch.setattr(run.Run, "choose", fail)
    result = command_line(*line)
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


def test_a_return_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "evaluate", lambda some, draws: [np.array([np.nan])] * 2
                        if some.step == 10 else [np.array([1.0])] * 2)
    result = command_line("--env", "point_goal", "--steps", 20, "--eval-every", 5, "--out",
                          tmp_path / "run")
    assert result.returncode == 1 and "nan" in result.stderr and "--policy-lr" in result.stderr
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["step"] == 5


@pytest.mark.parametrize("line, words", [
    ("macaw.py --env moon_walk", "moon_walk"), ("macaw.py --data /dev/null", "not a file"),
    ("macaw.py --env point_goal --out /dev/full", "taken"), ("collect.py --env moon_walk", "moon"),
    ("bench.py --seconds 0", "--seconds"), ("-m helpers.plot curve /dev --out x.png", "/dev"),
    ("macaw.py --env point_goal --width 4096 --latent 4096", "memory")])
def test_real_processes_refuse_too(line, words):
    conftest.refused(subprocess.run([sys.executable, *line.split()], text=True, capture_output=True,
                                    cwd=HERE), words)


def test_a_closed_pipe_is_no_traceback(tmp_path):
    program = f"{sys.executable} {HERE}/macaw.py --env point_goal --steps 3 --final-draws 1"
    result = subprocess.run(["bash", "-c", f"set -o pipefail; {program} --out {tmp_path}/r | true"],
                            text=True, capture_output=True)
    assert result.returncode in (0, 2) and "Traceback" not in result.stderr, result.stderr


def test_several_processes_refuse_with_one_voice(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for line in (["--env", "moon_walk"], ["--env", "point_goal", "--tasks-per-step", "1"]):
        result = subprocess.run([*torchrun, "macaw.py", *line, "--out", tmp_path / "run"], cwd=HERE,
                                text=True, capture_output=True)
        said = [text for text in result.stderr.splitlines() if text.startswith("macaw.py: ")]
        assert len(said) == 1 and result.returncode != 0


# -------------------------------------------------------------------------------------------- kills

def die_at(moment, arguments):
    """Runs macaw.py and kills this process at its so manieth write: before a file is moved to its
    place, or just after."""
    replace, left = os.replace, [moment]

    def counted(part, path):
        for move in (lambda: None, lambda: replace(part, path)):
            move()
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
    os.replace = counted
    torch.set_num_threads(1)
    sys.exit(command_line(*arguments).returncode)


def test_a_run_killed_at_any_write_goes_on_to_the_same_end(tmp_path, monkeypatch):
    """At each of a run's writes: its settings, first checkpoint, metrics, and so on."""
    line = ["--env", "point_goal", "--steps", "6", "--eval-every", "3",
            "--final-draws", "1", "--width", "8", "--latent", "4"]
    monkeypatch.setenv("PYTHONPATH", str(HERE))             # for the server that forks
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_robustness", "torch._dynamo"])     # slow to import
    torch.set_num_threads(1)                                # as there

    def start(moment, *arguments):
        process = context.Process(target=die_at, args=(moment, arguments))
        process.start()
        process.join()
        return process.exitcode
    whole, moment = tmp_path / "whole", 0
    assert command_line(*line, "--out", whole).returncode == 0
    expected = torch.load(whole / "checkpoint.pt", weights_only=True)
    while start(moment, *line, "--out", tmp_path / str(moment)) == -signal.SIGKILL:
        folder = tmp_path / str(moment)
        again = ["--resume"] if (folder / "checkpoint.pt").exists() else line
        assert command_line(*again, "--out", folder).returncode == 0
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        for name, p in expected["learner"].items():
            assert torch.equal(state["learner"][name], p), (moment, name)
        assert torch.equal(state["generator"], expected["generator"])
        for one, other in zip(state["rows"], expected["rows"], strict=True):
            assert {**one, "seconds": 0} == {**other, "seconds": 0}
        moment += 1
    torch.set_num_threads(2)
    assert moment == 22     # settings, 4 checkpoints with their metrics, summary, picture: twice


# --------------------------------------------------------------------------------------------- fuzz

def damaged(content, random):
    """The bytes of a file cut off, or with one to eight bits turned over."""
    content = bytearray(content)
    if random.random() < 0.2:
        return content[:random.integers(len(content))]
    for place in random.integers(len(content), size=random.integers(1, 9)):
        content[place] ^= 1 << random.integers(8)
    return content


def test_damaged_checkpoints_are_refused_or_read_as_they_were(checkpoint, tmp_path):
    random, path, count = np.random.default_rng(0), tmp_path / "file", 0
    torch.save(checkpoint, path)
    state = path.read_bytes()
    for _ in range(200):
        path.write_bytes(damaged(state, random))
        try:
            found = run.load_checkpoint(path, macaw.MACAW, {})
        except BadInput:
            count += 1
        else:
            assert all(torch.equal(found["learner"][name], p)
                       for name, p in checkpoint["learner"].items())
    assert count > 150
