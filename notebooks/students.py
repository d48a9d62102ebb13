"""notebooks/student: the lessons for students, with gaps where the full lessons have solutions.

    python notebooks/students.py                        # after every change of a lesson
    python notebooks/students.py --out elsewhere

A gap is what stands between the comment lines "# --- solution" and "# --- end of solution" of a
function; the asserts after it say when it is filled well. Solutions of exercises (<details>) and
outputs go too. The same lessons give the same bytes.
"""
import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from helpers.command import BadInput, Parser, check_writable, one_sentence, replacing

HERE = pathlib.Path(__file__).resolve().parent
BEGIN, END = "# --- solution", "# --- end of solution"
GAP = re.compile(rf"def (\w+)\((?:(?!def ).)*?\n( +){BEGIN}\n(.*?)\n +{END}(?=\n|$)", re.DOTALL)
DETAILS = re.compile(r"\n*<details>.*?</details>", re.DOTALL)


def emptied(source):
    """A code cell's text with its gaps empty."""
    def empty(gap):
        before, indent = gap[0][:gap.start(2) - gap.start()], gap[2]
        return (f'{before}{indent}raise NotImplementedError("your turn: write {gap[1]} as its '
                'docstring says")')
    return GAP.sub(empty, source)


def student_version(lesson, name):
    """The notebook (a dict) that students get of the lesson in the file `name`."""
    cells = []
    for cell in lesson["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            source = emptied(source)
            if BEGIN in source or END in source:
                raise BadInput(f"{name} has a line '{BEGIN}' or '{END}' without its partner, or "
                               "outside a function; write both, in a function's body")
            new = dict(cell_type="code", execution_count=None, id=cell["id"], metadata={},
                       outputs=[])
        else:
            source = DETAILS.sub("", source).strip()
            new = dict(cell_type="markdown", id=cell["id"], metadata={})
        if not cells:
            source += (f"\n\n*Made from the full lesson `notebooks/{name}` by `python "
                       "notebooks/students.py`: gaps stand in place of solutions. A gap raises "
                       "`NotImplementedError` until you fill it, and the `assert`s after it pass "
                       "when it is right.*")
        if source:
            cells.append(dict(new, source=source.splitlines(keepends=True)))
    kernel = lesson["metadata"]["kernelspec"]
    return dict(lesson, cells=cells, metadata=dict(kernelspec=kernel))


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--out", default=HERE / "student", type=pathlib.Path,
                        help="the folder to write to (notebooks/student)")
    arguments = parser.parse_args()
    with one_sentence(parser.leave):
        if arguments.out.resolve() == HERE:
            raise BadInput(f"{HERE} holds the full lessons; give another --out")
        arguments.out.mkdir(parents=True, exist_ok=True)
        for path in sorted(HERE.glob("[0-9]_*.ipynb")):
            check_writable(arguments.out / path.name)
            version = student_version(json.loads(path.read_text(encoding="utf-8")), path.name)
            with replacing(arguments.out / path.name) as file:
                file.write(f"{json.dumps(version, indent=1, ensure_ascii=False)}\n".encode())


if __name__ == "__main__":
    main()
