"""FOCAL, Offline PEARL and SMAC: each test is named after the claim that it would refute."""
import copy

import pytest
import torch
from conftest import command_line, refused

import envs
from baselines import focal, smac
from helpers.run import Run, load, summary

METHOD_OF = {name: method for method in (focal.FOCAL, smac.SMAC) for name in method.variants}
SMALL = dict(width=16, steps=4, batch=16, context=16, final_draws=1)
PHASES = dict(SMALL, offline_steps=2, rounds=1, episodes=1)


def run_of(variant, device="cpu", **changes):
    """A run of a variant on the toy family."""
    method = METHOD_OF[variant]
    return Run(method, method.settings(env="point_goal", variant=variant, **changes), device)


def small(variant, **changes):
    """One that takes four steps: SMAC two offline, then two online."""
    sizes = dict(PHASES if METHOD_OF[variant] is smac.SMAC else SMALL)
    if variant == "no_data":
        sizes.pop("rounds")
    return run_of(variant, **{**sizes, **changes})


def batches(run):
    """A context, another and other transitions."""
    return run.sample(run.choose(4), (16, 16, 16))


def reaches(loss, module):
    """Whether a loss has a gradient with respect to a net."""
    found = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True,
                                retain_graph=True)
    return any(g is not None and g.abs().sum() > 0 for g in found)


def test_the_distance_loss_equals_a_double_loop():
    config = focal.Config(power=3.0, beta=0.7, epsilon=0.2)
    z, other = torch.randn(2, 5, 8, dtype=torch.float64)
    same, apart = [], []
    for i in range(5):
        for j in range(5):
            square = ((z[i] - other[j]) ** 2).sum() / 8
            if i == j:
                same.append(square)
            else:
                apart.append(0.7 / (square.sqrt() ** 3 + 0.2))
    expected = sum(same) / len(same) + sum(apart) / len(apart)
    torch.testing.assert_close(focal.distance_loss(z, other, config), expected, rtol=1e-9, atol=0)


def test_the_product_of_gaussians_equals_that_of_their_densities():
    mean, variance = torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[0.5], [2.0]]])
    x = torch.linspace(-10, 10, 20001)[:, None]
    density = (-0.5 * (x - mean[0, :, 0]) ** 2 / variance[0, :, 0]).sum(1).exp().double()
    density, x = density / density.sum(), x[:, 0].double()
    m, v = focal.product_of_gaussians(mean, variance)
    assert m.item() == pytest.approx((density * x).sum().item(), abs=1e-4)
    assert v.item() == pytest.approx((density * (x - m.item()) ** 2).sum().item(), abs=1e-4)


def test_kl_equals_torchs():
    mean, variance = torch.randn(3, 5), torch.rand(3, 5) + 0.1
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, variance.sqrt()), torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(focal.kl_loss(mean, variance), theirs.sum(-1).mean())


@pytest.mark.parametrize("variant", ["focal", "pearl"])
def test_the_order_of_a_context_does_not_matter(variant):
    run = small(variant)
    context, _, _ = batches(run)
    order = torch.randperm(16)
    shuffled = type(context)(*(x[:, order] for x in context))
    torch.testing.assert_close(run.learner.encode(context), run.learner.encode(shuffled),
                               rtol=1e-5, atol=1e-6)


def test_the_encoder_sees_next_observations_where_config_says():
    for next_obs in (False, True):
        run = small("smac", next_obs=next_obs)
        context, _, _ = batches(run)
        moved = context._replace(next_obs=context.next_obs + 1.0)
        same = torch.equal(run.learner.encode(context), run.learner.encode(moved))
        assert same == (not next_obs)


@pytest.mark.parametrize("variant, trains", [
    ("focal", {"distance_loss"}), ("pearl", {"critic_loss", "kl_loss"}),
    ("smac", {"reward_loss", "kl_loss"})])
