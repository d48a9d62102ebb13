"""Products with a big matrix M whose gradient is formed once, however often M is used.

Autograd would make and add up an array of M's size for each use. But each such gradient is
left^T right with few rows, so we keep the factors and multiply them once. For MACAW's layers at
c = 100, three products and two sums of 19 MB each become one product a meta-step.
"""
import torch


def times(M):
    """A function of x: x M for x (N, n), transposed x M^T for x (N, c); M is (n, c)."""
    factors = []
    token, values = Gather.apply(M, factors), M.detach()

    def product(x, transposed=False):
        return Product.apply(x, values, transposed, token, factors)
    return product


class Gather(torch.autograd.Function):
    """A token for M, which every product takes; autograd comes back here when all have left their
    factors."""

    @staticmethod
    def forward(ctx, M, factors):
        ctx.factors = factors
        return M.new_zeros(())

    @staticmethod
    def backward(ctx, _):
        left, right = map(torch.cat, zip(*ctx.factors))
        ctx.factors.clear()
        return left.T @ right, None


class Product(torch.autograd.Function):
    """x M or x M^T, the gradient of M left to the token."""

    @staticmethod
    def forward(ctx, x, M, transposed, token, factors):
        ctx.save_for_backward(x, M)
        ctx.transposed, ctx.factors = transposed, factors
        return x @ (M.T if transposed else M)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        x, M = ctx.saved_tensors
        ctx.factors.append((g, x) if ctx.transposed else (x, g))
        return g @ (M if ctx.transposed else M.T), None, None, g.new_zeros(()), None
