"""Training, evaluation, resume: each test is named after the claim that it would refute."""
import copy
import csv
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import HERE, command_line, config_of, run_of, step
from PIL import Image

import envs
import macaw
from helpers import command, data, render
from helpers.data import Batch, Buffers
from helpers.run import Run

TINY = ["--env", "point_goal", "--steps", "6", "--eval-every", "3", "--final-draws", "1",
        "--width", "8", "--latent", "4"]

# --------------------------------------------------------------------------------------- settings

def test_later_settings_win(monkeypatch):
    """Default < family < variant < the variant's entry for the family < changes."""
    presets = {"point_goal": dict(width=5, late=0.1, inner_lr=0.1, steps=5)}
    variants = {"macaw": {}, "other": dict(late=0.2, inner_lr=0.2, point_goal=dict(inner_lr=0.3))}
    method = macaw.MACAW._replace(presets=presets, variants=variants)
    config = method.settings(env="point_goal", variant="other", steps=7)
    assert (config.latent, config.width, config.late, config.inner_lr, config.steps) == (
        32, 5, 0.2, 0.3, 7)
    assert method.settings(env="point_goal").variant == "macaw"
    for bad in (dict(env="moon"), dict(variant="magic"), dict(wings=2), dict(steps=0)):
        with pytest.raises(command.BadInput):
            method.settings(**{**dict(env="point_goal"), **bad})


