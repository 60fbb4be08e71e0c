"""`lowbit report` on a tiny sweep, of which one job has not run, and its page in a real browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lowbit.cli import main

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
PROBE = """<script>
addEventListener("load", () => {
  const root = document.documentElement, size = (element) => parseFloat(getComputedStyle(element).fontSize);
  const drawn = [...document.querySelectorAll("svg text")].map((text) => size(text) * text.getScreenCTM().a);
  const read = [...document.querySelectorAll("p, td, th, li, pre, summary, a")].map(size);
  const cut = [...document.querySelectorAll("svg text")].filter((text) => {
    const own = text.getBoundingClientRect(), all = text.ownerSVGElement.getBoundingClientRect();
    return own.left < all.left - 1 || own.right > all.right + 1 || own.bottom > all.bottom + 1;
  });
  document.title = JSON.stringify({
    hints: [...document.querySelectorAll(".hint")].map((hint) => getComputedStyle(hint).display),
    width: root.scrollWidth, window: innerWidth, drawn: Math.min(...drawn), read: Math.min(...read),
    cut: cut.map((text) => text.textContent), loaded: performance.getEntriesByType("resource").map((e) => e.name),
  });
});
</script>"""


@pytest.fixture(scope="module")
def overrides(tiny: list[str], outputs: Path) -> list[str]:
    return [
        "method=ternarybert,kd_qat",
        "seed=1",
        *tiny,
        "budget.steps=3",
        "trainer.log_every=1",
        f"paths.outputs={outputs}",
    ]


@pytest.fixture(scope="module")
def page(overrides: list[str], outputs: Path) -> Path:
    """The report of a sweep of two jobs, of which one has finished."""
    job = ["+sweeps=demo", "sweep=demo", *overrides[1:]]
    assert main(["train", "method=ternarybert", *job]) == 0
    page = outputs / "page" / "report.html"
    assert main(["report", "demo", *overrides, "--out", str(page)]) == 0
    return page


def test_page_has_every_part(page):
    text = page.read_text(encoding="utf-8")
    assert "1 of 2 runs have finished; 1 not run" in text
    assert "Each weight" in text
    assert "before (latent)" in text
    assert "first 20 evaluation rows" in text
    assert "Loss terms of ternarybert" in text
    missing = text.split("Not run: 1")[1].split("<pre>")[1].split("</pre>")[0]
    assert missing.startswith("lowbit train +sweeps=demo sweep=demo method=kd_qat ")
    assert len(text) < 200_000


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"\xff" * 8 + b"{}", None], ids=["empty", "garbage", "huge", "half"]
)
def test_damaged_weights_are_named(content, page, overrides, outputs, tmp_path):
    """The page says which file, and shows the rest; the run itself is untouched."""
    (weights,) = outputs.glob("runs/*/ternarybert/*/stages/*/model.safetensors")
    before = weights.read_bytes()
    weights.write_bytes(before[: len(before) // 2] if content is None else content)
    try:
        assert main(["report", "demo", *overrides, "--out", str(tmp_path / "r.html")]) == 0
    finally:
        weights.write_bytes(before)
    text = (tmp_path / "r.html").read_text()
    assert f"cannot be rebuilt: {weights}" in text
    assert "Loss terms of ternarybert" in text


def test_sweep_without_a_finished_run(tmp_path, capsys):
    words = ["demo", "method=ti_g", f"paths.outputs={tmp_path}"]
    assert main(["report", *words, "--out", str(tmp_path / "r.html")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("no run of demo has finished")
    assert err.rstrip().endswith(f"lowbit sweep {' '.join(words)}")
    assert not (tmp_path / "r.html").exists()


def test_options_that_do_not_fit(page, overrides, capsys):
    assert main(["report", "demo", *overrides, "--out", "report.pdf"]) == 2
    assert "end in .html" in capsys.readouterr().err
    assert main(["report", "demo", *overrides, "--out", "report.html", "--weights-of", "kd_qat"]) == 2
    assert "allowed: ternarybert" in capsys.readouterr().err


@pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")
def test_page_in_a_browser(page, tmp_path):
    """Nothing is complained of, loaded, cut off or too small on a phone; a picture of a wide window can be taken."""
    probe = tmp_path / "probe.html"
    text = page.read_text(encoding="utf-8").replace("<details>", "<details open>")
    probe.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    dumped = browse(probe, tmp_path, "390,2000", "--dump-dom")
    found = json.loads(re.search(r"<title>(\{.*?\})</title>", dumped.stdout)[1])
    assert found["loaded"] == []
    assert found["cut"] == []
    assert found["width"] <= found["window"] <= 500  # a window is never narrower than the browser wants
    assert found["read"] >= 16
    assert found["drawn"] >= 15.5
    assert set(found["hints"]) == {"block"}  # the tables scroll, and it says so
    picture = tmp_path / "report.png"
    browse(page, tmp_path, "1200,2000", f"--screenshot={picture}")
    assert picture.stat().st_size > 20_000


def browse(page: Path, profile: Path, size: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page; its console must stay empty."""
    quiet = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
    logged = ("--enable-logging=stderr", "--v=0", f"--user-data-dir={profile / 'profile'}", f"--window-size={size}")
    done = subprocess.run([str(BROWSER), *quiet, *logged, *options, page.as_uri()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    return done
