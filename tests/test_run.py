"""Runs, evaluation, bad input: each test is named after the claim that it would refute."""
import copy
import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import HERE, POINT, command_line, config_of, data_file, refused, run_of, step
from PIL import Image

import envs
import macaw
from helpers import command, data, render
from helpers.data import Batch, Buffers
from helpers.run import Run, evaluate, rollout, summary

# -------------------------------------------------------------------------- rollout and evaluation

def test_task_i_runs_with_goal_i(point):
    """A policy that walks to its own task's goal is good in each; to another's, in none."""
    tasks = [0, 5, 12]
    environments = [envs.make("point_goal", envs.FAMILIES["point_goal"].tasks[i]) for i in tasks]
    goals = torch.tensor([envs.FAMILIES["point_goal"].tasks[i]["goal"] for i in tasks])

    def walker(goals):
        def pi(obs):
            place = obs * point.stats["obs_std"] + point.stats["obs_mean"]
            return ((goals[:, None] - place) * 10).clamp(-1, 1)
        return pi
    right = rollout(walker(goals), environments, range(3), point)
    wrong = rollout(walker(goals[[1, 2, 0]]), environments, range(3), point)
    assert right.min() > -10 and wrong.max() < -25


def test_evaluation_pairs_each_held_out_task_with_its_environment_and_batch(monkeypatch):
    run = run_of()
    made, sampled = [], []
    make, sample = envs.make, Buffers.sample
    monkeypatch.setattr(envs, "make", lambda name, task: made.append(task) or make(name, task))
    monkeypatch.setattr(Buffers, "sample", lambda self, tasks, *rest:
                        sampled.append(tasks) or sample(self, tasks, *rest))
    before, after = evaluate(run, draws=2)
    assert sampled == [[2, 2, 7, 7, 12, 12, 17, 17]]
    assert made == [envs.FAMILIES["point_goal"].tasks[i] for i in sampled[0]]
    assert before.shape == after.shape == (4,)


def test_evaluation_changes_nothing_in_training(tmp_path):
    def losses(evaluations):
        run = run_of(steps=6)
        result = []
        for _ in range(6):
            for _ in range(evaluations):
                evaluate(run, draws=1)
            result.append(step(run))
        return result
    assert losses(0) == losses(2)


# --------------------------------------------------------------------------------------- training

def test_same_seed_same_numbers_other_seed_others():
    def losses(seed):
        run = run_of(seed=seed)
        return [step(run) for _ in range(3)]
    assert losses(0) == losses(0) != losses(1)


@pytest.mark.parametrize("variant", macaw.VARIANTS)
@pytest.mark.parametrize("inner_steps", [1, 2])
def test_every_variant_takes_steps_that_change_the_outcome(variant, inner_steps):
    run = run_of(**{**macaw.VARIANTS[variant], "variant": variant,
                                 "inner_steps": inner_steps, "test_steps": inner_steps})
    before, after = evaluate(run, draws=1)
    assert not np.allclose(before, after)
    assert np.isfinite([*step(run).values(), *step(run).values()]).all()


def test_fine_tuning_is_adam_on_each_task_alone():
    """MT+FT: T tasks at once equal torch's own Adam on copies of the nets, task by task; not to the
    last digit, for `higher` adds epsilon at another place."""
    run = run_of(**macaw.VARIANTS["mt_awr"])
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


def test_a_multi_task_learner_is_told_training_tasks_and_no_others():
    run = run_of(**macaw.VARIANTS["mt_awr"])
    plain, buffers = run_of().buffers, run.buffers
    assert buffers.obs_dim == plain.obs_dim + len(buffers.train)
    random = torch.Generator()
    for tasks, known in ((buffers.train[1:3], True), (buffers.test[:2], False)):
        told, = buffers.sample(tasks, [8], random.manual_seed(0), known=known)
        bare, = plain.sample(tasks, [8], random.manual_seed(0), known=known)
        for name in ("obs", "last_obs"):
            obs, ids = getattr(told, name).split([plain.obs_dim, len(buffers.train)], -1)
            assert torch.equal(obs, getattr(bare, name))
            expected = torch.eye(len(buffers.train))[1:3] if known else torch.zeros_like(ids[:, 0])
            assert torch.equal(ids, expected[:, None].expand_as(ids))


