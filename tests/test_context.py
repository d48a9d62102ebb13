"""FOCAL, Offline PEARL and SMAC: each test is named after the claim that it would refute."""
import copy
import dataclasses

import pytest
import torch
from conftest import command_line, refused

import envs
from baselines import focal, smac
from helpers import run as runs
from helpers.command import BadInput
from helpers.run import Run, summary


def run_of(method, env="point_goal", variant="", **changes):
    variant = variant or next(iter(method.variants))
    settings = {"env": env, "variant": variant, **method.presets[env], **method.variants[variant]}
    return Run(method, method.config(**{**settings, **changes}))


ALL = [(method, name) for method in (focal.FOCAL, smac.SMAC) for name in method.variants]
SMALL = dict(width=16, steps=12, batch=16, context=16, final_draws=1)
SHORT = {**SMALL, "offline_steps": 6, "rounds": 2, "episodes": 1}


def batches(model, tasks=4, size=16):
    """A context, another and other transitions, of a run on the toy family."""
    return model.sample(model.choose(tasks), (size, size, size))


def gradient(loss, module):
    parameters = list(module.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return sum(0.0 if g is None else g.abs().sum().item() for g in found)


def test_the_distance_loss_equals_a_double_loop():
    torch.manual_seed(0)
    config = focal.Config(power=3.0, beta=0.7, epsilon=0.2)
    z, other = torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
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


def test_codes_of_equal_tasks_attract_and_of_others_repel():
    z = torch.tensor([[0.0, 0.0], [0.1, 0.0]], requires_grad=True)
    loss = focal.distance_loss(z, z.detach() + torch.tensor([[0.05, 0.0]]), focal.Config())
    step = -torch.autograd.grad(loss, z)[0]
    assert step[0, 0] < 0 < step[1, 0]                      # away from each other
    lone = focal.distance_loss(z, z.detach() + 0.05, dataclasses.replace(focal.Config(), beta=0.0))
    assert (-torch.autograd.grad(lone, z)[0] > 0).all()     # towards the second code of the task


def test_the_product_of_gaussians_equals_the_formula():
    """Two factors: the mean is weighted by the precisions, the precisions add up; and a grid."""
    mean, variance = torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[0.5], [2.0]]])
    m, v = focal.product_of_gaussians(mean, variance)
    assert v.item() == pytest.approx(1 / (1 / 0.5 + 1 / 2.0))
    assert m.item() == pytest.approx((1.0 / 0.5 + 3.0 / 2.0) * v.item())
    x = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    density = torch.ones_like(x)
    for a, b in zip(mean[0, :, 0], variance[0, :, 0]):
        density = density * torch.exp(-0.5 * (x - a) ** 2 / b)
    density = density / density.sum()
    assert (density * x).sum().item() == pytest.approx(m.item(), abs=1e-6)
    assert (density * (x - m.item()) ** 2).sum().item() == pytest.approx(v.item(), abs=1e-6)


def test_kl_equals_torchs():
    mean, variance = torch.randn(3, 5), torch.rand(3, 5) + 0.1
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, variance.sqrt()), torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(focal.kl_loss(mean, variance), theirs.sum(-1).mean())


@pytest.mark.parametrize("method, variant", ALL[:4], ids=lambda x: x if isinstance(x, str) else "")
def test_the_order_of_a_context_does_not_matter(method, variant):
    model = run_of(method, variant=variant, **(SHORT if method is smac.SMAC else SMALL))
    context, _, _ = batches(model)
    order = torch.randperm(16)
    shuffled = type(context)(*(x[:, order] for x in context))
    torch.testing.assert_close(model.learner.encode(context), model.learner.encode(shuffled),
                               rtol=1e-5, atol=1e-6)
    other = type(context)(*(x.flip(0) for x in context))
    assert not torch.allclose(model.learner.encode(context), model.learner.encode(other))


def test_who_trains_the_encoder():
    """FOCAL's: the distance loss alone; PEARL's: critics and KL; SMAC's: rewards and KL. An actor
    never does, and climbing the critics does not train them."""
    for method, variant, trains in ((focal.FOCAL, "focal", {"distance_loss"}),
                                    (focal.FOCAL, "pearl", {"critic_loss", "kl_loss"}),
                                    (smac.SMAC, "smac", {"reward_loss", "kl_loss"})):
        model = run_of(method, variant=variant, **(SHORT if method is smac.SMAC else SMALL))
        first, second, batch = batches(model)
        contexts = (first, second) if method is focal.FOCAL else (first,)
        losses = model.learner.losses(*contexts, batch, torch.randn(4, model.config.code))
        for name, loss in losses.items():
            assert (gradient(loss, model.learner.encoder) > 0) == (name in trains), (variant, name)
            assert (gradient(loss, model.learner.critics) > 0) == (name == "critic_loss")
            assert (gradient(loss, model.learner.actor) > 0) == (name == "actor_loss")
        assert "actor_loss" in losses and "critic_loss" in losses


