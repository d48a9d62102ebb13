"""Each test is named after the claim that it would refute. `python -m pytest -q` runs all."""
import ast
import copy
import csv
import dataclasses
import json
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import time

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from PIL import Image

import buffers
import collect
import command
import envs
import macaw
import render
import sac
from buffers import Batch, Buffers
from straightforward import Straightforward

HERE = pathlib.Path(__file__).parent
torch.set_num_threads(2)


# ------------------------------------------------------- the released code's numbers (golden files)
# golden/*.npz hold one meta-step of the authors' program each, in float64: 3 tasks, batch 16.

GOLDEN = ([pathlib.Path(os.environ["MACAW_GOLDEN"])] if "MACAW_GOLDEN" in os.environ
          else sorted((HERE / "golden").glob("*.npz")))


class Golden:
    """A golden file, and a Macaw that holds its parameters."""

    def __init__(self, path):
        with np.load(path) as file:
            self.x = {name: torch.as_tensor(file[name]) for name in file.files}
        self.wt = "policy/seq.fc_0.z" in self.x
        self.adv = "policy/head_seq.fc_0.weight" in self.x
        self.config = macaw.Config(width=8, latent=6 if self.wt else 0, bootstrap=False,
                                   head_width=32 if self.adv else 0, inner_steps=1)
        self.macaw = macaw.Macaw(5, 2, self.config).double()
        with torch.no_grad():
            if self.adv:
                self.macaw.log_coef.copy_(inverse_softplus(self.x["advantage_coef"]))
            for net in ("policy", "value"):
                lrs = self.x[f"inner_lr_{net}"].split(3 if self.wt else 2)
                for name, t, lr in zip(self.layers(net), self.transforms(net), lrs, strict=True):
                    for p, value in zip(self.tensors(t), self.read(f"{net}/{name}"), strict=True):
                        p.copy_(value)
                    t.log_lr.copy_(inverse_softplus(lr))

    def layers(self, net):
        return [f"seq.fc_{i}" for i in range(4)] + (
            ["head_seq.fc_0", "head_seq.fc_1"] if net == "policy" and self.adv else [])

    def transforms(self, net):
        return getattr(self.macaw, net).transforms

    def tensors(self, transform):
        """z, M, m or theta, as `read` gives them."""
        return ([transform.z[0], transform.M, transform.m[0]] if self.wt else [transform.theta[0]])

    def read(self, key):
        """One layer's tensors in our shapes: z, M, m, or theta from W (out, in) and b."""
        if self.wt:
            return [self.x[f"{key}.{name}"] for name in ("z", "weight", "fc.bias")]
        return [torch.cat([self.x[key + ".weight"].T.reshape(-1), self.x[key + ".bias"]])]

    def batch(self, part, tasks=range(3)):
        obs, action, mc_return = (torch.stack([self.x[f"batch/{part}/{i}/{name}"] for i in tasks])
                                  for name in ("obs", "action", "mc_return"))
        return Batch(obs, action, mc_return, torch.zeros_like(mc_return), obs)


def inverse_softplus(x):
    return torch.log(torch.expm1(x))


def close(a, b):
    np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request):
    return Golden(request.param)


def test_losses_equal_those_of_the_released_code(golden, monkeypatch):
    seen = {"value": [], "policy": []}
    for net, function in (("value", macaw.value_loss), ("policy", macaw.policy_loss)):
        def record(*args, net=net, function=function, **kwargs):
            result = function(*args, **kwargs)
            seen[net].append(result[0] if net == "value" else result)
            return result
        monkeypatch.setattr(macaw, f"{net}_loss", record)
    for i in range(3):
        golden.macaw.meta_loss(golden.batch("inner", [i]), golden.batch("outer", [i]))
        for net, losses in seen.items():
            close(losses[0], golden.x[f"loss/inner/{net}/{i}"])
            close(losses[-1], golden.x[f"loss/outer/{net}/{i}"])
            losses.clear()


def test_adapted_parameters_equal_those_of_the_released_code(golden):
    """Theirs are copies of z, M and m for every task; ours theta alone, and d_0, z_0, z_1."""
    taken = []
    for net in ("value", "policy"):
        for name, t in zip(golden.layers(net), golden.transforms(net), strict=True):
            def record(d, memory, t=t, key=f"{net}/{name}", step=t.step):
                result = step(d, memory)
                taken.append((key, t, d, memory, result))
                return result
            t.step = record
    golden.macaw.adapt(golden.batch("inner"), steps=1, train=True)
    assert len(taken) == (10 if golden.adv else 8)
    for key, t, d, memory, step in taken:
        theta = t.initial()[0] - step
        for i in range(3):
            theirs = golden.read(f"adapted/{i}/{key}")
            if golden.wt:
                z, M, m = theirs
                a_z, a_M, a_m = torch.nn.functional.softplus(t.log_lr)
                close(memory[-1][-1][i], z)
                close(t.M - a_M * torch.outer(d[i], t.z[0]), M)
                close(t.m[0] - a_m * d[i], m)
                theirs = [M @ z + m]
            close(theta[i], theirs[0])


def test_meta_gradients_equal_those_of_the_released_code(golden):
    sum(golden.macaw.meta_loss(golden.batch("inner"), golden.batch("outer"))).backward()
    grads = dict(golden.x)
    if golden.adv:
        coef = golden.macaw.log_coef
        close(coef.grad / torch.sigmoid(coef), grads["meta_grad/advantage_coef"])
    for net in ("policy", "value"):
        lrs = []
        for name, t in zip(golden.layers(net), golden.transforms(net), strict=True):
            ours = [t.z.grad[0], t.M.grad, t.m.grad[0]] if golden.wt else [t.theta.grad[0]]
            for mine, theirs in zip(ours, golden.read(f"meta_grad/{net}/{name}"), strict=True):
                close(mine, theirs)
            lr_grad = torch.zeros(3 if golden.wt else 2)    # of an adapted head, which no one uses
            if t.log_lr.grad is not None:
                lr_grad = t.log_lr.grad / torch.sigmoid(t.log_lr)
            lrs.append(lr_grad)
        close(torch.cat(lrs), grads[f"meta_grad/inner_lr_{net}"])


# ------------------------------------------------------------- adaptation against other derivations

