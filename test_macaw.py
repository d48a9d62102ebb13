"""MACAW's numbers: each test is named after the claim that it would refute."""
import dataclasses
import os
import pathlib

import numpy as np
import pytest
import torch

import macaw
from experiments import straightforward
from helpers.data import Batch

# ------------------------------------------------------- the released code's numbers (golden files)
# golden/*.npz hold one meta-step of the authors' program each, in float64: 3 tasks, batch 16.

HERE = pathlib.Path(__file__).parent
GOLDEN = ([pathlib.Path(os.environ["MACAW_GOLDEN"])] if "MACAW_GOLDEN" in os.environ
          else sorted((HERE / "tests/golden").glob("*.npz")))


def batch_of(obs, action, mc_return, discount, last_obs):
    """A Batch of what MACAW reads; what it does not is NaN, so nobody reads it unnoticed."""
    unused = torch.full_like(mc_return, torch.nan)
    return Batch(obs, action, unused, unused, torch.full_like(obs, torch.nan), unused,
                 mc_return, discount, last_obs)


def meta_loss(model, inner, outer):
    """What a meta-step descends: lines 7 to 11 of Algorithm 1."""
    pi, V = model.adapt(inner, model.config.inner_steps, train=True)
    return sum(model.meta_losses(pi, V, outer)) / len(inner.obs)


class Golden:
    """A golden file, and a Macaw that holds its parameters."""

    def __init__(self, path):
        with np.load(path) as file:
            self.x = {name: torch.as_tensor(file[name]) for name in file.files}
        self.wt = "policy/seq.fc_0.z" in self.x
        self.adv = "policy/head_seq.fc_0.weight" in self.x
        self.config = macaw.Config(width=8, latent=6 if self.wt else 0, bootstrap=False,
                                   head_width=32 if self.adv else 0, inner_steps=1)
        self.macaw = macaw.MetaLearner(5, 2, self.config).double()
        with torch.no_grad():
            if self.adv:
                self.macaw.raw_coef.copy_(inverse_softplus(self.x["advantage_coef"]))
            for net in ("policy", "value"):
                lrs = self.x[f"inner_lr_{net}"].split(3 if self.wt else 2)
                for name, t, lr in zip(self.layers(net), self.transforms(net), lrs, strict=True):
                    for p, value in zip(self.tensors(t), self.read(f"{net}/{name}"), strict=True):
                        p.copy_(value)
                    t.raw_lr.copy_(inverse_softplus(lr))

    def layers(self, net):
        return [f"seq.fc_{i}" for i in range(4)] + (
            ["head_seq.fc_0", "head_seq.fc_1"] if net == "policy" and self.adv else [])

    def transforms(self, net):
        return getattr(self.macaw, net).transforms

    def tensors(self, transform):
        """z, M, m or w, as `read` gives them."""
        return ([transform.z[0], transform.M, transform.m[0]] if self.wt else [transform.w[0]])

    def read(self, key):
        """One layer's tensors in our shapes: z, M, m, or w from W (out, in) and b."""
        if self.wt:
            return [self.x[f"{key}.{name}"] for name in ("z", "weight", "fc.bias")]
        return [torch.cat([self.x[key + ".weight"].T.reshape(-1), self.x[key + ".bias"]])]

    def batch(self, part, tasks=range(3)):
        obs, action, mc_return = (torch.stack([self.x[f"batch/{part}/{i}/{name}"] for i in tasks])
                                  for name in ("obs", "action", "mc_return"))
        return batch_of(obs, action, mc_return, torch.zeros_like(mc_return), obs)


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
            seen[net].append(function(*args, **kwargs))
            return seen[net][-1]
        monkeypatch.setattr(macaw, f"{net}_loss", record)
    for i in range(3):
        meta_loss(golden.macaw, golden.batch("inner", [i]), golden.batch("outer", [i]))
        for net, losses in seen.items():
            close(losses[0], golden.x[f"loss/inner/{net}/{i}"])
            close(losses[-1], golden.x[f"loss/outer/{net}/{i}"])
            losses.clear()


