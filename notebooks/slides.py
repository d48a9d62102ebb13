"""Slides of the lessons: every figure that a lesson has stored, with one sentence, in one file.

    python notebooks/slides.py --out slides.html        # at once; arrow keys turn the slides

A slide's title is the section's; its sentence is the first, or the first with something in bold, of
the text after the figure. Not to be committed: the lessons hold the same figures.
"""
import html
import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from helpers.command import Parser, check_writable, one_sentence, replacing
from notebooks.students import DETAILS, HERE

PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>MACAW in pictures</title>
<style>
html { scroll-snap-type: y mandatory; font: clamp(16px, 2.2vw, 34px)/1.35 system-ui; color: #222; }
body, h1, h2, p { margin: 0; }
section { height: 100vh; scroll-snap-align: start; box-sizing: border-box; padding: 3vh 5vw;
          display: flex; flex-direction: column; justify-content: center; gap: 2vh; }
h2 { font-size: 1em; }
img { min-height: 0; object-fit: contain; }
</style>
%s
<script>
const turn = {ArrowRight: 1, ArrowDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1};
onkeydown = event => {
  if (!(event.key in turn)) return true;
  scrollTo(0, (Math.round(scrollY / innerHeight) + turn[event.key]) * innerHeight);
  return false;
};
</script>
"""
SENTENCE = re.compile(r".*?[.?!](?=\s+[A-Z(*]|$)")


def sentence(text):
    """A sentence of the first paragraph of a text in Markdown, without marks: the first one with
    something in bold, else the first; none with a formula if there are others."""
    text = re.sub(r"<!--.*?-->|^#.*?$", "", DETAILS.sub("", text), flags=re.MULTILINE).strip()
    found = SENTENCE.findall(" ".join(text.split("\n\n")[0].split())) or [""]
    found = [x for x in found if "\\" not in x] or found
    chosen = next((x for x in found if "**" in x), found[0])
    chosen = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", chosen)                 # links
    return html.escape(re.sub(r"[*`${}]|\\\w+", "", chosen).strip())


def slides(cells):
    """A lesson's slides, as HTML: its title, then its figures, but not those of the exercises."""
    heading, before = "", ""
    for k, cell in enumerate(cells):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading, before = (re.findall("^#+ (.*)", text, re.MULTILINE) or [heading])[-1], text
            if heading == "Exercises":
                return
            if k == 0:
                yield f"<section><h1>{html.escape(heading)}</h1><p>{sentence(text)}</p></section>"
        after = "".join(cells[k + 1]["source"]) if k + 1 < len(cells) else ""
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                said = sentence(before if after.lstrip().startswith(("#", "import")) else after)
                yield (f"<section><h2>{html.escape(heading)}</h2><img alt='' src='data:image/png;"
                       f"base64,{''.join(output['data']['image/png']).strip()}'>"
                       f"<p>{said}</p></section>")


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--out", required=True)
    out = parser.parse_args().out
    with one_sentence(parser.leave):
        check_writable(out, ".html")
        made = [slide for path in sorted(HERE.glob("[0-9]_*.ipynb"))
                for slide in slides(json.loads(path.read_text(encoding="utf-8"))["cells"])]
        with replacing(out) as file:
            file.write((PAGE.replace("%s", "\n".join(made))).encode())
        print(f"{out}: {len(made)} slides")


if __name__ == "__main__":
    main()
