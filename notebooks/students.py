"""notebooks/student: the lessons for students, with gaps where the full lessons have solutions.

    python notebooks/students.py                        # after every change of a lesson
    python notebooks/students.py --project https://github.com/you/macaw --out colab

A gap is what stands between the comment lines "# --- solution" and "# --- end of solution" of a
function; the asserts after it pass when it is filled well. Left out, too: outputs, solutions of
exercises (<details>), and what a result says (from <!-- seen --> to <!-- end of seen -->), in place
of which students write down what they see. The same lessons give the same bytes.
With --project each version begins with a cell that fetches the project from there if need be.
"""
import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from helpers.command import BadInput, Parser, one_sentence, replacing

HERE = pathlib.Path(__file__).resolve().parent
BEGIN, END = "# --- solution", "# --- end of solution"
GAP = re.compile(rf"(def (\w+)\((?:(?!def ).)*?\n)( +){BEGIN}\n.*?\n +{END}(?=\n|$)", re.DOTALL)
EMPTY = r'\1\3raise NotImplementedError("your turn: write \2 as its docstring says")'
DETAILS = re.compile(r"\n*<details>.*?</details>", re.DOTALL)
SEEN = re.compile(r"<!-- seen -->.*?<!-- end of seen -->", re.DOTALL)
YOURS = "*What do you see? Write it here, then compare with the full lesson.*"
NOTE = """

*Made from the full lesson `notebooks/{}` by `python notebooks/students.py`: gaps stand in place \
of solutions. A gap raises `NotImplementedError` until you fill it, and the `assert`s after it \
pass when it is right.*"""

FETCH = """# Outside the project's folder, as in Colab: fetch it, and the packages that are missing
import os, pathlib, subprocess, sys

here = pathlib.Path.cwd()
if not any((folder / "macaw.py").exists() for folder in (here, *here.parents)):
    if not (here / "macaw").exists():
        subprocess.run(["git", "clone", "--depth", "1", "{}", "macaw"], check=True)
    os.chdir("macaw")
    names = [line.split("==")[0] for line in pathlib.Path("requirements.txt").open()]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *names], check=True)
"""


def student_version(lesson, name):
    """The notebook (a dict) that students get of the lesson in the file `name`."""
    cells = []
    for cell in lesson["cells"]:
        source = "".join(cell["source"])
        new = dict(cell_type=cell["cell_type"], id=cell["id"], metadata={})
        if cell["cell_type"] == "code":
            source = GAP.sub(EMPTY, source)
            if BEGIN in source or END in source:
                raise BadInput(f"{name} has a line '{BEGIN}' or '{END}' without its partner, or "
                               "outside a function; write both, in a function's body")
            new |= dict(execution_count=None, outputs=[])
        else:
            source = SEEN.sub(YOURS, DETAILS.sub("", source)).strip()
        if not cells:
            source += NOTE.format(name)
        if source:
            cells.append(dict(new, source=source.splitlines(keepends=True)))
    kernel = lesson["metadata"]["kernelspec"]
    return dict(lesson, cells=cells, metadata=dict(kernelspec=kernel))


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--out", default=HERE / "student", type=pathlib.Path)
    parser.add_argument("--project", help="where git finds the project, for Colab")
    arguments = parser.parse_args()
    project, out = arguments.project, arguments.out
    with one_sentence(parser.leave):
        if out.resolve() == HERE:
            raise BadInput(f"{HERE} holds the full lessons; give another --out")
        out.mkdir(parents=True, exist_ok=True)
        for path in sorted(HERE.glob("[0-9]_*.ipynb")):
            version = student_version(json.loads(path.read_text(encoding="utf-8")), path.name)
            if project:
                version["cells"].insert(1, dict(
                    cell_type="code", id="fetch", metadata={}, execution_count=None, outputs=[],
                    source=FETCH.format(project).splitlines(keepends=True)))
            text = json.dumps(version, indent=1, ensure_ascii=False, sort_keys=True)
            with replacing(out / path.name) as file:
                file.write(f"{text}\n".encode())


if __name__ == "__main__":
    main()