def test_the_command_line_and_python_have_the_same_settings(tmp_path):
    result = command_line(*TINY, "--variant", "meta_bc", "--no-smooth", "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "run/config.json").read_text())
    config = config_of(variant="meta_bc", smooth=False, steps=6, eval_every=3, final_draws=1,
                       width=8, latent=4)
    assert macaw.Config(**written) == config


# ------------------------------------------------------------------------ rollouts and evaluation

def test_task_i_runs_with_goal_i(point):
    """A policy that walks to its own task's goal is good in each; to another's, in none."""
    tasks = [0, 5, 12]
    goals = torch.tensor([envs.FAMILIES["point_goal"].tasks[i]["goal"] for i in tasks])

    def walker(goals):
        def pi(obs):
            place = obs * point.stats["obs_std"] + point.stats["obs_mean"]
            return ((goals[:, None] - place) * 10).clamp(-1, 1)
        return pi
    with envs.environments_of("point_goal", tasks) as environments:
        right = envs.rollout(walker(goals), environments, range(3), point.observe)
        wrong = envs.rollout(walker(goals[[1, 2, 0]]), environments, range(3), point.observe)
    assert right.min() > -10 and wrong.max() < -25


def test_evaluation_pairs_each_held_out_task_with_its_environment_and_batch(monkeypatch):
    run, made, sampled = run_of(), [], []
    make, sample = envs.make, Buffers.sample
    monkeypatch.setattr(envs, "make", lambda name, task: made.append(task) or make(name, task))
    monkeypatch.setattr(Buffers, "sample", lambda self, tasks, *rest:
                        sampled.append(tasks) or sample(self, tasks, *rest))
    before, after = macaw.meta_test(run, draws=2)
    assert sampled == [[2, 2, 7, 7, 12, 12, 17, 17]]
    assert made == [envs.FAMILIES["point_goal"].tasks[i] for i in sampled[0]]
    assert before.shape == after.shape == (4,)


def test_evaluation_changes_nothing_in_training():
    def losses(evaluations):
        run, found = run_of(steps=6), []
        for _ in range(4):
            for _ in range(evaluations):
                macaw.meta_test(run, draws=1)
            found.append(step(run))
        return found
    assert losses(0) == losses(2)


def test_states_that_begin_as_whole_numbers_go_on_as_they_are(point):
    class Whole:
        steps = 0

        def reset(self, seed):
            return np.array([0, 0]), {}

        def step(self, action):
            self.steps += 1
            return np.array([0.5, 0.25]), 1.0, False, self.steps == 2, {}
    seen = []
    envs.rollout(lambda obs: torch.zeros(1, 1, 2), [Whole()], [0], point.observe,
                 record=lambda k, obs, *_: seen.append(obs.tolist()))
    assert seen == [[0.0, 0.0], [0.5, 0.25]]


# --------------------------------------------------------------------------------------- training

def test_same_seed_same_numbers_other_seed_others():
    def losses(seed):
        run = run_of(seed=seed)
        return [step(run) for _ in range(3)]
    assert losses(0) == losses(0) != losses(1)


@pytest.mark.parametrize("variant", macaw.VARIANTS)
def test_every_variant_takes_steps_that_change_the_outcome(variant):
    run = run_of(variant=variant, test_steps=2)
    before, after = macaw.meta_test(run, draws=1)
    assert not np.allclose(before, after)
    assert np.isfinite([*step(run).values(), *step(run).values()]).all()


@pytest.mark.parametrize("family", envs.FAMILIES)
def test_every_preset_takes_steps(family):
    run = run_of(family)
    assert np.isfinite([*step(run).values(), *step(run).values()]).all()


def test_fine_tuning_is_adam_on_each_task_alone():
    """MT+FT: T tasks at once equal torch's own Adam on copies of the nets, task by task; not to the
    last digit, for `higher` adds epsilon at another place."""
    run = run_of(variant="mt_awr")
    model, tasks = run.learner.double(), run.buffers.test[:2]
    batch, = run.buffers.sample(tasks, [32], torch.Generator().manual_seed(0))
    batch = Batch(*(x.double() for x in batch))
    pi, V = model.adapt(batch, 5)
    for i in range(len(tasks)):
        mine, nets = Batch(*(x[i:i + 1] for x in batch)), []
        for loop in (model.policy, model.value):
            net = copy.deepcopy(loop.net).to_empty(device="cpu").double()
            for p, t in zip(net.parameters(), loop.transforms, strict=True):
                p.data = t.w.detach().clone()
            nets.append((net, torch.optim.Adam(net.parameters(), lr=run.config.inner_lr)))
        (policy, policy_adam), (value, value_adam) = nets
        for _ in range(5):
            value_adam.zero_grad()
            macaw.value_loss(macaw.advantages(value, mine, True)).backward()
            value_adam.step()
            policy_adam.zero_grad()
            advantage = macaw.advantages(value, mine, run.config.bootstrap)
            macaw.policy_loss(policy, mine, advantage, run.config).backward()
            policy_adam.step()
        for ours, theirs in ((pi(batch.obs), policy(mine.obs)), (V(batch.obs), value(mine.obs))):
            torch.testing.assert_close(ours[i:i + 1], theirs, rtol=0, atol=1e-4)


def test_a_multi_task_learner_sees_ids_of_training_tasks_and_of_no_others():
    run = run_of(variant="mt_awr")
    plain, buffers, random = run_of().buffers, run.buffers, torch.Generator()
    for tasks, known in ((buffers.train[1:3], True), (buffers.test[:2], False)):
        with_id, = buffers.sample(tasks, [8], random.manual_seed(0), known=known)
        bare, = plain.sample(tasks, [8], random.manual_seed(0), known=known)
        obs, ids = with_id.obs.split([plain.obs_dim, len(buffers.train)], -1)
        assert torch.equal(obs, bare.obs)
        expected = torch.eye(len(buffers.train))[1:3] if known else torch.zeros_like(ids[:, 0])
        assert torch.equal(ids, expected[:, None].expand_as(ids))


def test_the_adapted_policy_learns_to_beat_the_unadapted_one():
    run = run_of(steps=150)
    macaw.meta_train(run, until=150)
    before, after = macaw.meta_test(run, draws=4)
    assert before.mean() < -30 and after.mean() > -20 and (after > before + 10).all()


@pytest.mark.parametrize("poison, loss", [("mc_return", "value loss"), ("action", "policy loss")])
def test_what_is_not_finite_stops_the_run_before_the_step(poison, loss):
    run = run_of()
    step(run)
    getattr(run.buffers, poison).fill_(float("nan"))
    before = copy.deepcopy(run.learner.state_dict())
    with pytest.raises(command.Diverged, match=f"{loss} is nan at step 2.*--inner-lr"):
        step(run)
    assert run.step == 1
    assert all(torch.equal(p, before[name]) for name, p in run.learner.state_dict().items())


def test_memory_does_not_grow():
    run = run_of()

    def resident():
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096
    for _ in range(50):
        step(run)
    start = resident()
    for _ in range(150):
        step(run)
    assert resident() - start < 20e6


# ------------------------------------------------------------------------------ several processes

def test_two_processes_take_the_step_of_one(tmp_path):
    """Three tasks over two processes: two of them here, one there."""
    settings = ["macaw.py", *TINY, "--tasks-per-step", "3", "--out"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, *settings, tmp_path / "two"], cwd=HERE, check=True,
                   capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    command_line(*settings[1:], tmp_path / "one")
    one, two = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
                for name in ("one", "two"))
    start = run_of(width=8, latent=4, seed=0).learner.state_dict()
    for name, p in one["learner"].items():
        torch.testing.assert_close(two["learner"][name], p, rtol=1e-4, atol=1e-6)
    assert any((p - start[name]).abs().max() > 1e-3 for name, p in two["learner"].items())