def test_adapted_parameters_equal_those_of_the_released_code(golden):
    """Theirs are copies of z, M and m for every task; ours w alone, and d_0, z_0, z_1."""
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
        weights = t.initial()[0] - step
        for i in range(3):
            theirs = golden.read(f"adapted/{i}/{key}")
            if golden.wt:
                z, M, m = theirs
                a_z, a_M, a_m = torch.nn.functional.softplus(t.raw_lr)
                close(memory.z[-1][i], z)
                close(t.M - a_M * torch.outer(d[i], t.z[0]), M)
                close(t.m[0] - a_m * d[i], m)
                theirs = [M @ z + m]
            close(weights[i], theirs[0])


def test_meta_gradients_equal_those_of_the_released_code(golden):
    meta_loss(golden.macaw, golden.batch("inner"), golden.batch("outer")).backward()
    grads = dict(golden.x)
    if golden.adv:
        coef = golden.macaw.raw_coef
        close(coef.grad / torch.sigmoid(coef), grads["meta_grad/advantage_coef"])
    for net in ("policy", "value"):
        lrs = []
        for name, t in zip(golden.layers(net), golden.transforms(net), strict=True):
            ours = [t.z.grad[0], t.M.grad, t.m.grad[0]] if golden.wt else [t.w.grad[0]]
            for mine, theirs in zip(ours, golden.read(f"meta_grad/{net}/{name}"), strict=True):
                close(mine, theirs)
            lr_grad = torch.zeros(3 if golden.wt else 2)    # of an adapted head, which no one uses
            if t.raw_lr.grad is not None:
                lr_grad = t.raw_lr.grad / torch.sigmoid(t.raw_lr)
            lrs.append(lr_grad)
        close(torch.cat(lrs), grads[f"meta_grad/inner_lr_{net}"])


# ------------------------------------------------------------- adaptation against other derivations

def small(seed=0, tasks=3, size=16, double=True, **changes):
    """A small Macaw and its inner and outer batch, of random numbers."""
    torch.manual_seed(seed)
    config = macaw.Config(**{**dict(width=8, latent=6, head_width=7, inner_lr=0.05,
                                     inner_steps=1), **changes})
    model = macaw.MetaLearner(5, 2, config)

    def batch():
        return batch_of(torch.randn(tasks, size, 5), torch.rand(tasks, size, 2) * 2 - 1,
                        torch.randn(tasks, size), torch.rand(tasks, size),
                        torch.randn(tasks, size, 5))
    batches = batch(), batch()
    if double:
        model = model.double()
        batches = [Batch(*(x.double() for x in b)) for b in batches]
    return model, *batches