@pytest.mark.parametrize("sigma", [0.2, 0.0])
def test_the_actors_loss_equals_a_loop(sigma, monkeypatch):
    """exp of the standardised advantage / T, times the error of the mean action in units of sigma
    or, without one, of the deviation of the task's own actions: then a task whose actions are
    small counts as much as another."""
    learner = run_of(focal.FOCAL, sigma=sigma, temperature=2.0, **SMALL).learner
    torch.manual_seed(0)
    batch = batches(run_of(focal.FOCAL, **SMALL))[2]
    mean, z = 0.3 * torch.randn_like(batch.action), torch.zeros(4, 8)
    monkeypatch.setattr(learner, "act", lambda obs, z: mean)
    scale = torch.tensor([1.0, 0.1, 1.0, 1.0])[:, None, None]       # of actions and of errors
    batch, mean = batch._replace(action=scale * batch.action), scale * mean
    terms = []
    for k in range(4):
        a, q = batch.action[k], [learner.critics(batch.obs, x, z).amin(0)[k]
                                 for x in (batch.action, mean)]
        A = q[0] - q[1]
        weight = ((A - A.mean()) / A.std() / 2.0).clamp_max(torch.tensor(20.0).log()).exp()
        variance = sigma ** 2 or sum(a[:, d].var() for d in range(a.shape[1])) / a.shape[1]
        terms.append((weight * 0.5 * ((a - mean[k]) ** 2).sum(-1) / variance).mean())
    torch.testing.assert_close(learner.actor_loss(batch, z), sum(terms) / 4)
    assert (terms[1] > 0.2 * terms[0]) == (not sigma)


@pytest.mark.parametrize("monte_carlo", [False, True])
def test_terminations_end_and_time_limits_go_on(monte_carlo):
    """The target is r + gamma (1 - terminated) min Q'(s', pi(s')), whatever ended by time, or all
    rewards to the end of the episode and, where that is by time, gamma^k min Q'(s_end, ...)."""
    model = run_of(focal.FOCAL, monte_carlo=monte_carlo, **SMALL)
    _, _, batch = batches(model)
    learner, z = model.learner, torch.randn(4, 8)
    with torch.no_grad():
        for p in learner.targets.parameters():
            p.add_(0.1)
    for ended in (0.0, 1.0):
        left = torch.randint(1, 40, batch.reward.shape)                     # k, steps that are left
        here = batch._replace(terminated=torch.full_like(batch.terminated, ended),
                              discount=(1 - ended) * 0.9 ** left)
        following = here.last_obs if monte_carlo else here.next_obs
        with torch.no_grad():
            nets = [[net(torch.cat([x, a, z[:, None].expand(-1, 16, -1)], -1))[..., 0]
                     for net in critics.nets] for critics, x, a in (
                (learner.critics, here.obs, here.action),
                (learner.targets, following, learner.act(following, z)))]
        reward, steps = (here.mc_return, left) if monte_carlo else (here.reward, 1)
        target = reward + (1 - ended) * 0.9 ** steps * torch.minimum(*nets[1])
        expected = sum((q - target).square().mean() for q in nets[0]) / 2
        torch.testing.assert_close(learner.critic_loss(here, z), expected)
    held = run_of(focal.FOCAL, "walker_params").buffers        # the data tell the two apart
    assert 0 < held.terminated.sum() < 0.01 * len(held.terminated)


@pytest.mark.parametrize("method, variant", ALL, ids=lambda x: x if isinstance(x, str) else "")
def test_every_variant_trains_what_it_should(method, variant):
    settings = SMALL if method is focal.FOCAL else SHORT
    settings = {**settings, **{k: method.variants[variant][k] for k in ("rounds",)
                               if k in method.variants[variant]}}
    model = run_of(method, variant=variant, **settings)
    before = copy.deepcopy(model.learner.state_dict())
    method.train(model, until=6)
    for name, x in model.learner.state_dict().items():
        assert torch.equal(x, before[name]) == name.startswith("lived"), name
    encoder = copy.deepcopy(model.learner.encoder.state_dict())
    method.train(model, until=12)
    for name, x in model.learner.encoder.state_dict().items():
        assert torch.equal(x, encoder[name]) == (variant == "frozen"), name


@pytest.mark.parametrize("variant", focal.VARIANTS)
def test_the_encoder_stays_after_its_own_updates(variant):
    for encoder_steps, stays in ((8, True), (0, False)):
        model = run_of(focal.FOCAL, variant=variant, encoder_steps=encoder_steps, **SMALL)
        focal.train(model, until=8)
        before = copy.deepcopy(model.learner.state_dict())
        focal.train(model, until=12)
        for name, x in model.learner.state_dict().items():
            net = name.split(".")[0]
            if net == "encoder":
                assert torch.equal(x, before[name]) == stays, name
            elif net in ("actor", "critics"):
                assert not torch.equal(x, before[name]), name