def test_each_loss_trains_its_own_nets(variant, trains):
    """No actor trains an encoder, and climbing the critics does not train them."""
    run = small(variant)
    first, second, batch = batches(run)
    contexts = (first,) if variant == "smac" else (first, second)
    losses = run.learner.losses(*contexts, batch, torch.randn(4, run.config.code))
    assert losses.keys() == trains | {"critic_loss", "actor_loss"}
    for name, loss in losses.items():
        assert reaches(loss, run.learner.encoder) == (name in trains), name
        assert reaches(loss, run.learner.critics) == (name == "critic_loss"), name
        assert reaches(loss, run.learner.actor) == (name == "actor_loss"), name


@pytest.mark.parametrize("relative", [False, True])
def test_the_actors_loss_equals_a_loop(relative, monkeypatch):
    """exp of the standardised advantage / T, times the error of the mean action in units of sigma
    or, where that is 0, of the deviation of the task's own actions."""
    run = small("focal", sigma=0.2, relative_sigma=relative, temperature=2.0)
    learner, batch = run.learner, batches(run)[2]
    scale = torch.tensor([1.0, 0.1, 1.0, 1.0])[:, None, None]           # one task's are small
    batch, z = batch._replace(action=scale * batch.action), torch.zeros(4, 8)
    mean, terms = 0.3 * scale * torch.randn_like(batch.action), []
    monkeypatch.setattr(learner, "act", lambda obs, z: mean)
    q, q_mean = (learner.critics(batch.obs, x, z).amin(0) for x in (batch.action, mean))
    for k in range(4):
        a, A = batch.action[k], (q - q_mean)[k]
        weight = ((A - A.mean()) / A.std() / 2.0).clamp_max(torch.tensor(20.0).log()).exp()
        own = sum(a[:, d].var() for d in range(a.shape[1])) / a.shape[1]
        variance = own if relative else 0.2 ** 2
        terms.append((weight * 0.5 * ((a - mean[k]) ** 2).sum(-1) / variance).mean())
    torch.testing.assert_close(learner.actor_loss(batch, z), sum(terms) / 4)


@pytest.mark.parametrize("monte_carlo", [False, True])
def test_terminations_end_and_time_limits_go_on(monte_carlo):
    """The target is r + gamma (1 - terminated) min Q'(s', pi(s')) or, of Monte Carlo critics, all
    rewards to the end of the episode and, where time ended it, gamma^k min Q'(s_end, ...)."""
    run = small("focal", monte_carlo=monte_carlo)
    learner, batch, z = run.learner, batches(run)[2], torch.randn(4, 8)
    with torch.no_grad():
        for p in learner.targets.parameters():
            p.add_(0.1)
    for ended in (0.0, 1.0):
        left = torch.randint(1, 40, batch.reward.shape)                 # k, steps that are left
        batch = batch._replace(terminated=torch.full_like(batch.terminated, ended),
                               discount=(1 - ended) * 0.9 ** left)
        following = batch.last_obs if monte_carlo else batch.next_obs
        reward, k = (batch.mc_return, left) if monte_carlo else (batch.reward, 1)
        with torch.no_grad():
            best = learner.targets(following, learner.act(following, z), z).amin(0)
            target = reward + (1 - ended) * 0.9 ** k * best
            expected = sum((q - target).square().mean()
                           for q in learner.critics(batch.obs, batch.action, z)) / 2
        torch.testing.assert_close(learner.critic_loss(batch, z), expected)


@pytest.mark.parametrize("variant, changes, stays", [
    ("focal", dict(encoder_steps=2), True), ("focal", dict(encoder_steps=0), False),
    ("pearl", {}, False), ("smac", {}, False), ("frozen", {}, True)])
def test_every_net_trains_and_the_encoder_stops_where_it_should(variant, changes, stays):
    run = small(variant, **changes)
    states = [copy.deepcopy(run.learner.state_dict())]
    for until in (2, 4):
        run.method.train(run, until)
        states.append(copy.deepcopy(run.learner.state_dict()))
    for name in states[0]:
        first, second = (torch.equal(a[name], b[name]) for a, b in zip(states, states[1:]))
        if not name.startswith("lived."):
            assert not first and second == (stays and name.startswith(("encoder.", "decoder.")))


