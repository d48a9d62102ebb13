"""What needs no learning on the held-out tasks: standing still, and the nearest training agent.

    python -m experiments.trivial           # writes results/trivial.json, in some minutes

Standing still is ten episodes without action. The nearest training agent is that of the training
task most like the test task; its last ten stored episodes are replayed, action by action from their
seeds, and rewarded for the test task. cheetah_dir has no task to hold out.
"""
import pathlib

import numpy as np

import envs
from experiments.runs import SETS
from helpers import command, data

EPISODES = 10


def play(env, task, seeds, actions):
    """Mean return of episodes in a task's environment, with these actions (steps, act) each."""
    total = 0.0
    with envs.environments_of(env, [task]) as (world,):
        for seed, episode in zip(seeds, actions):
            world.reset(seed=int(seed))
            for action in episode:
                _, reward, terminated, truncated, _ = world.step(action.astype(np.float32))
                total += reward / len(seeds)
                if terminated or truncated:
                    break
    return total


def features(tasks):
    """Tasks as points (tasks, n): angles on the circle, all else in units of its deviation."""
    numbers = np.array([np.concatenate([np.ravel(value) for value in task.values()])
                        for task in tasks])
    if "angle" in tasks[0]:
        return np.concatenate([np.cos(numbers), np.sin(numbers)], 1)
    return (numbers - numbers.mean(0)) / np.maximum(numbers.std(0), 1e-6)


def trivial(env, tested, train):
    """Of each tested task: {id: {"standing": return, "nearest": return, "agent": its task}}, the
    nearest agent among those of the training tasks."""
    family, found = envs.FAMILIES[env], {}
    points, (x, _) = features(family.tasks), data.read(data.default_path(env), env)
    actions = np.split(x["actions"], np.cumsum(x["episode_length"])[:-1])
    for i in tested:
        agent = min(train, key=lambda j: np.linalg.norm(points[j] - points[i]))
        last = np.flatnonzero(x["episode_task"] == agent)[-EPISODES:]
        still = np.zeros((EPISODES, family.horizon, actions[0].shape[1]))
        found[i] = dict(standing=play(env, i, range(EPISODES), still), agent=agent,
                        nearest=play(env, i, x["episode_seed"][last], [actions[e] for e in last]))
    return found


def main():
    found = {}
    for env, sets in SETS.items():
        family, found[env] = envs.FAMILIES[env], {}
        for tested in [list(family.test), *(data.parse_ids(text, [*range(100)]) for text in sets)]:
            hidden = {*family.test, *tested}
            train = [i for i in range(len(family.tasks)) if i not in hidden]
            found[env] |= trivial(env, tested, train)
    command.save_json(pathlib.Path(__file__).parent.parent / "results/trivial.json", found)


if __name__ == "__main__":
    main()
