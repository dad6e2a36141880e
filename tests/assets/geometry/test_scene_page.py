import base64
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from assets.geometry.frames_of_reference import transform
from assets.geometry.record import unknown
from assets.geometry.scene_page import ADDRESS, ScenePageError, describe, policy, scene_page
from assets.geometry.view import level_axes

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    "--remote-debugging-pipe",
]
HOSTILE = "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"


def frames_of(record, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (len(record.timestamps), 12, 16, 3), dtype=np.uint8)


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="scene">(.*?)</script>', page, re.S)[1])


def hidden(name: str, record):
    """The record with the geometry of another status."""
    blank = unknown(
        record.timestamps,
        record.names,
        record.classes,
        masks=record.masks,
        boxes=record.boxes,
        provenance={**record.provenance, "status": name, "reason": "static camera, no parallax", "poses": "unknown"},
    )
    return blank


def test_the_same_record_gives_the_same_bytes(make_record):
    pages = [scene_page(record, frames_of(record), "a clip") for record in (make_record(), make_record())]
    assert pages[0] == pages[1]
    moved = make_record()
    moved = dataclasses.replace(moved, centers_world=moved.centers_world + np.float32(0.5))
    assert scene_page(moved, frames_of(moved), "a clip") != pages[0]


def test_names_titles_and_reasons_cannot_leave_the_text_they_stand_in(record):
    hostile = dataclasses.replace(
        record,
        names=[HOSTILE, "b\x1b[31m"],
        classes=[HOSTILE] * 2,
        provenance={**record.provenance, "reason": HOSTILE, "version": HOSTILE, HOSTILE: HOSTILE},
    )
    page = scene_page(hostile, frames_of(hostile), HOSTILE, "0" * 64)
    assert len(re.findall(r"<script", page)) == 2 and "<img" not in page and "\x1b" not in page
    assert data_of(page)["objects"][0]["name"].startswith("</script>")