def test_losses_are_logged_where_a_phase_ends_between_two_evaluations(tmp_path):
    run = small("frozen", steps=6, offline_steps=4, eval_every=3)
    run.folder = tmp_path
    run.method.train(run, until=6)
    rows = run.rows[1:]
    assert [row["step"] for row in rows if "reward_loss" in row] == [3, 6]
    assert all("actor_loss" in row for row in rows)


def test_the_online_phase_reads_no_reward(monkeypatch):
    """The rewards of the training tasks' environments are made NaN: nothing changes."""
    monkeypatch.setattr(smac, "own_return", lambda run, draws: 0.0)
    step, states = envs.PointGoal.step, []
    for factor in (1.0, float("nan")):
        monkeypatch.setattr(envs.PointGoal, "step", lambda self, action: (
            *(x := step(self, action))[:1], factor * x[1], *x[2:]))
        run = small("smac")
        run.method.train(run, until=4)
        states.append(run.learner.state_dict())
    assert states[0]["lived.length"].sum() == 16 * 40               # training tasks, steps
    for name, x in states[0].items():
        assert torch.equal(x, states[1][name]), name


def test_labels_are_the_decoders_given_a_code_of_the_task(monkeypatch):
    run = small("smac")
    monkeypatch.setattr(run.learner, "reward", lambda obs, action, z: obs[..., 0] + z[:, :1])
    monkeypatch.setattr(run.learner, "encode",
                        lambda context: torch.arange(len(context.obs))[:, None].expand(-1, 5))
    smac.self_supervise(run)
    replay = run.learner.lived
    for k, task in enumerate(run.buffers.train):
        torch.testing.assert_close(replay.reward_seen[task, 0], replay.obs[task, 0, :-1, 0] + k)
    assert replay.length[run.buffers.test].sum() == 0               # test tasks are left alone


@pytest.mark.parametrize("variant, stop", [("pearl", 2), ("smac", 2), ("smac", 3)])
def test_a_run_goes_on_exactly(variant, stop, tmp_path):
    whole, half = small(variant), small(variant)
    whole.method.train(whole, until=4)
    half.folder = tmp_path
    half.method.train(half, until=stop)
    half.save()
    again = load(half.method, tmp_path / "checkpoint.pt")
    again.method.train(again, until=4)
    for name, x in whole.learner.state_dict().items():
        assert torch.equal(x, again.learner.state_dict()[name]), name
    assert whole.notes == again.notes


@pytest.mark.parametrize("variant", ["focal", "pearl", "smac"])
def test_being_given_a_context_helps(variant):
    phases = dict(steps=151, offline_steps=150, rounds=0) if variant == "smac" else {}
    run = run_of(variant, **{**dict(lr=3e-3, steps=150, final_draws=2), **phases})
    run.method.train(run, until=150)
    result = summary(run)
    assert result["after"] > result["before"] + 8


@pytest.mark.parametrize("program, extra", [("focal", []),
                                            ("smac", ["--offline-steps", 2, "--rounds", 1])])
def test_the_command_lines_work(program, extra, tmp_path):
    file = f"baselines/{program}.py"
    result = command_line("--env", "point_goal", "--steps", 4, "--width", 8, "--final-draws", 1,
                          "--out", tmp_path / "run", *extra, program=file)
    assert result.returncode == 0, result.stderr
    checkpoint = tmp_path / "run/checkpoint.pt"
    assert command_line("--evaluate", checkpoint, program=file).returncode == 0
    refused(command_line("--evaluate", checkpoint))                     # macaw.py's is another


@pytest.mark.parametrize("program, line", [
    ("focal", "--variant macaw"), ("focal", "--tasks-per-step 1"), ("smac", "--steps 500")])
def test_bad_input_is_refused(program, line):
    refused(command_line("--env", "point_goal", *line.split(), program=f"baselines/{program}.py"))