# -------------------------------------------------------------------------------- kills, resume

def die_at(moment, arguments):
    """Runs macaw.py in a fork, which kills itself at its so manieth write: before a file is moved
    to its place, or just after. Its exit code, or minus the signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    replace, left = os.replace, [moment]

    def counted(part, path):
        for move in (lambda: None, lambda: replace(part, path)):
            move()
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
    os.replace = counted
    os._exit(command_line(*arguments).returncode)


def files_of(folder):
    """What a run leaves, without times."""
    with open(folder / "metrics.csv") as file:
        metrics = [{**row, "seconds": 0} for row in csv.DictReader(file)]
    summary = json.loads((folder / "summary.json").read_text())
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return metrics, {k: v for k, v in summary.items() if "second" not in k}, state


def test_a_run_killed_at_any_write_resumes_exactly(tmp_path):
    assert command_line(*TINY, "--out", tmp_path / "whole").returncode == 0
    metrics, summary, state = files_of(tmp_path / "whole")
    moment = 0
    while die_at(moment, [*TINY, "--out", tmp_path / str(moment)]) == -signal.SIGKILL:
        folder = tmp_path / str(moment)
        begin = ["--resume"] if (folder / "checkpoint.pt").exists() else TINY
        result = command_line(*begin, "--out", folder)
        assert result.returncode == 0, result.stderr
        assert files_of(folder)[:2] == (metrics, summary)
        for name, p in state["learner"].items():
            assert torch.equal(files_of(folder)[2]["learner"][name], p), (moment, name)
        moment += 1
    assert moment > 12                          # config, and each checkpoint with its metrics


def test_a_save_that_dies_midway_leaves_the_old_file(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), command.replacing(path) as file:
        file.write(b"half of the n")
        raise KeyboardInterrupt
    assert [f.read_bytes() for f in tmp_path.iterdir()] == [b"old"]


# ------------------------------------------------------------------------------------------- films

@pytest.fixture(scope="module")
def renderer():
    """Asked for once: without a display MuJoCo aborts the process at the second try."""
    try:
        render.camera("cheetah_vel", envs.FAMILIES["cheetah_vel"].tasks[0]).close()
    except command.BadInput:
        pytest.skip("no renderer here")


def test_both_halves_of_a_film_show_something(tmp_path, renderer):
    """Once the second was black: a closed renderer takes the next one's context along."""
    run = Run(macaw.MACAW, config_of("cheetah_vel", width=8, latent=4))
    render.side_by_side(run, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        film.seek(50)
        frame = np.asarray(film.convert("RGB"))
    halves = frame[:, :256], frame[:, 256:]
    assert min(half.std() for half in halves) > 10 and not np.array_equal(*halves)


def test_the_names_of_shipped_files_need_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data.path_of("point_goal").exists()
    assert data.path_of("a/b.npz") == pathlib.Path("a/b.npz")
