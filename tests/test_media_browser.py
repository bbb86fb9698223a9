"""What is written plays in a real browser: it loads, with the right size and length, and shows the right colours."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from tests.media_clips import PATCHES, chart, gradient

from kinema.media import export_to_video, save

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--mute-audio",
]  # fmt: skip

PAGE = """<!doctype html><title>kinema</title><pre id="out"></pre><script>
const painted = async (element, context) => {  // "loadeddata" may come before there is a picture to draw: alpha stays 0
  for (let tries = 0; tries < 200; tries++) {
    context.drawImage(element, 0, 0);
    if (context.getImageData(0, 0, 1, 1).data[3] == 255) return;
    await new Promise(done => setTimeout(done, 50));
  }
};
const colours = async (element, width, height) => {
  const canvas = Object.assign(document.createElement("canvas"), {width, height});
  const context = canvas.getContext("2d");
  await painted(element, context);
  const found = [];
  for (let y = 0; y < 3; y++) for (let x = 0; x < 4; x++)
    found.push([...context.getImageData((x + .5) * width / 4, (y + .5) * height / 3, 1, 1).data.slice(0, 3)]);
  return found;
};
const video = name => new Promise(done => {
  const v = Object.assign(document.createElement("video"), {muted: true, preload: "auto"});
  v.onloadeddata = async () => done({event: "loadeddata", width: v.videoWidth, height: v.videoHeight,
    duration: v.duration, colours: await colours(v, v.videoWidth, v.videoHeight)});
  v.onerror = () => done({event: "error", message: v.error.message});
  v.src = name;
  v.load();
});
const picture = name => new Promise(done => {
  const i = new Image();
  i.onload = async () => done({event: "load", width: i.naturalWidth, height: i.naturalHeight,
    colours: await colours(i, i.naturalWidth, i.naturalHeight)});
  i.onerror = () => done({event: "error"});
  i.src = name;
});
(async () => {
  const found = {};
  for (const name of NAMES) found[name] = await (/(mp4|webm)$/.test(name) ? video(name) : picture(name));
  await fetch("/found", {method: "POST", body: JSON.stringify(found)});
})();
</script>"""

SERVER = """
import functools, http.server, pathlib, sys
root = pathlib.Path(sys.argv[1])
class Handler(http.server.SimpleHTTPRequestHandler):
    def do_POST(self):
        (root / "part").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        (root / "part").rename(root / "found")
        self.send_response(204); self.end_headers()
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=root))
print(server.server_port, flush=True)
server.serve_forever()
"""


def opened_in(chromium, folder, names, seconds=90):
    """What the browser finds out about each file, which a page reports to a small server in another process."""
    (folder / "page.html").write_text(PAGE.replace("NAMES", json.dumps(names)))
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(folder)], stdout=subprocess.PIPE, text=True)
    browser = None
    try:
        address = f"http://127.0.0.1:{int(server.stdout.readline())}/page.html"
        own = [f"--user-data-dir={folder / 'profile'}", "--remote-debugging-port=0"]
        browser = subprocess.Popen(
            [chromium, *FLAGS, *own, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + seconds
        while not (folder / "found").exists():
            assert browser.poll() is None, f"the browser ended with {browser.returncode}"
            assert time.monotonic() < end, "the browser reported nothing in time"
            time.sleep(0.1)
        return json.loads((folder / "found").read_text())
    finally:
        for process in (browser, server):
            if process is not None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:  # a browser on a busy machine takes its time to leave
                    process.kill()
                    process.wait(20)
        server.stdout.close()


# How far each of red, green and blue may be off. Without a graphics card Chromium converts with libyuv, whose factor
# for blue under BT.709 is 128/64 where 135/64 is due (a signed byte holds no more): up to 12 levels, on any video.
SHOWN = {"video": (4, 4, 13), "gif": (0, 0, 0), "webp": (4, 4, 4), "png": (0, 0, 0)}


@pytest.mark.slow
@pytest.mark.browser
def test_every_format_opens_in_a_browser(chromium, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    clip = chart(24, 16)  # 24 frames of 64×48
    names = ["h264.mp4", "vp9.webm", "vp9.mp4", "av1.mp4", "av1.webm", "odd.mp4", "one.mp4", "a.gif", "a.webp", "a.png"]
    for name in names[:5]:
        export_to_video(clip, site / name, 23.976, codec=name.split(".")[0], metadata={"prompt": "赤い円"})
    export_to_video(gradient(8, 33, 51), site / "odd.mp4", 8)
    export_to_video(clip[:1], site / "one.mp4", 8)
    for name in names[7:]:
        save(clip, site / name, 8, metadata={"prompt": "赤い円"})
    found = opened_in(chromium, site, names)
    lengths = dict.fromkeys(names[:5], 1.001) | {"odd.mp4": 1.0, "one.mp4": 0.125}
    for name in names:
        expected = (52, 34) if name == "odd.mp4" else (64, 48)
        seen = found[name]
        assert seen["event"] == ("loadeddata" if name in lengths else "load"), (name, seen)
        assert (seen["width"], seen["height"]) == expected, name
        if name in lengths:
            assert seen["duration"] == pytest.approx(lengths[name], abs=1e-3), name
        if name != "odd.mp4":
            off = np.abs(np.array(seen["colours"]) - PATCHES).max(0)
            assert (off <= SHOWN["video" if name in lengths else name.split(".")[1]]).all(), (name, off)
