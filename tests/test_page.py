"""docs/adapt.html: each test is named after the claim that it would refute."""
import base64
import json
import re
import shutil
import subprocess

import mujoco
import numpy as np
import pytest
from conftest import HERE, command_line, refused

import envs

PROGRAM, SHIPPED = "notebooks/page.py", (HERE / "docs/adapt.html").read_text()
MACAW = HERE / "notebooks/checkpoints/macaw.pt"
JSON = re.compile(r'(?<=type="application/json">)(.*?)(?=</script>)', re.DOTALL)


def embedded(text):
    return json.loads(JSON.search(text)[1])


def numbers(text, *shape):
    return np.frombuffer(base64.b64decode(text), "<i2").reshape(*shape) / 1000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page of one method and two tasks, one held out."""
    out = tmp_path_factory.mktemp("page") / "a.html"
    result = command_line(MACAW, "--tasks", "23,30", "--out", out, program=PROGRAM)
    assert result.returncode == 0, result.stderr
    return out.read_text()


def test_the_page_loads_nothing_and_links_to_what_is_there():
    assert not re.search(r"(?<!<a href=\")https?://|@import|url\((?!#)|<link|\ssrc(set)?=", SHIPPED)
    lessons = [f"../notebooks/{name}.ipynb" for name in re.findall(r'lesson\("(.*?)"\)', SHIPPED)]
    for target in [*lessons, *re.findall(r'href="([^"$]*)"', SHIPPED)]:
        assert target.startswith("https://") or (HERE / "docs" / target).exists(), target
    assert len(lessons) == 5 and 'href="../README.md"' in SHIPPED


def test_the_page_shows_every_method_at_every_goal():
    data, family = embedded(SHIPPED), envs.FAMILIES["cheetah_vel"]
    assert data["goals"] == [task["velocity"] for task in family.tasks]
    assert data["test"] == sorted(family.test) == data["whose"]["strangers"]
    assert data["methods"].keys() == {"macaw", "robust", "focal", "pearl", "smac"}
    for method in data["methods"].values():
        for key, count, films in ("before", 40, 1), ("aligned", 40, 40), ("strangers", 5, 5):
            assert np.isfinite(method[key]["returns"]).sum() == count
            assert np.isfinite(method[key]["speed"]).sum() == films
            numbers(method[key]["film"], films, data["frames"], 9)
    numbers(data["recorded"], 40, data["batch"], 2)


def test_the_switch_to_unseen_agents_shows_its_claim_where_the_page_opens():
    """There MACAW trained on one group runs far slower, the robust one and FOCAL hardly."""
    data = embedded(SHIPPED)
    at, strange = data["test"][-2], data["whose"]["strangers"].index(data["test"][-2])
    change = {name: method["strangers"]["speed"][strange] - method["aligned"]["speed"][at]
              for name, method in data["methods"].items()}
    assert change["macaw"] < -1 and max(abs(change["robust"]), abs(change["focal"])) < 0.15


CLICKS = """
const problems = [], is = (fine, what) => { if (!fine) problems.push(what); };
onerror = text => is(false, text);
document.querySelector("input[value=strangers]").click();
is(/1.8 m.s.* after it runs at 0/.test($("said").textContent), "unseen agents mislead MACAW");
$("goal").value = 39; $("goal").oninput();
is(document.querySelector("input[value=strangers]").disabled, "no unseen agent at 3 m/s");
for (const round of [1, 2]) {
  for (const count of [2, 4, 16]) {
    is($("dots").querySelectorAll("circle").length == count, `${count} dots`);
    $("more").click();
  }
  is(!$("result").textContent.includes("goal was"), "the goal is hidden");
  const {left, width} = $("dots").getBoundingClientRect();
  $("dots").onpointermove({buttons: 1, clientX: left + width / 2});
  const dragged = game.guess;
  $("dots").onpointermove({buttons: 1, clientX: left + width / 2 + 30});
  is(game.guess > dragged && +$("guess").value == game.guess, "the tent is dragged");
  $("guess").value = data.goals[game.i]; $("guess").oninput(); $("race").click();
  is($("result").textContent.endsWith("Closest: you."), "a right guess wins");
  is($("track").querySelectorAll("svg > g").length == 3, "three race");
  is($("tally").textContent.includes(`after ${round} round`), "rounds are counted");
  $("again").click();
}
document.title = problems + " problems";
"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium on the path")
@pytest.mark.parametrize("size", ["1440,900", "500,844"])
def test_the_game_can_be_played_and_nothing_fails_in_a_browser(size, tmp_path):
    path = tmp_path / "a.html"
    path.write_text(SHIPPED.replace("</body>", f"<script>{CLICKS}</script></body>"))
    result = subprocess.run(["chromium", "--headless", "--no-sandbox", "--enable-logging=stderr",
                             f"--user-data-dir={tmp_path}", f"--window-size={size}", "--dump-dom",
                             path.as_uri()], capture_output=True, text=True, timeout=120)
    assert re.search("<title>(.*)</title>", result.stdout)[1] == " problems"
    assert "CONSOLE" not in result.stderr, result.stderr


@pytest.mark.parametrize("line", [["README.md", "--out", "x.html"],
                                  [MACAW, "--out", "notebooks/page.html"],
                                  [MACAW, "--tasks", "77", "--out", "x.html"]])
def test_bad_input_is_refused(line):
    refused(command_line(*line, program=PROGRAM))