def test_the_policy_names_the_one_script_and_the_one_style_and_allows_no_request(record):
    page = scene_page(record, frames_of(record), "a clip")
    for tag in ("script", "style"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy()
    assert f'content="{policy()}"'.replace("'", "&#39;") in page
    assert "default-src 'none'" in policy() and "unsafe" not in policy()
    outside = set(re.findall(r"https?://[^\s\"'<]+", page)) - {"http://www.w3.org/2000/svg"}
    assert outside == set()


def test_points_are_where_the_record_has_them(record):
    frames = frames_of(record)
    still = dataclasses.replace(record, masks=[[None] * 5] * 2, confidence=np.ones_like(record.confidence))
    points = describe(still, frames)["points"]
    raw = np.frombuffer(base64.b64decode(points["xyz"]), "<i2").reshape(-1, 3)
    placed = raw / 32767 * points["scale"] + points["offset"]
    world = transform(record.world_from_camera[:, None, None].astype(float), record.points.astype(float))
    expected = (world @ level_axes(record).T).reshape(-1, 3)
    nearest = np.linalg.norm(placed[:, None] - expected[None], axis=-1).min(1)
    assert len(placed) == points["count"] > 100 and nearest.max() < 1e-3
    assert set(base64.b64decode(points["when"])) == {255}


def test_points_under_a_mask_are_shown_at_their_own_moment_only(record):
    moments = base64.b64decode(describe(record, frames_of(record))["points"]["when"])
    assert {0, 1, 2, 3, 4} < set(moments)


def test_a_box_is_as_large_as_what_lies_under_the_mask(estimated_world):
    record, frames = estimated_world
    robot = describe(record, frames)["objects"][0]
    assert np.allclose(robot["size"], 0.5, atol=0.15)  # a ball of radius 0.6, nine tenths of the points within
    assert robot["forward"][0] is not None


@pytest.fixture
def estimated_world(world, make_clip, parameters):
    from assets.geometry.estimators.rendered import Rendered

    clip = make_clip(world)
    return Rendered(parameters).estimate(clip), clip.sampled["frames"]


def test_a_large_record_gives_a_small_page():
    count, objects = 150, 80
    rng = np.random.default_rng(0)
    record = unknown(
        np.arange(count) / 2,
        [f"thing {i}" for i in range(objects)],
        ["thing"] * objects,
        intrinsics=np.tile(np.diag([100.0, 100, 1]), (count, 1, 1)),
        world_from_camera=np.tile(np.eye(4), (count, 1, 1)),
        points=rng.uniform(1, 9, (count, 60, 80, 3)),
        confidence=np.ones((count, 60, 80)),
        centers_world=rng.normal(0, 3, (objects, count, 3)),
        boxes=rng.uniform(0, 90, (objects, count, 4)),
        provenance={"status": "3d", "frame_size": [120, 160], "metric": True},
    )
    frames = np.tile(rng.integers(0, 255, (1, 120, 160, 3), dtype=np.uint8), (count, 1, 1, 1))
    page = scene_page(record, frames, "large")
    scene = data_of(page)
    assert len(page) < 2_000_000
    assert len(scene["times"]) == 96 and len(scene["objects"]) == 64 and scene["points"]["count"] <= 50_000
    assert "96 of 150 moments are shown." in page and "16 further objects are not shown." in page


@pytest.mark.parametrize("status", ["2d", "refused"])
def test_without_3d_the_page_shows_pictures_boxes_and_the_reason(record, status):
    page = scene_page(hidden(status, record), frames_of(record), "a clip")
    scene = data_of(page)
    assert scene["space"] is None and scene["points"] is None and 'id="space"' not in page
    assert len(scene["picture"]["jpegs"]) == 5 and scene["objects"][0]["outlines"][0]
    assert "static camera, no parallax." in page


def test_a_refused_clip_without_frames_still_has_a_page():
    record = unknown(np.zeros(0), provenance={"status": "refused", "reason": "blurred", "frame_size": [0, 0]})
    page = scene_page(record, None, "")
    assert "Refused: blurred." in page and "There is nothing to draw" in page


def test_a_log_without_poses_or_pictures_is_drawn_from_each_moments_own_camera(make_record):
    record = make_record()
    log = unknown(
        record.timestamps,
        record.names,
        record.classes,
        boxes=record.boxes,
        centers_world=record.centers_world,
        provenance={**record.provenance, "frame_size": [0, 0], "up_world": "?", "reason": "no ego poses"},
    )
    page = scene_page(log, None, "a log")
    scene = data_of(page)
    assert not scene["posesKnown"] and scene["space"] and scene["picture"]["jpegs"] is None
    x, y, z = record.centers_world[0, 0].astype(float)
    assert np.allclose(scene["objects"][0]["places"][0], [x, z, -y], atol=2e-3)
    assert "no ego poses" in page and "The lens is unknown" in page


def test_frames_of_another_record_are_refused(record):
    with pytest.raises(ScenePageError, match="3 frames, but the record has 5 moments"):
        scene_page(record, frames_of(record)[:3], "a clip")


class Browser:
    """A headless Chromium that is spoken to through a pipe (DevTools protocol: JSON messages that end in NUL)."""

    def __init__(self, profile):
        their_in, our_out = os.pipe()
        our_in, their_out = os.pipe()
        # The browser reads commands from descriptor 3 and answers on 4.
        start = f"import os, sys; os.dup2({their_in}, 3); os.dup2({their_out}, 4); os.execv(sys.argv[1], sys.argv[1:])"
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", start, BROWSER, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(their_in, their_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_in)
        os.close(their_out)
        self.commands, self.answers = our_out, our_in
        self.unread, self.sent, self.session, self.complaints = b"", 0, None, []
        (page,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next_message()
            if answer.get("id") == self.sent:
                assert "error" not in answer, answer
                return answer["result"]
            self.note(answer)

    def next_message(self):
        parts = [self.unread]
        while b"\0" not in parts[-1]:
            parts.append(os.read(self.answers, 1 << 20))
            assert parts[-1], "the browser ended"
        message, _, self.unread = b"".join(parts).partition(b"\0")
        return json.loads(message)

    def note(self, event):
        """Keep what a person would find in the console, and every request that leaves the page."""
        if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(event["params"])
        url = event.get("params", {}).get("request", {}).get("url", "")
        if event.get("method") == "Network.requestWillBeSent" and not url.startswith(("file:", "data:", "about:")):
            self.complaints.append(url)

    def evaluate(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, path, width, height):
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        self.call("Page.navigate", url=path.as_uri())
        self.evaluate(
            "new Promise(done => document.readyState === 'complete' ? done() : window.addEventListener('load', done))"
        )

    def pictures(self, *elements):
        """Pixels of elements of the page once what it was told to draw has been drawn."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))")
        shot = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)
        for element in elements:
            x, y, width, height = self.evaluate(
                f"(b => [b.x, b.y, b.width, b.height].map(Math.round))(document.getElementById('{element}')"
                ".getBoundingClientRect())"
            )
            yield pixels[y : y + height, x : x + width]

    def close(self):
        with contextlib.suppress(AssertionError, OSError):
            self.call("Browser.close")
        self.process.wait(timeout=20)
        os.close(self.commands)
        os.close(self.answers)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not BROWSER:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def test_a_person_sees_the_scene_and_moves_through_time(browser, estimated_world, tmp_path):
    record, frames = estimated_world
    record = dataclasses.replace(record, names=["<script>document.title='pwned'</script>", "blue crate"])
    page = tmp_path / "scene.html"
    page.write_text(scene_page(record, frames, HOSTILE))
    browser.open(page, 960, 520)
    set_moment = "m.value = {}; m.dispatchEvent(new Event('input'))"
    browser.evaluate(f"const m = document.getElementById('moment'); {set_moment.format(0)}")
    begin, begin_picture = browser.pictures("space", "frame")
    # Neither blank nor one colour: what differs from the empty ground in its corner.
    assert 0.1 < differing(begin, begin[-1, 0]) < 0.99

    browser.evaluate(set_moment.format(11))
    end, end_picture = browser.pictures("space", "frame")
    assert differing(end, begin) > 0.002 and differing(end_picture, begin_picture) > 0.02
    assert browser.evaluate("document.getElementById('clock').textContent") == "4.00 s of 4.00 s"

    browser.evaluate("document.getElementById('above').click()")
    (above,) = browser.pictures("space")
    assert differing(above, end) > 0.05

    assert browser.evaluate("document.querySelector('#objects .name').textContent").startswith("<script>")
    assert browser.evaluate("document.title") != "pwned"
    assert browser.complaints == []


def differing(pixels, others):
    """Share of the pixels that differ visibly."""
    return (np.abs(pixels - others).sum(-1) > 30).mean()


def test_a_2d_record_shows_its_picture_on_a_phone(browser, record, tmp_path):
    page = tmp_path / "flat.html"
    page.write_text(scene_page(hidden("2d", record), frames_of(record), "a clip"))
    browser.open(page, 400, 700)
    (picture,) = browser.pictures("frame")
    assert picture.std() > 20
    assert browser.evaluate("document.documentElement.scrollWidth") <= 400
    assert browser.complaints == []


def test_links_of_materializations_lead_to_the_loopback_interface():
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", ADDRESS)