def gradients(model, loss):
    names, parameters = zip(*model.named_parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return dict(zip(names, found))


@pytest.mark.parametrize("head_width", [0, 7])
@pytest.mark.parametrize("inner_steps", [1, 2, 4])
@pytest.mark.parametrize("latent, other", [
    (0, {}), (5, {}), (5, dict(relative_sigma=True, smooth=True)), (0, dict(max_gradient=1.0)),
    (5, dict(max_gradient=1.0, relative_sigma=True))])
def test_adapting_all_tasks_at_once_equals_copying_every_tensor_of_each(latent, other, inner_steps,
                                                                        head_width):
    model, inner, outer = small(inner_steps=inner_steps, latent=latent, head_width=head_width,
                                **other)
    pi, V = model.adapt(inner, inner_steps)
    for i in range(3):
        pi_by_hand, V_by_hand = straightforward.adapt(model, inner.part(i, 3))
        close(pi(outer.obs)[[i]], pi_by_hand(outer.obs[[i]]))
        close(V(outer.obs)[[i]], V_by_hand(outer.obs[[i]]))
    ours = gradients(model, meta_loss(model, inner, outer))
    straightforward.backward(model, inner, outer)
    for name, p in model.named_parameters():
        if ours[name] is None:                      # the head's step sizes, when one step is taken
            assert inner_steps == 1 and "raw_lr" in name and name.split(".")[2] in "45"
            assert p.grad is None or p.grad.abs().max() == 0
        else:
            close(p.grad, ours[name])


def test_a_long_gradient_is_cut_for_its_task_alone():
    gradients = [torch.tensor([[3.0, 0.0], [0.3, 0.0], [0.0, 0.0]]),
                 torch.tensor([[0.0, 4.0, 0.0], [0.0, 0.4, 0.0], [0.0, 0.0, 0.0]])]
    cut = macaw.clip_per_task(gradients, 1.0)
    torch.testing.assert_close(cut, [torch.tensor([[0.6, 0.0], [0.3, 0.0], [0.0, 0.0]]),
                                     torch.tensor([[0, 0.8, 0], [0.0, 0.4, 0.0], [0.0, 0.0, 0.0]])])
    assert macaw.clip_per_task(gradients, 0.0) is gradients             # the paper's, not cut


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_meta_gradient_equals_finite_differences(inner_steps):
    """The advantages are constants in the loss, so the differences hold them still, too."""
    model, inner, outer = small(inner_steps=inner_steps, temperature=1e9, bootstrap=False,
                                head_width=0)
    ours = gradients(model, meta_loss(model, inner, outer))
    random = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        direction = torch.randn(p.shape, generator=random, dtype=p.dtype)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                p.add_(direction, alpha=sign * 1e-6)
            ends.append(meta_loss(model, inner, outer).item())
            with torch.no_grad():
                p.sub_(direction, alpha=sign * 1e-6)
        slope = (ends[0] - ends[1]) / 2e-6
        assert (ours[name] * direction).sum().item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_meta_gradient_is_of_second_order(monkeypatch):
    model, inner, outer = small()
    second = gradients(model, meta_loss(model, inner, outer))
    step = macaw.WeightTransform.step
    monkeypatch.setattr(macaw.WeightTransform, "step",
                        lambda self, d, memory: step(self, d.detach(), memory))
    first = gradients(model, meta_loss(model, inner, outer))
    differing = [name for name in first
                 if first[name] is not None and not torch.allclose(first[name], second[name])]
    assert len(differing) > 20


def test_no_gradient_flows_through_advantages():
    model, inner, outer = small()
    pi, V = model.adapt(inner, 1, train=True)
    found = gradients(model, model.meta_losses(pi, V, outer)[1])
    assert all(found[name] is None or found[name].abs().max() == 0
               for name in found if name.startswith("value"))
    assert found["policy.transforms.0.z"].abs().max() > 0


def test_every_tensor_is_in_one_optimizer_and_moves_in_a_step():
    for variant in macaw.VARIANTS:
        model, inner, outer = small(**dataclasses.asdict(
            macaw.MACAW.settings(env="ant_dir", variant=variant, width=8)))
        optimizer = model.optimizer()
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters())
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        meta_loss(model, inner, outer).backward()
        optimizer.step()
        still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
        if variant == "mt_awr":                         # no inner step in training
            assert still == [name for name in before if "raw_lr" in name]
        else:
            head = [f"policy.transforms.{i}.raw_lr" for i in (4, 5)]    # cannot after one step
            assert still == (head if model.config.head_width else [])


def test_constant_advantages_give_finite_weights():
    config = macaw.Config()
    for value in (0.0, -3.7, 11.1):
        weights = macaw.advantage_weights(torch.full((2, 16), value), config)
        torch.testing.assert_close(weights, torch.ones(2, 16), rtol=0.05, atol=0)


