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


def test_the_script_makes_what_is_shipped(made):
    small, whole = embedded(made), embedded(SHIPPED)
    assert small["tasks"] == [23, 30] and small["test"] == small["whose"]["strangers"] == [23]
    assert small["bodies"] == whole["bodies"]
    assert small["agents"]["aligned"] == [whole["agents"]["aligned"][i] for i in (23, 30)]
    assert JSON.sub("", made) == JSON.sub("", SHIPPED)


def test_the_stick_figure_is_the_robot_of_the_simulation(made):
    """Turned body after body as the page does it, the capsules end where MuJoCo has them."""
    data, places, geom = embedded(made), [], 1          # geom 0 is the floor
    with envs.environments_of("cheetah_vel", [0]) as (env,):
        model, state = env.unwrapped.model, env.unwrapped.data
        q = numbers(data["methods"]["robust"]["aligned"]["film"], 2, data["frames"], 9)[0, -1]
        state.qpos[:] = q
        mujoco.mj_kinematics(model, state)

    def turned(angle, v):
        cos, sin = np.cos(angle), np.sin(angle)
        return np.array([v[0] * cos + v[1] * sin, v[1] * cos - v[0] * sin])
    for k, body in enumerate(data["bodies"]):
        place, angle = places[body["parent"]] if k else (q[:2], 0.0)
        places.append((place + turned(angle, body["at"]), angle + q[2 + k]))
        for bone in body["bones"]:
            half = state.geom_xmat[geom].reshape(3, 3)[:, 2] * model.geom_size[geom, 1]
            for sign, end in ((-1, bone[:2]), (1, bone[2:])):
                here = places[-1][0] + turned(places[-1][1], end)
                assert np.allclose(here, (state.geom_xpos[geom] + sign * half)[[0, 2]], atol=1e-3)
            geom += 1
    assert geom == model.ngeom


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