def test_losses_are_logged_where_a_phase_ends_between_two_evaluations(tmp_path):
    model = run_of(smac.SMAC, variant="frozen", **{**SHORT, "rounds": 1}, eval_every=4)
    model.folder = tmp_path
    smac.train(model, until=12)
    assert [row["step"] for row in model.rows if "reward_loss" in row] == [4, 8]
    assert all("actor_loss" in row for row in model.rows if row["step"])


def test_the_online_phase_reads_no_reward(monkeypatch):
    """Rewards of the training tasks' environments are made NaN: nothing changes. Episodes get their
    labels from the decoder, told a code of their own task."""
    def states(reward):
        model = run_of(smac.SMAC, **SHORT)
        monkeypatch.setattr(smac, "own_return", lambda run, draws: 0.0)
        step = envs.PointGoal.step
        monkeypatch.setattr(envs.PointGoal, "step", lambda self, action: (
            *(x := step(self, action))[:1], reward(x[1]), *x[2:]))
        smac.train(model, until=12)
        monkeypatch.undo()
        return model.learner.state_dict()
    one, other = states(lambda r: r), states(lambda r: float("nan"))
    assert one["lived.length"].sum() == 2 * 16 * 40                  # rounds, training tasks, steps
    assert one["lived.reward_seen"].std() > 0
    for name, x in one.items():
        assert torch.equal(x, other[name]), name


def test_the_decoder_is_not_told_where_a_step_led():
    """Else a code of other dynamics has nothing to tell, and collapses (it did, on walkers)."""
    model = run_of(smac.SMAC, next_obs=True, **SHORT)
    context, _, batch = batches(model)
    elsewhere = batch._replace(next_obs=batch.next_obs + 1.0)
    z = torch.randn(4, 5)
    assert torch.equal(model.learner.reward(batch, z), model.learner.reward(elsewhere, z))
    moved = context._replace(next_obs=context.next_obs + 1.0)
    assert not torch.allclose(model.learner.encode(context), model.learner.encode(moved))


def test_labels_are_the_decoders(monkeypatch):
    model = run_of(smac.SMAC, **SHORT)
    monkeypatch.setattr(model.learner, "reward", lambda batch, z: batch.obs[..., 0] + z[:, :1])
    monkeypatch.setattr(model.learner, "encode",
                        lambda context: torch.arange(len(context.obs))[:, None].expand(-1, 5))
    smac.self_supervise(model)
    lived = model.learner.lived
    for k, task in enumerate(model.buffers.train):
        torch.testing.assert_close(lived.reward_seen[task, 0], lived.obs[task, 0, :-1, 0] + k)
    assert lived.length[model.buffers.test].sum() == 0              # test tasks are left alone


@pytest.mark.parametrize("method, settings, stop", [
    (focal.FOCAL, SMALL, 5), (smac.SMAC, SHORT, 4), (smac.SMAC, SHORT, 6), (smac.SMAC, SHORT, 10)],
    ids=["focal", "offline", "between", "online"])
def test_a_run_goes_on_exactly(method, settings, stop, tmp_path):
    settings = dict(settings, variant="pearl") if method is focal.FOCAL else settings
    whole, half = run_of(method, **settings), run_of(method, **settings)
    method.train(whole, until=12)
    half.folder = tmp_path
    method.train(half, until=stop)
    half.save()
    again = runs.load(method, tmp_path / "checkpoint.pt")
    method.train(again, until=12)
    for name, x in whole.learner.state_dict().items():
        assert torch.equal(x, again.learner.state_dict()[name]), name
    assert whole.notes == again.notes


@pytest.mark.parametrize("method, variant", ALL[:4], ids=lambda x: x if isinstance(x, str) else "")
def test_being_told_a_context_helps(method, variant):
    settings = dict(steps=250, final_draws=3) if method is focal.FOCAL else dict(
        steps=260, offline_steps=250, rounds=0, final_draws=3)
    model = run_of(method, variant=variant, **settings)
    method.train(model, until=250)
    result = summary(model)
    assert result["before"] < -30 and result["after"] > -20


@pytest.mark.parametrize("method", [focal.FOCAL, smac.SMAC])
def test_several_processes_are_refused(method, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="without torchrun"):
        run_of(method, **SMALL)


def test_the_command_lines_work(tmp_path):
    for program in ("focal.py", "smac.py"):
        line = ["--env", "point_goal", "--steps", 8, "--width", 8, "--final-draws", 1, "--out",
                tmp_path / program]
        extra = ["--offline-steps", 4, "--rounds", 1] if program == "smac.py" else []
        result = command_line(*line, *extra, program=program)
        assert result.returncode == 0, result.stderr
        assert "mean" in result.stdout
        result = command_line("--evaluate", tmp_path / program / "checkpoint.pt", program=program)
        assert result.returncode == 0, result.stderr
        refused(command_line("--variant", "macaw", program=program), "macaw")
    refused(command_line("--evaluate", tmp_path / "focal.py/checkpoint.pt"), "variant focal")