def test_advantage_weights_equal_the_formula(monkeypatch):
    monkeypatch.setattr(macaw, "MAX_WEIGHT", 4.0)
    config = macaw.Config(temperature=0.5)
    A = torch.tensor([[0.0, 1.0, 2.0, 7.0]])
    scaled = (A.numpy()[0] - 2.5) / np.std([0, 1, 2, 7], ddof=1) / 0.5
    expected = np.minimum(np.exp(scaled), 4.0)
    np.testing.assert_allclose(macaw.advantage_weights(A, config)[0], expected, rtol=1e-6)
    assert expected[-1] == 4.0 > expected[-2]


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_the_policys_loss_equals_a_loop(relative, smooth):
    """Task by task, with torch's own Gaussian and layers; relative: a third of the deviation of the
    task's own actions, that is the root of the mean variance of their components."""
    model, D, _ = small(sigma=0.3, relative_sigma=relative, smooth=smooth, head_width=0)
    D = D._replace(action=D.action * torch.tensor([1.0, 0.5, 0.1])[:, None, None])
    pi, V = model.adapt(D, 0)
    advantage = macaw.advantages(V, D, True)
    expected, (*hidden, last) = 0, [t.initial()[0][0] for t in model.policy.transforms]
    for i, a in enumerate(D.action):
        h = D.obs[i]
        for w in hidden:
            W, b = w[:h.shape[-1] * 8].view(-1, 8), w[h.shape[-1] * 8:]
            h = torch.nn.functional.silu(h @ W + b) if smooth else (h @ W + b).relu()
        mean = (h @ last[:16].view(8, 2) + last[16:]).tanh()
        deviation = 0.3 if not relative else ((a[:, 0].var() + a[:, 1].var()) / 2).sqrt() / 3
        log_prob = torch.distributions.Normal(mean, deviation).log_prob(a).sum(-1)
        weights = macaw.advantage_weights(advantage[[i]], model.config)[0]
        expected = expected - (weights * log_prob).mean()
    close(macaw.policy_loss(pi, D, advantage, model.config), expected)


def test_small_actions_count_as_much_as_large_ones():
    """Errors a tenth as large: with sigma in units of the actions a mean's gradient is ten times
    as large, which in these units is the same; with one sigma for all it is a tenth."""
    for relative, ratio in ((True, 10.0), (False, 0.1)):
        norms = []
        for scale in (1.0, 0.1):
            model, D, _ = small(relative_sigma=relative)
            offset = torch.zeros_like(D.action).requires_grad_()
            D = D._replace(action=D.action * scale)
            loss = macaw.policy_loss(lambda obs: offset, D, D.mc_return, model.config)
            norms.append(torch.autograd.grad(loss, offset)[0].norm())
        assert norms[1] / norms[0] == pytest.approx(ratio)


@pytest.mark.parametrize("obs_dim, act_dim", [(17, 6), (27, 8)])
def test_equal_width_gives_equal_parameter_counts(obs_dim, act_dim):
    def size(variant):
        config = macaw.MACAW.settings(env="ant_dir", variant=variant)
        return sum(p.numel() for p in macaw.MetaLearner(obs_dim, act_dim, config).parameters())
    assert size("no_wt_wide") == pytest.approx(size("macaw"), rel=0.05)
    assert size("no_wt") < 0.1 * size("macaw")


def test_cloning_behaviour_is_a_hot_temperature():
    config = macaw.MACAW.settings(variant="meta_bc")
    weights = macaw.advantage_weights(torch.tensor([[0.0, 1.0, 2.0, 700.0]]), config)
    assert torch.equal(weights, torch.ones(1, 4))


def test_the_advantage_head_sees_the_action_as_it_is():
    """A_theta(s, a) by hand, for actions of both signs; the released code clips them at 0."""
    torch.manual_seed(0)
    net = macaw.Policy(5, 2, 8, 7, smooth=False).double()
    obs, action = torch.randn(1, 16, 5).double(), torch.rand(1, 16, 2).double() * 2 - 1
    h = obs[0]
    for layer in (*net.hidden, None, *net.head):
        if layer is None:                                       # from the hidden layers to the head
            h = torch.cat([h, action[0]], -1)
            continue
        W, b = layer.w[0].split([layer.inputs * layer.outputs, layer.outputs])
        h = h @ W.view(layer.inputs, layer.outputs) + b
        h = h if layer is net.head[1] else h.relu()
    close(net(obs, action)[1][0], h[:, 0])


def test_weights_decay_and_step_sizes_do_not():
    """AdamW without a gradient: each step shrinks weights by their step size times the decay."""
    model, *_ = small(weight_decay=0.5, policy_lr=0.1, value_lr=0.2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model.optimizer().step()
    for name, p in model.named_parameters():
        shrinks = 1.0 if "raw_" in name else 0.95 if name.startswith("policy") else 0.9
        close(p, shrinks * before[name])
