"""The task families: each test is named after the claim that it would refute."""
import json
import pickle

import gymnasium
import numpy as np
import pytest
import torch
from conftest import run_of
from gymnasium.utils.env_checker import check_env

import envs

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
    assert gymnasium.make(type(one.spec).from_json(one.spec.to_json())).spec == one.spec
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




def test_a_nudge_moves_only_what_rests(point):
    """Two points act alike; the first one's state does not change, the second one's always does."""
    D, = point.sample([2, 2], [64], torch.Generator().manual_seed(0))
    usual = (D.next_obs - D.obs).norm(dim=-1).median()
    moving = torch.tensor([[0.0, 0.0], [float(usual), 0.0]])[:, None]       # a step's change
    for far, left_alone in ((1.0, True), (0.34, True), (0.32, False)):
        act, again = (envs.nudged(torch.zeros_like, D) for _ in range(2))
        obs = [k * far * moving for k in range(40)]
        actions = torch.stack([act(o) for o in obs])                        # (40, 2, 1, 2)
        assert (actions[0] == 0).all() and actions.abs().max() <= 1         # nothing before it yet
        assert (actions[1:, 0] != 0).all() and (actions[1:, 1] == 0).all() == left_alone
        assert torch.equal(actions, torch.stack([again(o) for o in obs]))
    sigma = D.action[0].std(0).mean()
    assert actions[1:, 0].std().item() == pytest.approx(sigma.item(), rel=0.25)


@pytest.mark.parametrize("nudge", [False, True])
def test_robots_are_nudged_where_the_config_says_so(nudge):
    run = run_of(nudge=nudge)
    D, = run.buffers.sample([2], [64], torch.Generator().manual_seed(0))
    act, obs = run.policies(D), D.obs[:, :1]
    first, second = act(obs), act(obs)
    assert torch.equal(first, run.learner.policies(D)(obs)) and torch.equal(first, second) != nudge
