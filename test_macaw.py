"""Each test is named after the claim that it would refute. `python -m pytest -q` runs all."""
import dataclasses
import os
import pathlib

import numpy as np
import pytest
import torch

import macaw
from buffers import Batch

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
        self.config = macaw.Config(width=8, latent=6, bootstrap=False, weight_transform=self.wt,
                                   advantage_head=self.adv)
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
                close(memory[1][-1][i], z)
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
    config = macaw.Config(**{**dict(width=8, latent=6, head_width=7, inner_lr=0.05), **changes})
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
    """One task at a time, every tensor of every layer copied: the authors' way, without `higher`."""
    config, total, adapted = model.config, 0.0, []
    for i in range(len(inner.obs)):
        mine, test = (Batch(*(x[i:i + 1] for x in b)) for b in (inner, outer))
        nets = {}
        for kind in ("value", "policy"):
            learner = getattr(model, kind)
            state = [[t.z, t.M, t.m] if config.weight_transform else [t.theta]
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
                if not config.weight_transform:
                    lrs = [torch.cat([lrs[0].expand(t.inputs * t.outputs),
                                      lrs[1].expand(t.outputs)])]
                layer[:] = [x - lr * next(grads) for x, lr in zip(layer, lrs)]

        V, pi = nets["value_net"], nets["policy_net"]
        coef = torch.nn.functional.softplus(model.log_coef) if config.advantage_head else None
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
@pytest.mark.parametrize("weight_transform", [True, False])
def test_adapting_all_tasks_at_once_equals_copying_every_tensor_of_each(inner_steps,
                                                                        weight_transform):
    model, inner, outer = small(inner_steps=inner_steps, weight_transform=weight_transform)
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
def test_meta_gradient_equals_finite_differences(inner_steps):
    """The advantages are constants in the loss, so the differences hold them still, too."""
    model, inner, outer = small(inner_steps=inner_steps, behavior_cloning=True, bootstrap=False,
                                advantage_head=False)
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


def test_no_gradient_flows_through_advantages():
    model, inner, outer = small()
    found = gradients(model, model.meta_loss(inner, outer)[1])
    assert all(found[name] is None or found[name].abs().max() == 0
               for name in found if name.startswith("value"))
    assert found["policy.transforms.0.z"].abs().max() > 0


def test_every_tensor_is_in_one_optimizer_and_moves_in_a_step():
    for variant in macaw.VARIANTS:
        model, inner, outer = small(**{**macaw.VARIANTS[variant], "equal_parameters": False})
        optimizer = model.optimizer()
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters())
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        sum(model.meta_loss(inner, outer)).backward()
        optimizer.step()
        still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
        head = [f"policy.transforms.{i}.log_lr" for i in (4, 5)]        # cannot after one step
        assert still == (head if model.config.advantage_head else [])


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


def test_equal_width_gives_equal_parameter_counts():
    def size(**changes):
        return sum(p.numel() for p in macaw.Macaw(17, 6, macaw.Config(**changes)).parameters())
    narrow, wide = size(), size(**macaw.VARIANTS["no_wt_wide"])
    assert 0 <= narrow - wide < 0.01 * narrow
    assert size(**macaw.VARIANTS["no_wt"]) < 0.1 * narrow
