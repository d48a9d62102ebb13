"""Each test is named after the claim that it would refute. `python -m pytest -q` runs all."""
import dataclasses
import os
import pathlib

import numpy as np
import pytest
import torch

import macaw

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
        return macaw.Batch(obs, action, mc_return, torch.zeros_like(mc_return), obs)


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