def small(seed=0, tasks=3, size=16, double=True, **changes):
    """A small Macaw and its inner and outer batch, of random numbers."""
    torch.manual_seed(seed)
    config = macaw.Config(**{**dict(width=8, latent=6, head_width=7, inner_lr=0.05,
                                     inner_steps=1), **changes})
    model = macaw.Macaw(5, 2, config)

    def batch():
        return Batch(torch.randn(tasks, size, 5), torch.rand(tasks, size, 2) * 2 - 1,
                     torch.randn(tasks, size), torch.rand(tasks, size), torch.randn(tasks, size, 5))
    batches = batch(), batch()
    if double:
        model = model.double()
        batches = [Batch(*(x.double() for x in b)) for b in batches]
    return model, *batches


def gradients(model, loss):
    names, parameters = zip(*model.named_parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return dict(zip(names, found))


def by_hand(model, inner, outer):
    """One task at a time, every tensor of every layer copied: the authors' way, not `higher`."""
    config, total, adapted = model.config, 0.0, []
    for i in range(len(inner.obs)):
        mine, test = (Batch(*(x[i:i + 1] for x in b)) for b in (inner, outer))
        nets = {}
        for kind in ("value", "policy"):
            learner = getattr(model, kind)
            state = [[t.z, t.M, t.m] if config.latent else [t.theta]
                     for t in learner.transforms]
            names = [name for name, _ in learner.net[0].named_parameters()]

            def net(*args, learner=learner, names=names, kind=kind):
                thetas = [x[0] @ x[1].T + x[2] if len(x) == 3 else x[0] for x in nets[kind]]
                return torch.func.functional_call(learner.net[0], dict(zip(names, thetas)), args)
            nets[kind], nets[kind + "_net"] = state, net

        def descend(kind, loss):
            flat = [x for layer in nets[kind] for x in layer]
            grads = iter(torch.autograd.grad(loss, flat, create_graph=True))
            for layer, t in zip(nets[kind], getattr(model, kind).transforms):
                lrs = torch.nn.functional.softplus(t.log_lr)
                if not config.latent:
                    lrs = [torch.cat([lrs[0].expand(t.inputs * t.outputs),
                                      lrs[1].expand(t.outputs)])]
                layer[:] = [x - lr * next(grads) for x, lr in zip(layer, lrs)]

        V, pi = nets["value_net"], nets["policy_net"]
        coef = torch.nn.functional.softplus(model.log_coef) if config.head_width else None
        for _ in range(config.inner_steps):
            descend("value", macaw.value_loss(V, mine, False)[0])
            advantage = macaw.value_loss(V, mine, config.bootstrap)[1]
            descend("policy", macaw.policy_loss(pi, mine, advantage, config, coef))
        loss_V, advantage = macaw.value_loss(V, test, config.bootstrap)
        total = total + loss_V + macaw.policy_loss(pi, test, advantage, config)
        adapted.append((pi(test.obs), V(test.obs)))
    pis, Vs = (torch.cat(x) for x in zip(*adapted))
    return total / len(inner.obs), pis, Vs


@pytest.mark.parametrize("inner_steps", [1, 2, 4])
@pytest.mark.parametrize("latent", [0, 5])
def test_adapting_all_tasks_at_once_equals_copying_every_tensor_of_each(inner_steps, latent):
    model, inner, outer = small(inner_steps=inner_steps, latent=latent)
    loss, pi_outputs, V_outputs = by_hand(model, inner, outer)
    pi, V = model.adapt(inner, inner_steps, train=False)
    close(pi(outer.obs), pi_outputs)
    close(V(outer.obs), V_outputs)
    ours = sum(model.meta_loss(inner, outer))
    close(ours, loss)
    theirs, ours = gradients(model, loss), gradients(model, ours)
    for name, gradient in ours.items():
        if gradient is None:                        # the head's step sizes, when one step is taken
            assert inner_steps == 1 and "log_lr" in name and name.split(".")[2] in "45"
            assert theirs[name].abs().max() == 0 if theirs[name] is not None else True
        else:
            close(gradient, theirs[name])


@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("head_width", [0, 4])
def test_the_way_that_the_benchmark_measures_against_gives_the_same(inner_steps, head_width):
    model, inner, outer = small(inner_steps=inner_steps, head_width=head_width)
    ours = gradients(model, sum(model.meta_loss(inner, outer)))
    Straightforward(model).backward(inner, outer)
    for name, p in model.named_parameters():
        if ours[name] is not None:
            close(p.grad, ours[name])


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_meta_gradient_equals_finite_differences(inner_steps):
    """The advantages are constants in the loss, so the differences hold them still, too."""
    model, inner, outer = small(inner_steps=inner_steps, temperature=1e9, bootstrap=False,
                                head_width=0)
    ours = gradients(model, sum(model.meta_loss(inner, outer)))
    random = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        direction = torch.randn(p.shape, generator=random, dtype=p.dtype)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                p.add_(direction, alpha=sign * 1e-6)
            ends.append(sum(model.meta_loss(inner, outer)).item())
            with torch.no_grad():
                p.sub_(direction, alpha=sign * 1e-6)
        slope = (ends[0] - ends[1]) / 2e-6
        assert (ours[name] * direction).sum().item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_meta_gradient_is_of_second_order(monkeypatch):
    model, inner, outer = small()
    second = gradients(model, sum(model.meta_loss(inner, outer)))
    step = macaw.WeightTransform.step
    monkeypatch.setattr(macaw.WeightTransform, "step",
                        lambda self, d, memory: step(self, d.detach(), memory))
    first = gradients(model, sum(model.meta_loss(inner, outer)))
    differing = [name for name in first
                 if first[name] is not None and not torch.allclose(first[name], second[name])]
    assert len(differing) > 20


def test_a_second_backward_pass_gives_the_same_gradients():
    """M's gradient is made of factors that a pass leaves; the next must not find them."""
    model, inner, outer = small()
    loss = sum(model.meta_loss(inner, outer))
    M = model.policy.transforms[1].M
    first, second = (torch.autograd.grad(loss, M, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_no_gradient_flows_through_advantages():
    model, inner, outer = small()
    found = gradients(model, model.meta_loss(inner, outer)[1])
    assert all(found[name] is None or found[name].abs().max() == 0
               for name in found if name.startswith("value"))
    assert found["policy.transforms.0.z"].abs().max() > 0


def test_every_tensor_is_in_one_optimizer_and_moves_in_a_step():
    for variant in macaw.VARIANTS:
        model, inner, outer = small(**macaw.VARIANTS[variant])
        optimizer = model.optimizer()
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters())
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        sum(model.meta_loss(inner, outer)).backward()
        optimizer.step()
        still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
        if variant == "mt_awr":                         # no inner step in training
            assert still == [name for name in before if "log_lr" in name]
        else:
            head = [f"policy.transforms.{i}.log_lr" for i in (4, 5)]    # cannot after one step
            assert still == (head if model.config.head_width else [])


def test_constant_advantages_give_finite_weights():
    config = macaw.Config()
    for value in (0.0, -3.7, 11.1):
        weights = macaw.advantage_weights(torch.full((2, 16), value), config)
        torch.testing.assert_close(weights, torch.ones(2, 16), rtol=0.05, atol=0)


def test_advantage_weights_equal_the_formula():
    config = macaw.Config(temperature=0.5, max_weight=4.0)
    A = torch.tensor([[0.0, 1.0, 2.0, 7.0]])
    scaled = (A.numpy()[0] - 2.5) / np.std([0, 1, 2, 7], ddof=1) / 0.5
    expected = np.minimum(np.exp(scaled), 4.0)
    np.testing.assert_allclose(macaw.advantage_weights(A, config)[0], expected, rtol=1e-6)
    assert expected[-1] == 4.0 > expected[-2]


@pytest.mark.parametrize("obs_dim, act_dim", [(17, 6), (27, 8)])
def test_equal_width_gives_equal_parameter_counts(obs_dim, act_dim):
    def size(variant):
        config = macaw.Config(**macaw.VARIANTS[variant])
        return sum(p.numel() for p in macaw.Macaw(obs_dim, act_dim, config).parameters())
    assert size("no_wt_wide") == pytest.approx(size("macaw"), rel=0.05)
    assert size("no_wt") < 0.1 * size("macaw")


def test_cloning_behaviour_is_a_hot_temperature():
    config = macaw.Config(**macaw.VARIANTS["meta_bc"])
    weights = macaw.advantage_weights(torch.tensor([[0.0, 1.0, 2.0, 700.0]]), config)
    assert torch.equal(weights, torch.ones(1, 4))


# ----------------------------------------------------------------------------------- environments

MUJOCO = [name for name in envs.FAMILIES if name != "point_goal"]


@pytest.mark.parametrize("name", envs.FAMILIES)
def test_check_env_is_clean(name, recwarn):
    env = gymnasium.make(f"macaw/{name}-v0", **envs.FAMILIES[name].tasks[0])
    check_env(env.unwrapped, skip_render_check=True)
    assert [str(w.message) for w in recwarn] == []
    env.close()


@pytest.mark.parametrize("name", envs.FAMILIES)
def test_tasks_survive_json_and_gymnasium_make(name):
    family = envs.FAMILIES[name]
    tasks = json.loads(json.dumps(family.tasks))
    assert tasks == family.tasks and len({json.dumps(task) for task in tasks}) == len(tasks)
    assert set(family.test) <= set(range(len(tasks)))
    one, two = gymnasium.make(f"macaw/{name}-v0", **tasks[-1]), envs.make(name, tasks[-1])
    copy = pickle.loads(pickle.dumps(two.unwrapped))
    for env in (one, two, copy):
        env.reset(seed=3)
    action = np.full(one.action_space.shape, 0.3, np.float32)
    for _ in range(5):
        first, second, third = one.step(action), two.step(action), copy.step(action)
        np.testing.assert_array_equal(first[0], second[0])
        assert first[1:4] == second[1:4] == third[1:4]


def test_the_frozen_tasks_are_those_of_the_papers_families():
    velocities = [task["velocity"] for task in envs.FAMILIES["cheetah_vel"].tasks]
    np.testing.assert_allclose(velocities, 0.075 * np.arange(1, 41))
    assert [task["direction"] for task in envs.FAMILIES["cheetah_dir"].tasks] == [1, -1]
    angles = np.array([task["angle"] for task in envs.FAMILIES["ant_dir"].tasks])
    assert len(angles) == 50 and angles.min() >= 0 and angles.max() < 2 * np.pi
    assert angles[:3].tolist() == [3.4483, 4.4937, 3.7873]          # frozen
    bodies = envs.FAMILIES["walker_params"].tasks
    assert len(bodies) == 50
    for name, base in dict(body_mass=1.5, body_inertia=1.5, geom_friction=1.5,
                           dof_damping=1.3).items():
        powers = np.log([body[name] for body in bodies]) / np.log(base)
        assert -3.001 < powers.min() < -2.9 and 2.9 < powers.max() < 3.001


@pytest.mark.parametrize("name", envs.FAMILIES)
def test_reward_equals_its_terms_and_episodes_end_by_truncation(name):
    family = envs.FAMILIES[name]
    env = envs.make(name, family.tasks[1])
    env.reset(seed=0)
    env.action_space.seed(0)
    for steps in range(1, family.horizon + 1):
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        terms = [value for key, value in info.items() if key.startswith("reward_")]
        assert len(terms) >= 2 and reward == pytest.approx(sum(terms), abs=1e-6)
        if terminated or truncated:
            break
    assert truncated == (steps == family.horizon)
    assert terminated == (steps < family.horizon)
    if name.startswith("cheetah") or name == "point_goal":
        assert truncated


def test_rewards_equal_the_papers_formulas():
    action = np.full(6, 0.5, np.float32)
    for name, formula in (("cheetah_dir", lambda v, task: task["direction"] * v),
                          ("cheetah_vel", lambda v, task: -abs(v - task["velocity"]))):
        for task in envs.FAMILIES[name].tasks[:2]:
            env = envs.make(name, task)
            env.reset(seed=0)
            x = env.unwrapped.data.qpos[0]
            reward = env.step(action)[1]
            v = (env.unwrapped.data.qpos[0] - x) / 0.05
            assert reward == pytest.approx(formula(v, task) - 0.05 * 6 * 0.25, abs=1e-6)
    task = envs.FAMILIES["ant_dir"].tasks[3]
    env = envs.make("ant_dir", task)
    env.reset(seed=0)
    torso = env.unwrapped.data.body(1).xpos[:2].copy()
    reward = env.step(np.full(8, 0.5, np.float32))[1]
    v = (env.unwrapped.data.body(1).xpos[:2] - torso) / 0.05
    contact = 0.5e-3 * np.square(np.clip(env.unwrapped.data.cfrc_ext, -1, 1)).sum()
    assert reward == pytest.approx(v @ [np.cos(task["angle"]), np.sin(task["angle"])]
                                   - 0.5 * 8 * 0.25 - contact + 1, abs=1e-6)
    env = envs.make("walker_params", envs.FAMILIES["walker_params"].tasks[3])
    env.reset(seed=0)
    x = env.unwrapped.data.qpos[0]
    reward = env.step(action)[1]
    v = (env.unwrapped.data.qpos[0] - x) / 0.008
    assert reward == pytest.approx(v + 1 - 1e-3 * 6 * 0.25, abs=1e-6)


def test_walker_bodies_are_scaled_by_their_task():
    task = envs.FAMILIES["walker_params"].tasks[7]
    plain = gymnasium.make("Walker2d-v5").unwrapped.model
    ours = envs.make("walker_params", task).unwrapped.model
    for name, factors in task.items():
        np.testing.assert_allclose(getattr(ours, name), getattr(plain, name) * np.array(factors))
    assert not np.allclose(ours.dof_invweight0, plain.dof_invweight0)   # derived anew


# ------------------------------------------------------------------------------------ data, returns

POINT = HERE / "data/point_goal.npz"


def config_of(env="point_goal", **changes):
    return macaw.Config(**{**dict(env=env), **macaw.PRESETS[env], **changes})


@pytest.fixture(scope="module")
def point():
    return Buffers(POINT, config_of())


@pytest.mark.parametrize("path", sorted((HERE / "data").glob("*.npz")), ids=lambda p: p.stem)
def test_shipped_episodes_replay_from_their_seed_and_actions(path):
    x, meta = buffers.read(path, path.stem)
    assert path.stat().st_size <= 25e6
    assert {int(i): task for i, task in meta["tasks"].items()} == dict(
        enumerate(envs.FAMILIES[path.stem].tasks))
    length = x["episode_length"]
    ends = np.cumsum(length)
    random = np.random.default_rng(0)
    for episode in random.choice(len(length), 12, replace=False):
        env = envs.make(path.stem, meta["tasks"][str(x["episode_task"][episode])])
        observed = [env.reset(seed=int(x["episode_seed"][episode]))[0]]
        span = slice(ends[episode] - length[episode], ends[episode])
        for t, action in enumerate(x["actions"][span].astype(np.float32)):
            obs, reward, terminated, truncated, _ = env.step(action)
            observed.append(obs)
            assert np.float32(reward) == x["rewards"][span][t]
            assert terminated == x["terminations"][span][t]
            assert truncated == x["truncations"][span][t]
        assert terminated or truncated
        first = ends[episode] - length[episode] + episode
        stored = x["observations"][first:first + length[episode] + 1]
        rounded = np.array(observed).astype(np.float32).astype(np.float16)
        np.testing.assert_array_equal(rounded, stored)


def data_file(path, lengths, terminated, task=None, seed=0, observations=None, **meta):
    """A made-up point_goal data file with episodes of these lengths."""
    random, n = np.random.default_rng(seed), sum(lengths)
    ends = np.cumsum(lengths) - 1
    terminations, truncations = np.zeros((2, n), bool)
    terminations[ends], truncations[ends] = terminated, ~np.array(terminated)
    task = np.zeros(len(lengths), int) if task is None else np.array(task)
    x = dict(observations=random.normal(size=(n + len(lengths), 2)) if observations is None
             else observations, actions=random.uniform(-1, 1, (n, 2)),
             rewards=random.normal(size=n), terminations=terminations, truncations=truncations,
             episode_task=task, episode_number=np.arange(len(lengths)),
             episode_seed=np.arange(len(lengths)), episode_length=np.array(lengths))
    ids = sorted(set(task.tolist()))
    buffers.write(path, x, {**dict(format=buffers.DATA_FORMAT, family="point_goal",
                                   tasks={i: {} for i in ids}, collector={}, versions={},
                                   behavior_final={i: 0.0 for i in ids}), **meta})
    return x


def test_returns_equal_the_brute_force_sum(tmp_path):
    """Truncation keeps its tail gamma^k V(s_end), termination does not."""
    lengths, terminated = [5, 1, 7, 3, 40], [False, True, True, False, False]
    x = data_file(tmp_path / "x.npz", lengths, terminated, task=[2] * 5)
    config = config_of(inner_batch=2, outer_batch=2, gamma=0.9, tasks_per_step=1)
    held = Buffers(tmp_path / "x.npz", config)

    def V(obs):
        return obs.sum(-1) + 3.0
    everything = torch.arange(sum(lengths))[None]
    batch = Batch(held.obs[held.here[everything]], held.action[everything],
                  held.mc_return[everything], held.discount[everything],
                  held.obs[held.last[everything]])
    with_tail, without = macaw.returns(V, batch, True)[0], macaw.returns(V, batch, False)[0]
    std = {k: v.numpy().astype(np.float64) for k, v in held.stats.items()}
    k = 0
    for episode, (length, ended) in enumerate(zip(lengths, terminated)):
        last_obs = x["observations"][k + length + episode]
        tail = 0 if ended else ((last_obs - std["obs_mean"]) / std["obs_std"]).sum() + 3
        for t in range(length):
            rewards = x["rewards"][k + t:k + length] / std["return_scale"]
            total = sum(0.9 ** j * r for j, r in enumerate(rewards))
            assert without[k + t].item() == pytest.approx(total, rel=1e-4, abs=1e-4)
            total += 0.9 ** (length - t) * tail
            assert with_tail[k + t].item() == pytest.approx(total, rel=1e-4, abs=1e-4)
        k += length


def test_batches_are_disjoint_cover_the_life_and_are_of_the_right_task(point):
    point_rewards = point.action[:, 0] * 1e3                        # tells transitions apart
    generator = torch.Generator().manual_seed(0)
    inner, outer = point.sample([3, 11], [256, 200], generator)
    for k, task in enumerate((3, 11)):
        first, count = int(point.first[task]), int(point.count[task])
        mine = point_rewards[first:first + count]
        seen = []
        for batch in (inner, outer):
            for a, obs in zip(batch.action[k, :, 0] * 1e3, batch.obs[k]):
                places = (mine == a).nonzero().flatten().tolist()
                seen.append([p for p in places
                             if torch.equal(point.obs[point.here[first + p]], obs)])
        assert all(seen)                                            # all from this task's buffer
        places = [p[0] for p in seen]
        assert len(set(places)) == 456                              # none twice
        for half in (places[:256], places[256:]):                   # over the whole life
            assert np.histogram(half, bins=4, range=(0, count))[0].min() > 30


def test_each_batch_comes_from_its_part_of_a_life(point):
    places = copy.copy(point)
    places.mc_return = torch.arange(len(point.action)).float()      # tells where a draw is from
    tasks, generator = [4, 5, 9], torch.Generator().manual_seed(0)
    for start in (0.0, 0.6, 0.99):                  # of the last hundredth there is not enough
        batches = places.sample(tasks, [64, 32], generator, (0.0, start))
        D_tr, D_ts = ((batch.mc_return - point.first[tasks]) / point.count[tasks]
                      for batch in batches)
        assert (D_tr.amin(1) < 0.03).all() and (D_tr.amax(1) > 0.97).all()
        begin = torch.minimum(torch.tensor(start), 1 - 64 / point.count[tasks][:, 0])
        assert ((D_ts.amin(1) - begin).abs() < 0.03).all() and (D_ts.amax(1) > 0.95).all()
        assert not set(batches[0].mc_return.flatten().tolist()) & set(
            batches[1].mc_return.flatten().tolist())


def test_meta_steps_judge_on_late_data():
    """D^ts, and it alone, comes from lives after their share `late`."""
    run, taken = macaw.Run(config_of(late=0.5)), []
    run.buffers.mc_return = torch.arange(len(run.buffers.action)).float() * 1e-6    # marks places
    meta_loss = run.macaw.meta_loss
    run.macaw.meta_loss = lambda *batches: taken.append(batches) or meta_loss(*batches)
    run.meta_step()
    count = run.buffers.count.max()                                 # the same for all its tasks
    assert (run.buffers.first.flatten() % count == 0).all()
    D_tr, D_ts = (batch.mc_return * 1e6 % count / count for batch in taken[0])
    assert D_tr.min() < 0.05 and 0.49 < D_ts.min() < 0.55 and D_ts.max() > 0.95


def test_statistics_come_from_training_tasks_alone(tmp_path):
    lengths, task = [20] * 40, np.repeat([0, 1, 2, 7], 10)
    states = np.random.default_rng(0).normal(size=(21 * 40, 2))
    config = config_of(inner_batch=4, outer_batch=4, tasks_per_step=1)
    data_file(tmp_path / "a.npz", lengths, [False] * 40, task, observations=states)
    changed = np.where(np.repeat(np.isin(task, [2, 7]), 21)[:, None], 100.0, states)
    data_file(tmp_path / "b.npz", lengths, [False] * 40, task, observations=changed)
    a, b = (Buffers(tmp_path / name, config) for name in ("a.npz", "b.npz"))
    assert a.train == [0, 1] and a.test == [2, 7]
    for name in a.stats:
        assert torch.equal(a.stats[name], b.stats[name])
    held = Buffers(tmp_path / "b.npz", dataclasses.replace(config, holdout="1"))
    assert held.train == [0] and held.test == [1]                   # test tasks stay out


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
    right = macaw.rollout(walker(goals), environments, range(3), point)
    wrong = macaw.rollout(walker(goals[[1, 2, 0]]), environments, range(3), point)
    assert right.min() > -10 and wrong.max() < -25


def test_evaluation_pairs_each_held_out_task_with_its_environment_and_batch(monkeypatch):
    run = macaw.Run(config_of())
    made, sampled = [], []
    make, sample = envs.make, Buffers.sample
    monkeypatch.setattr(envs, "make", lambda name, task: made.append(task) or make(name, task))
    monkeypatch.setattr(Buffers, "sample", lambda self, tasks, *rest:
                        sampled.append(tasks) or sample(self, tasks, *rest))
    before, after = macaw.evaluate(run.macaw, run.buffers, draws=2)
    assert sampled == [[2, 2, 7, 7, 12, 12, 17, 17]]
    assert made == [envs.FAMILIES["point_goal"].tasks[i] for i in sampled[0]]
    assert before.shape == after.shape == (4,)


def test_evaluation_changes_nothing_in_training(tmp_path):
    def losses(evaluations):
        run = macaw.Run(config_of(steps=6))
        result = []
        for _ in range(6):
            for _ in range(evaluations):
                macaw.evaluate(run.macaw, run.buffers, draws=1)
            result.append(run.meta_step())
        return result
    assert losses(0) == losses(2)


# --------------------------------------------------------------------------------------- training

def test_same_seed_same_numbers_other_seed_others():
    def losses(seed):
        run = macaw.Run(config_of(seed=seed))
        return [run.meta_step() for _ in range(3)]
    assert losses(0) == losses(0) != losses(1)


@pytest.mark.parametrize("variant", macaw.VARIANTS)
@pytest.mark.parametrize("inner_steps", [1, 2])
def test_every_variant_takes_steps_that_change_the_outcome(variant, inner_steps):
    run = macaw.Run(config_of(**{**macaw.VARIANTS[variant], "variant": variant,
                                 "inner_steps": inner_steps, "test_steps": inner_steps}))
    before, after = macaw.evaluate(run.macaw, run.buffers, draws=1)
    assert not np.allclose(before, after)
    first = run.meta_step()
    assert np.isfinite([*first, *run.meta_step()]).all()


def test_fine_tuning_is_adam_on_each_task_alone():
    """MT+FT: T tasks at once equal torch's own Adam on copies of the nets, task by task; not to the
    last digit, for `higher` adds epsilon at another place."""
    run = macaw.Run(config_of(**macaw.VARIANTS["mt_awr"]))
    model, tasks = run.macaw.double(), run.buffers.test[:2]
    batch, = run.buffers.sample(tasks, [32], torch.Generator().manual_seed(0))
    batch = Batch(*(x.double() for x in batch))
    pi, V = model.adapt(batch, 5, train=False)
    for i in range(len(tasks)):
        mine, nets = Batch(*(x[i:i + 1] for x in batch)), []
        for learner in (model.policy, model.value):
            net = copy.deepcopy(learner.net[0]).to_empty(device="cpu").double()
            for p, t in zip(net.parameters(), learner.transforms, strict=True):
                p.data = t.theta.detach().clone()
            nets.append((net, torch.optim.Adam(net.parameters(), lr=run.config.inner_lr)))
        (policy, policy_adam), (value, value_adam) = nets
        for _ in range(5):
            value_adam.zero_grad()
            macaw.value_loss(value, mine, False)[0].backward()
            value_adam.step()
            policy_adam.zero_grad()
            advantage = macaw.value_loss(value, mine, run.config.bootstrap)[1]
            macaw.policy_loss(policy, mine, advantage, run.config).backward()
            policy_adam.step()
        for ours, theirs in ((pi(batch.obs), policy(mine.obs)), (V(batch.obs), value(mine.obs))):
            torch.testing.assert_close(ours[i:i + 1], theirs, rtol=0, atol=1e-4)


def test_a_multi_task_learner_is_told_training_tasks_and_no_others():
    run = macaw.Run(config_of(**macaw.VARIANTS["mt_awr"]))
    plain, buffers = macaw.Run(config_of()).buffers, run.buffers
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


@pytest.mark.parametrize("path", sorted((HERE / "data").glob("*.npz")), ids=lambda p: p.stem)
def test_every_preset_with_data_takes_steps(path):
    run = macaw.Run(config_of(path.stem))
    assert np.isfinite([run.meta_step(), run.meta_step()]).all()


def test_the_adapted_policy_learns_to_beat_the_unadapted_one(tmp_path):
    config = config_of(steps=150, eval_every=150, final_draws=4)
    result = macaw.train(macaw.Run(config), tmp_path)
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


def command_line(*arguments, program="macaw.py", **kwargs):
    return subprocess.run([sys.executable, HERE / program, *map(str, arguments)], text=True,
                          capture_output=True, cwd=kwargs.pop("cwd", HERE), **kwargs)


def test_a_run_killed_at_any_moment_resumes_exactly(tmp_path):
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
    for name, tensor in one["macaw"].items():
        assert torch.equal(tensor, other["macaw"][name]), name


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
    run = macaw.Run(config_of())
    run.meta_step()
    getattr(run.buffers, poison).fill_(float("nan"))
    before = {name: p.detach().clone() for name, p in run.macaw.named_parameters()}
    with pytest.raises(command.Diverged, match="value loss is nan at step 2" if
                       poison == "mc_return" else "policy loss is nan at step 2"):
        run.meta_step()
    assert all(torch.equal(p, before[name]) for name, p in run.macaw.named_parameters())
    assert run.step == 1


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
    start = macaw.Run(config_of(seed=0)).macaw.state_dict()
    for name, p in one["macaw"].items():
        torch.testing.assert_close(two["macaw"][name], p, rtol=1e-4, atol=1e-6)
    assert any((p - start[name]).abs().max() > 1e-3 for name, p in two["macaw"].items())


def test_memory_does_not_grow():
    run = macaw.Run(config_of())

    def resident():
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096
    for _ in range(100):
        run.meta_step()
    start = resident()
    for _ in range(200):
        run.meta_step()
    assert resident() - start < 20e6


# -------------------------------------------------------------------------------------- bad input

def refused(result, *words):
    """One sentence on stderr that says these words, and exit code 2."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1 and result.stderr.count(". ") == 0, result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


@pytest.mark.parametrize("flags, words", [
    (["--env", "moon_walk"], ["moon_walk", "point_goal"]),
    (["--variant", "magic"], ["magic", "meta_bc"]),
    (["--data", "nowhere.npz"], ["nowhere.npz", "collect.py"]),
    (["--steps", "-5"], ["--steps", "-5"]),
    (["--steps", "many"], ["--steps", "many"]),
    (["--inner-lr", "nan"], ["--inner-lr"]),
    (["--policy-lr", "1e30"], ["--policy-lr"]),
    (["--width", "1000000"], ["--width"]),
    (["--inner-batch", "99999"], ["transitions", "smaller"]),
    (["--tasks-per-step", "17"], ["tasks-per-step", "16"]),
    (["--holdout", "2,x"], ["2,x"]),
    (["--holdout", "77"], ["77"]),
    (["--wings", "2"], ["--wings"]),
    (["--device", "abacus"], ["abacus"]),
    (["--resume", "--out", "nothing"], ["nothing"]),
    (["--resume"], ["--out"]),
    (["--evaluate", "nothing.pt"], ["nothing.pt"]),
])
def test_bad_flags_are_refused_in_one_sentence(flags, words, tmp_path):
    env = [] if "--env" in flags else ["--env", "point_goal"]
    refused(command_line(*env, *flags, cwd=tmp_path), *words)
    assert list(tmp_path.iterdir()) == []                           # and nothing is written


def test_bad_data_files_are_refused(tmp_path):
    good = POINT.read_bytes()
    (tmp_path / "cut.npz").write_bytes(good[:len(good) // 2])
    (tmp_path / "text.npz").write_text("hello")
    damaged = bytearray(good)
    damaged[len(good) // 3:len(good) // 3 + 400] = bytes(400)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    data_file(tmp_path / "wide.npz", [300] * 4, [False] * 4, [0, 1, 2, 7],
              observations=np.zeros((1204, 5)))
    data_file(tmp_path / "future.npz", [300] * 4, [False] * 4, [0, 1, 2, 7], format=99)
    data_file(tmp_path / "untested.npz", [600] * 2, [False] * 2, [0, 1])
    for name, word in (("cut", "cut off"), ("text", "cut off"), ("damaged", "cut off"),
                       ("other", "cut off"), ("wide", "sizes"), ("future", "99"),
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
    render.side_by_side(macaw.Run(config_of("cheetah_vel")), macaw.rollout, tmp_path / "film.gif")
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
    run = macaw.Run(config_of())
    run.rows = [dict(step=0)]
    run.save(tmp_path)
    path = tmp_path / "checkpoint.pt"
    refused(command_line("--env", "cheetah_vel", "--evaluate", path), "point_goal")
    refused(command_line("--resume", "--out", tmp_path, "--latent", 99), "--latent")
    state = torch.load(path, weights_only=True)
    torch.save({**state, "format": 99}, tmp_path / "future.pt")
    refused(command_line("--evaluate", tmp_path / "future.pt"), "future.pt")
    path.write_bytes(path.read_bytes()[:1000])
    refused(command_line("--resume", "--out", tmp_path), "damaged")
    assert len(path.read_bytes()) == 1000


@pytest.mark.parametrize("line", re.findall(r"python ((?:macaw|collect)\.py (?!--help)[^#`\n]*)",
                                            (HERE / "README.md").read_text()))
def test_the_commands_of_the_readme_are_understood(line, monkeypatch):
    program = dict(macaw=macaw, collect=collect)[line.split(".py")[0]]
    seen = []
    monkeypatch.setattr(sys, "argv", line.split())
    command.command_line(lambda config, given: seen.append(given), program.Config,
                         {name: getattr(program, table) for name, table in
                          (("env", "PRESETS"), ("variant", "VARIANTS")) if hasattr(program, table)},
                         program.__doc__)
    assert len(seen) == 1 and len(seen[0]) == line.count(" --")


@pytest.mark.parametrize("path", sorted((HERE / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_use_the_project_and_define_no_second_version_of_it(path):
    def defined(source):
        return {x.name for x in ast.parse(source).body
                if isinstance(x, ast.FunctionDef | ast.ClassDef)}
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    source = "\n".join("".join(cell["source"]) for cell in cells)
    ours = set().union(*(defined(p.read_text()) for p in HERE.glob("*.py") if p != HERE / __file__))
    assert "import macaw" in source and len(ours) > 50
    assert not defined(source) & ours
    assert all(cell["execution_count"] for cell in cells)               # stored as it ran
    assert not any(out["output_type"] == "error" for cell in cells for out in cell["outputs"])


def test_budgets_hold():
    for name, lines in dict(macaw=500, envs=170, collect=230).items():
        text = (HERE / f"{name}.py").read_text().splitlines()
        assert len(text) <= lines and max(map(len, text)) <= 100, name
    assert len(dataclasses.fields(macaw.Config)) <= 35


# ------------------------------------------------------------------------------------- collection

def collection(tmp_path, *flags, out="a.npz"):
    return command_line("--env", "point_goal", "--tasks", "2,3", "--steps", 500, "--keep", 400,
                        "--out", tmp_path / out, *flags, program="collect.py")


@pytest.mark.parametrize("kind", [{}, dict(shared=True, updates=1.5)])
def test_a_killed_collection_resumes_exactly(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "SAVE_EVERY", 130)                 # in the midst of an episode
    config = collect.Config(**{**collect.PRESETS["point_goal"], **kind, **dict(
        env="point_goal", tasks="2,3", steps=500, keep=400, out=str(tmp_path / "a.npz"))})
    whole = collect.Collection(config)
    for _ in range(500):
        whole.step()
    whole.export(tmp_path / "whole.npz")

    def die(self):
        if self.steps == 300:
            raise KeyboardInterrupt
        step(self)
    step = collect.Collection.step
    monkeypatch.setattr(collect.Collection, "step", die)
    with pytest.raises(KeyboardInterrupt):
        collect.main(config, {})
    monkeypatch.setattr(collect.Collection, "step", step)
    collect.main(config, {})
    a, b = (buffers.read(tmp_path / name, "point_goal") for name in ("a.npz", "whole.npz"))
    for name in a[0]:
        np.testing.assert_array_equal(a[0][name], b[0][name])
    assert a[1] == b[1] and not (tmp_path / "a.unfinished").exists()


@pytest.mark.parametrize("family", envs.FAMILIES)
def test_a_collection_goes_on_in_the_midst_of_an_episode(family, tmp_path):
    config = collect.Config(env=family, tasks="0,1", steps=40, random_steps=40)
    lived, again = collect.Collection(config), collect.Collection(config)
    for _ in range(25):
        lived.step()
    lived.save(tmp_path / "lives")
    again.load(tmp_path / "lives")
    assert torch.equal(again.obs, lived.obs) and again.episodes == lived.episodes
    for lives in (lived, again):
        lives.step()
    assert torch.equal(again.obs, lived.obs) and again.episodes == lived.episodes


def test_agents_part_only_as_far_as_their_tasks_make_them():
    config = collect.Config(**{**collect.PRESETS["point_goal"], **dict(
        env="point_goal", tasks="2,3,4", steps=500)})
    lives = collect.Collection(config)
    tasks = envs.FAMILIES["point_goal"].tasks
    lives.envs[1] = envs.make("point_goal", tasks[2])                   # the first one's task
    lives.envs[1].reset(seed=lives.episodes[1][0][2])
    for _ in range(500):
        lives.step()
    first, twin, other = lives.replay["obs"]
    torch.testing.assert_close(first, twin)
    noise = config.random_steps + 1                             # until then nobody has learned
    assert torch.equal(first[:noise], other[:noise]) and not torch.equal(first, other)
    rewards = lives.replay["reward"]
    assert not torch.isclose(rewards[0, :noise], rewards[2, :noise]).any()


@pytest.mark.parametrize("updates, expected", [(1.0, 100), (0.5, 50), (2.5, 250), (0.3, 30)])
def test_updates_an_environment_step(updates, expected):
    lives = collect.Collection(collect.Config(
        env="point_goal", tasks="2", steps=110, random_steps=10, updates=updates))
    done = []
    lives.agents.update = lambda *batch: done.append(lives.steps)
    for _ in range(110):
        lives.step()
    assert len(done) == expected and min(done) > 10
    assert max(np.bincount(done)) == np.ceil(updates)                 # spread over the steps


def test_a_shared_agent_is_told_its_task_and_lives_its_own_lives():
    lives = collect.Collection(collect.Config(**{**collect.PRESETS["point_goal"], **dict(
        env="point_goal", tasks="2,3,4", steps=300, shared=True, batch=8)}))
    seen = []
    lives.agents.actor.net.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    for _ in range(300):
        lives.step()
    act, update = seen[-3], seen[-1]
    assert act.shape == (1, 3, 2 + 3) and update.shape == (1, 3 * 8, 2 + 3)
    assert torch.equal(act[0, :, 2:], torch.eye(3))
    assert torch.equal(update[0, :, 2:], torch.eye(3).repeat_interleave(8, 0))
    torch.testing.assert_close(act[0, :, :2], lives.replay["obs"][:, 299].float())
    x = torch.randn(3, 8, 2 + 2)
    q = lives.agents.critics(x.repeat(2, 1, 1)).view(2, 3, 8)
    for task, one_hot in enumerate(torch.eye(3)):
        told = torch.cat([x[task], one_hot.expand(8, 3)], -1).expand(2, -1, -1)
        torch.testing.assert_close(q[:, task], lives.agents.critics.net(told)[..., 0])
    first, other, _ = lives.replay["action"]
    assert not torch.isclose(first[:200], other[:200]).all(-1).any()    # noise of its own
    assert lives.replay["obs"].shape[-1] == 2                           # the data do not tell


def test_agents_do_not_touch_each_other():
    """Another agent's data change nothing in this one's update."""
    def weights(others):
        torch.manual_seed(0)
        config = collect.Config(width=8)
        agents = sac.Agents(3, 4, 2, config)
        random = torch.Generator().manual_seed(1)

        def draw(*shape):
            return torch.randn(shape, generator=random)
        obs, action, reward, next_obs = draw(3, 16, 4), draw(3, 16, 2), draw(3, 16), draw(3, 16, 4)
        reward[[0, 2]] *= others
        for _ in range(3):
            agents.update(obs, action, reward, next_obs, torch.zeros(3, 16), draw(2, 3, 16, 2))
        return agents
    one, other = weights(1.0), weights(50.0)
    for net, rows in (("actor", [1]), ("critics", [1, 4]), ("targets", [1, 4])):
        for a, b in zip(getattr(one, net).parameters(), getattr(other, net).parameters()):
            assert torch.equal(a[rows], b[rows]) and not torch.equal(a[0], b[0])


def test_sac_update_equals_the_formulas_for_one_agent():
    torch.manual_seed(0)
    config = collect.Config(width=8, lr=0.0, alpha=0.3, gamma=0.9, tau=0.5)
    agents = sac.Agents(2, 4, 2, config)
    with torch.no_grad():                                           # targets that differ
        for p in agents.targets.parameters():
            p.add_(0.1)
    obs, next_obs, noise = torch.randn(2, 16, 4), torch.randn(2, 16, 4), torch.randn(2, 2, 16, 2)
    action, reward = torch.rand(2, 16, 2), torch.randn(2, 16)
    terminated = (torch.rand(2, 16) < 0.3).float()
    losses = []
    agents.step = lambda which, loss: losses.append(loss)
    before = [p.clone() for p in agents.targets.parameters()]
    agents.update(obs, action, reward, next_obs, terminated, noise)

    def act(obs, noise):
        mean, log_std = agents.actor(obs).chunk(2, -1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-5, 2).exp())
        policy = torch.distributions.TransformedDistribution(
            normal, torch.distributions.TanhTransform(cache_size=1))
        a = torch.tanh(mean + normal.stddev * noise)
        return a, policy.log_prob(a).sum(-1)

    def q(critics, obs, action, twin):
        net = torch.nn.Sequential(*critics)
        x = torch.cat([obs, action], -1)
        return net(torch.cat([x, x]))[2 * twin:2 * twin + 2, :, 0]
    with torch.no_grad():
        for p, value in zip(agents.targets.parameters(), before):   # as they were in the update
            p.copy_(value)
        next_action, log_prob = act(next_obs, noise[0])
        lowest = torch.minimum(q(agents.targets, next_obs, next_action, 0),
                               q(agents.targets, next_obs, next_action, 1))
        target = reward + 0.9 * (1 - terminated) * (lowest - 0.3 * log_prob)
    critic = sum((q(agents.critics, obs, action, twin) - target).square().mean(-1).sum()
                 for twin in (0, 1))
    new_action, log_prob = act(obs, noise[1])
    lowest = torch.minimum(q(agents.critics, obs, new_action, 0),
                           q(agents.critics, obs, new_action, 1))
    actor = (0.3 * log_prob - lowest).mean(-1).sum()
    temperature = -(agents.log_alpha * (log_prob.detach() - 2).mean(-1)).sum()
    for ours, formula in zip(losses, (critic, actor, temperature)):
        torch.testing.assert_close(ours, formula, rtol=1e-4, atol=1e-4)


def test_collection_refuses_what_it_would_overwrite(tmp_path):
    assert collection(tmp_path).returncode == 0
    held = (tmp_path / "a.npz").read_bytes()
    refused(collection(tmp_path), "exists")
    refused(collection(tmp_path, "--tasks", "2,99", out="b.npz"), "99")
    refused(collection(tmp_path, "--join", "x.npz", out="b.npz"), "x.npz")
    assert (tmp_path / "a.npz").read_bytes() == held
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz"]


def test_episodes_are_kept_evenly_over_a_life():
    assert np.flatnonzero(buffers.evenly([2] * 12, keep=6)).tolist() == [1, 5, 9]
    assert buffers.evenly([3, 1, 4, 1, 5], keep=14) == [True] * 5
    random = np.random.default_rng(0)
    lengths = random.integers(1, 200, 300)
    lives = np.cumsum(lengths)[buffers.evenly(lengths, keep=3000)] / lengths.sum()
    np.testing.assert_allclose(lives, np.linspace(0, 1, len(lives)), atol=0.1)
    assert lengths[buffers.evenly(lengths, keep=3000)].sum() == pytest.approx(3000, abs=200)


def test_joined_files_keep_the_best_agent_of_each_task(tmp_path):
    data_file(tmp_path / "a.npz", [4, 5, 6], [False] * 3, [1, 2, 2], seed=1,
              behavior_final={1: -5.0, 2: -9.0}, collector={1: "a", 2: "a"})
    data_file(tmp_path / "b.npz", [7, 8], [False] * 2, [2, 3], seed=2,
              behavior_final={2: -3.0, 3: -1.0}, collector={2: "b", 3: "b"})
    x, meta = buffers.join([tmp_path / "a.npz", tmp_path / "b.npz"], "point_goal", keep=100)
    assert x["episode_task"].tolist() == [1, 2, 3]
    assert x["episode_length"].tolist() == [4, 7, 8]
    assert meta["collector"] == {"1": "a", "2": "b", "3": "b"}
    a, b = (buffers.read(tmp_path / name, "point_goal")[0] for name in ("a.npz", "b.npz"))
    np.testing.assert_array_equal(x["rewards"], np.r_[a["rewards"][:4], b["rewards"]])
    np.testing.assert_array_equal(x["observations"],
                                  np.r_[a["observations"][:5], b["observations"]])
