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
from numpy.random import exponential, normal, uniform

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import macaw
from baselines import focal
from helpers.command import BadInput, Parser, one_sentence
from helpers.data import Batch
from notebooks.students import GAP, HERE


def positive(*shape):
    return torch.rand(shape) + 0.1


def transitions():
    v, effort = uniform((-1, 0), (3, 0.3), (41, 2)).T
    return v, effort, -abs(v - uniform(1.5, 3)) - effort + exponential(0.3, 41)


def meta_step():
    def batch():                                        # of three tasks
        s, x = torch.randn(3, 3, 8, 3), torch.randn(3, 3, 8)
        return Batch(s[0], positive(3, 8, 2), x[0], x[1], s[1], 0 * x[0], x[2], 0 * x[0], s[2])
    model = macaw.MetaLearner(3, 2, macaw.Config(width=8, latent=4, head_width=4,
                                                  inner_steps=2))
    return model, model.optimizer(), batch(), batch()


CASES = {                                               # arguments, drawn anew for each case
    "fitted_goal": transitions,
    "my_returns": lambda: (normal(size=30), uniform(0.8, 1), normal()),
    "my_meta_step": meta_step,
    "my_awr": lambda: (*torch.randn(2, 3, 20, 4), torch.randn(3, 20), float(positive()), 0.3),
    "mirrored": lambda: (torch.randn(2, 3), positive(2)),
    "as_written": lambda: (*(torch.randn(n) for n in ((1, 4), (6, 4), (1, 6), (1, 6))),
                           *positive(3)),
    "my_distance_loss": lambda: (*torch.randn(2, 7, 5), focal.Config(
        power=float(positive()) + 1, beta=float(positive()), epsilon=float(positive()))),
    "my_product_of_gaussians": lambda: (torch.randn(3, 9, 4), positive(3, 9, 4)),
    "my_td_lambda": lambda: (torch.randn(9), torch.randn(10), uniform() < 0.5, 0.9, uniform()),
    "my_interval": lambda: (normal(-100, 30, (1, 5)) + normal(0, 3, (6, 5)),),
}
POINTS = 3


def functions(path):
    """The texts of a notebook's code cells, and their imports and functions, ready to call."""
    try:
        cells = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))["cells"]
        texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path} is no notebook; name an .ipynb") from None
    space = dict.fromkeys(("candidates", "CANDIDATES"), np.linspace(0, 3.5, 701))
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
    return np.ravel(x.detach() if isinstance(x, torch.Tensor) else x).astype(float)


def answer(function, name, case):
    """A function's answer to a case, and what it made of nets and arrays in it."""
    np.random.seed(1000 + case)
    torch.manual_seed(1000 + case)
    given = CASES[name]()
    answered = function(*given)
    return flat([answered, *(x for x in given if isinstance(x, torch.nn.Module | np.ndarray))])


def points(mine, theirs, name):
    """Cases in which the student's function answers as the lesson's, and what is wrong else."""
    good, said = 0, ""
    for case in range(POINTS):
        expected = answer(theirs, name, case)
        try:
            got = answer(mine, name, case)
            np.testing.assert_equal(got.size, expected.size, "how many numbers it gives")
            if np.allclose(got, expected, rtol=1e-4, atol=1e-4 * abs(expected).mean()):
                good += 1
            else:
                said = f"off by up to {abs(got - expected).max():.3g}"
        except Exception as problem:                    # whatever a student's code may raise
            said = f"{type(problem).__name__}: {' '.join(str(problem).split())}"
    return good, said


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("notebooks", nargs="+")
    with one_sentence(parser.leave):
        lessons = [([gap[2] for gap in GAP.finditer("\n\n".join(texts))], full)
                   for texts, full in map(functions, sorted(HERE.glob("[0-9]_*.ipynb")))]
        for path in parser.parse_args().notebooks:
            space = functions(path)[1]
            names, full = max(lessons, key=lambda lesson: len(space.keys() & lesson[0]))
            got = [points(space[name], full[name], name) if name in space
                   else (0, "is missing, or its cell has a syntax error") for name in names]
            for name, (good, said) in zip(names, got):
                print(f"{path}: {name:24s} {good} of {POINTS}  {said}".rstrip())
            print(f"{path}: {sum(good for good, _ in got)} of {POINTS * len(names)} points")


if __name__ == "__main__":
    main()