@pytest.mark.parametrize("family", [f for f in envs.FAMILIES if data.default_path(f).exists()])
def test_every_preset_with_data_takes_steps(family):
    run = run_of(family)
    assert np.isfinite([*step(run).values(), *step(run).values()]).all()


def test_the_adapted_policy_learns_to_beat_the_unadapted_one(tmp_path):
    config = config_of(steps=150, eval_every=150, final_draws=4)
    run = Run(macaw.MACAW, config, folder=tmp_path)
    macaw.meta_train(run, until=config.steps)
    result = summary(run)
    assert result["before"] < -30 and result["after"] > -20
    assert all(task["after"] > task["before"] + 10 for task in result["tasks"])


def files_of(folder):
    with open(folder / "metrics.csv") as file:
        metrics = list(csv.DictReader(file))
    for row in metrics:
        row.pop("seconds")
    summary = json.loads((folder / "summary.json").read_text())
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return metrics, {k: v for k, v in summary.items() if "second" not in k}, state


def test_a_run_killed_at_any_moment_resumes_exactly(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))     # as here
    settings = ["--env", "point_goal", "--steps", 60, "--eval-every", 10, "--final-draws", 1,
                "--seed", 3]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = command_line(*settings, "--out", whole)
    assert result.returncode == 0, result.stderr
    process = subprocess.Popen([sys.executable, HERE / "macaw.py", *map(str, settings), "--out",
                                killed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    def reached():
        path = killed / "checkpoint.pt"
        return torch.load(path, weights_only=True)["step"] if path.exists() else -1
    for moment in (0, 20):                  # killed before its first evaluation, and further on
        while reached() < moment:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert reached() < 60
        process = subprocess.Popen([sys.executable, HERE / "macaw.py", "--resume", "--out", killed],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.wait() == 0
    for one, other in zip(files_of(whole)[:2], files_of(killed)[:2]):
        assert one == other
    one, other = files_of(whole)[2], files_of(killed)[2]
    assert torch.equal(one["generator"], other["generator"])
    for name, tensor in one["learner"].items():
        assert torch.equal(tensor, other["learner"][name]), name


def test_a_save_that_dies_midway_leaves_the_old_file(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), command.replacing(path) as file:
        file.write(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    with command.replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("poison", ["mc_return", "action"])
def test_what_is_not_finite_stops_the_run_before_the_step(poison, tmp_path):
    run = run_of()
    step(run)
    getattr(run.buffers, poison).fill_(float("nan"))
    before = {name: p.detach().clone() for name, p in run.learner.named_parameters()}
    loss = "value loss" if poison == "mc_return" else "policy loss"
    with pytest.raises(command.Diverged, match=f"{loss} of step 2 is nan.*--inner-lr.*--max-grad"):
        step(run)
    assert all(torch.equal(p, before[name]) for name, p in run.learner.named_parameters())
    assert run.step == 1


def test_states_that_begin_as_whole_numbers_go_on_as_they_are(point):
    class Whole:
        def reset(self, seed):
            return np.array([0, 0]), {}

        def step(self, action):
            self.steps = getattr(self, "steps", 0) + 1
            return np.array([0.5, 0.25]), 1.0, False, self.steps == 2, {}
    seen = []
    rollout(lambda obs: torch.zeros(1, 1, 2), [Whole()], [0], point,
            record=lambda k, obs, *_: seen.append(obs.tolist()))
    assert seen == [[0.0, 0.0], [0.5, 0.25]]


def test_one_process_needs_no_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")                   # as a scheduler may set it
    monkeypatch.setenv("RANK", "0")
    step(run_of())


def test_two_processes_take_the_step_of_one(tmp_path):
    """Three tasks over two processes: two of them here, one there."""
    settings = ["macaw.py", "--env", "point_goal", "--steps", "3", "--tasks-per-step", "3",
                "--inner-batch", "32", "--outer-batch", "32", "--final-draws", "1", "--out"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for launcher, name in (([sys.executable], "one"), (torchrun, "two")):
        subprocess.run([*launcher, *settings, tmp_path / name], cwd=HERE, check=True,
                       capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    one, two = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
                for name in ("one", "two"))
    start = run_of(seed=0).learner.state_dict()
    for name, p in one["learner"].items():
        torch.testing.assert_close(two["learner"][name], p, rtol=1e-4, atol=1e-6)
    assert any((p - start[name]).abs().max() > 1e-3 for name, p in two["learner"].items())


def test_memory_does_not_grow():
    run = run_of()

    def resident():
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096
    for _ in range(100):
        step(run)
    start = resident()
    for _ in range(200):
        step(run)
    assert resident() - start < 20e6


# -------------------------------------------------------------------------------------- bad input

def test_bad_data_files_are_refused(tmp_path):
    good = POINT.read_bytes()
    (tmp_path / "cut.npz").write_bytes(good[:len(good) // 2])
    (tmp_path / "text.npz").write_text("hello")
    damaged = bytearray(good)
    damaged[len(good) // 3:len(good) // 3 + 400] = bytes(400)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    lives = [40] * 64, [False] * 64, np.repeat([0, 1, 2, 7], 16)
    data_file(tmp_path / "wide.npz", *lives, observations=np.zeros((64 * 41, 5)))
    data_file(tmp_path / "future.npz", *lives, format=99)
    data_file(tmp_path / "untested.npz", [40] * 32, [False] * 32, np.repeat([0, 1], 16))
    for name, word in (("cut", "cut off"), ("text", "cut off"), ("damaged", "cut off"),
                       ("other", "no array"), ("wide", "sizes"), ("future", "99"),
                       ("untested", "test tasks")):
        path = tmp_path / f"{name}.npz"
        with pytest.raises(command.BadInput, match=word):
            Buffers(path, config_of(tasks_per_step=2))
    refused(command_line("--env", "point_goal", "--data", tmp_path / "cut.npz"), "cut.npz")
    refused(command_line("--env", "cheetah_vel", "--data", POINT), "point_goal", "cheetah_vel")


@pytest.fixture(scope="module")
def renderer():
    """Asked for once: without a display MuJoCo aborts the process at the second try."""
    try:
        render.camera("cheetah_vel", envs.FAMILIES["cheetah_vel"].tasks[0]).close()
    except command.BadInput:
        pytest.skip("no renderer here")


def test_both_halves_of_a_film_show_something(tmp_path, renderer):
    """Once the second was black: a closed renderer takes the next one's context along."""
    render.side_by_side(run_of("cheetah_vel"), rollout, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        film.seek(50)
        frame = np.asarray(film.convert("RGB"))
    halves = frame[:, :320], frame[:, 320:]
    assert min(half.std() for half in halves) > 10 and not np.array_equal(*halves)


def test_the_camera_follows_the_robot(renderer):
    env = render.camera("cheetah_vel", envs.FAMILIES["cheetah_vel"].tasks[0])
    env.reset(seed=0)
    state = env.unwrapped.data
    env.unwrapped.set_state(state.qpos + np.eye(9)[0] * 30, state.qvel)     # thirty metres on
    env.step(np.zeros(6))
    picture = env.render()[-1].astype(int)
    env.close()
    assert (picture[..., 0] - picture[..., 2] > 20).sum() > 500             # brown, on grey


def test_a_taken_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    refused(command_line("--env", "point_goal", "--out", tmp_path), "taken", "--resume")
    refused(command_line("--env", "point_goal", "--out", tmp_path / "thesis.txt"), "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    refused(command_line("--env", "point_goal", "--out", POINT, program="collect.py"), "exists")


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    run = run_of()
    run.folder, run.rows = tmp_path, [dict(step=0)]
    run.save()
    path = tmp_path / "checkpoint.pt"
    refused(command_line("--env", "cheetah_vel", "--evaluate", path), "point_goal")
    refused(command_line("--resume", "--out", tmp_path, "--latent", 99), "--latent")
    state = torch.load(path, weights_only=True)
    torch.save({**state, "format": 99}, tmp_path / "future.pt")
    refused(command_line("--evaluate", tmp_path / "future.pt"), "future.pt")
    path.write_bytes(path.read_bytes()[:1000])
    refused(command_line("--resume", "--out", tmp_path), "damaged")
    assert len(path.read_bytes()) == 1000
