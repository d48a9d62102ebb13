"""Points for the gaps of a student's lesson: three hidden cases each, against the full lesson.

    python notebooks/check.py my.ipynb                  # or many: hand_in/*.ipynb

Of a student's notebook only imports and functions run, so it takes seconds and needs no outputs.
"""
import ast
import json
import pathlib
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import macaw
from baselines import focal
from helpers.command import BadInput, Parser, one_sentence
from helpers.data import Batch
from notebooks.students import GAP, HERE


def rewards_of_a_goal():
    v, effort = np.random.uniform(-1, 3, 40), np.random.uniform(0, 0.3, 40)
    return v, effort, -abs(v - np.random.uniform(0.2, 3)) - effort + np.random.normal(0, 0.02, 40)


def batch(N=2, B=8):
    numbers, state = (lambda: torch.randn(N, B)), (lambda: torch.randn(N, B, 3))
    return Batch(state(), torch.rand(N, B, 2) - 0.5, numbers(), numbers(), state(),
                 torch.zeros(N, B), numbers(), torch.full((N, B), 0.5), state())


def meta_step():
    config = macaw.Config(width=8, latent=4, head_width=4, inner_batch=8, outer_batch=8)
    model = macaw.MetaLearner(3, 2, config)
    for p in model.parameters():
        p.grad = torch.ones_like(p)                     # of an earlier step
    return model, model.optimizer(), batch(), batch()


def step():
    transforms = [macaw.WeightTransform(3, 2, 4, 0.1) for _ in range(3)]
    weights = [t.initial()[0].detach().requires_grad_() for t in transforms]
    return transforms, weights, sum(w.pow(3).sum() for w in weights)


def table(seeds=6, tasks=5):
    means = 30 * np.random.randn(1, tasks) - 100
    return means + 3 * np.random.randn(seeds, tasks), np.random.default_rng(0)


def positive(*shape):
    return torch.rand(shape) + 0.1


CASES = {                                               # arguments, drawn anew for each case
    "fitted_goal": rewards_of_a_goal,
    "my_returns": lambda: (np.random.randn(30), np.random.uniform(0.8, 1), np.random.randn()),
    "my_step": step,
    "my_meta_step": meta_step,
    "my_awr": lambda: (torch.randn(3, 20, 4), torch.randn(3, 20, 4), 5 * torch.randn(3, 20) + 2,
                       float(positive()), 0.3),
    "mirrored": lambda: (torch.randn(2, 3), positive(2)),
    "as_written": lambda: (torch.randn(1, 4), torch.randn(6, 4), torch.randn(1, 6),
                           torch.randn(1, 6), *positive(3)),
    "my_distance_loss": lambda: (torch.randn(7, 5), torch.randn(7, 5), focal.Config(
        power=float(positive()) + 1, beta=float(positive()), epsilon=float(positive()))),
    "my_product_of_gaussians": lambda: (torch.randn(3, 9, 4), positive(3, 9, 4)),
    "my_td_lambda": lambda: (torch.randn(9), torch.randn(10), bool(torch.rand(()) < 0.5),
                             0.9, float(torch.rand(()))),
    "my_interval": table,
}
POINTS, CHANCE = 3, {"my_interval": 0.05}               # how far chance alone may put it off


def functions(path):
    """The texts of a notebook's code cells, and their imports and functions, ready to call."""
    try:
        cells = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))["cells"]
        texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path} is no notebook; name an .ipynb") from None
    goals = np.linspace(0, 3.5, 701)
    space = dict(candidates=goals, CANDIDATES=goals)
    for text in texts:
        lines = (line for line in text.splitlines() if not line.lstrip().startswith(("%", "!")))
        try:
            nodes = ast.parse("\n".join(lines)).body
        except SyntaxError:                             # its functions then count as missing
            continue
        kept = [x for x in nodes if isinstance(x, ast.Import | ast.ImportFrom | ast.FunctionDef)]
        exec(compile(ast.Module(kept, []), str(path), "exec"), space)
    return texts, space


def flat(x):
    """All numbers of an answer in one array; of a net those of its parameters."""
    x = list(x.parameters()) if isinstance(x, torch.nn.Module) else x
    if isinstance(x, list | tuple):
        return np.concatenate([np.empty(0), *map(flat, x)])
    return np.ravel(x.detach().numpy() if isinstance(x, torch.Tensor) else x).astype(float)


def answer(function, name, case):
    """A function's answer to a case, and what it made of the nets that it was given."""
    np.random.seed(1000 + case)
    torch.manual_seed(1000 + case)
    given = CASES[name]()
    return flat([function(*given), *(x for x in given if isinstance(x, torch.nn.Module))])


def points(mine, theirs, name):
    """Cases in which the student's function answers as the lesson's, and what is wrong else."""
    good, said = 0, ""
    for case in range(POINTS):
        expected = answer(theirs, name, case)
        try:
            got = answer(mine, name, case)
        except Exception as problem:                    # whatever a student's code may raise
            said = f"{type(problem).__name__}: {problem}"
            continue
        if got.shape != expected.shape:
            said = f"gives {len(got)} numbers, not {len(expected)}"
            continue
        off = abs(got - expected).max()
        if off <= CHANCE.get(name, 1e-4) * abs(expected).max():
            good += 1
        else:
            said = f"off by up to {off:.3g}"
    return good, said


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("notebooks", nargs="+")
    with one_sentence(parser.leave):
        lessons = [functions(path) for path in sorted(HERE.glob("[0-9]_*.ipynb"))]
        for path in parser.parse_args().notebooks:
            _, space = functions(path)
            gaps = [([gap[2] for text in texts for gap in GAP.finditer(text)], full)
                    for texts, full in lessons]
            names, full = max(gaps, key=lambda gap: len(space.keys() & gap[0]))
            if not space.keys() & names:
                raise BadInput(f"{path} has none of the lessons' gaps; name a lesson")
            total = 0
            for name in names:
                good, said = (points(space[name], full[name], name) if name in space
                              else (0, "is missing, or its cell has a syntax error"))
                print(f"{path}: {name:24s} {good} of {POINTS}  {said}".rstrip())
                total += good
            print(f"{path}: {total} of {POINTS * len(names)} points")


if __name__ == "__main__":
    main()
