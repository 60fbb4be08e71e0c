"""The wheel holds the configs, and works without the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lowbit.config import compose as C

ROOT = C.shipped_root()


@pytest.mark.slow
def test_wheel_brings_its_configs(tmp_path: Path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("lowbit-*.whl")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(site)
    assert {"lowbit/conf/config.yaml", "lowbit/py.typed", "lowbit/cli/__init__.py"} <= names
    shipped = [path for folder in ("conf", "sweeps") for path in (ROOT / folder).rglob("*.yaml")]
    assert {f"lowbit/{path.relative_to(ROOT)}" for path in shipped} <= names
    assert not any(name.startswith(("tests/", "lowbit/tests")) or "__pycache__" in name for name in names)

    code = "import lowbit, sys; from lowbit.cli import main; print(lowbit.__file__, file=sys.stderr); sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def lowbit(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *words], cwd=elsewhere, env=environment, capture_output=True, text=True
        )

    listed = lowbit("ls", "method")
    assert listed.returncode == 0, listed.stderr
    assert listed.stderr.strip() == str(site / "lowbit" / "__init__.py")
    assert "ti_g" in listed.stdout
    as_module = subprocess.run(
        [sys.executable, "-m", "lowbit.cli", "ls", "sweeps"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert as_module.returncode == 0, as_module.stderr
    assert "\ndemo " in as_module.stdout
    checked = lowbit("check", "experiment=digits/ti_g")
    assert checked.returncode == 0, checked.stderr
    assert "stage intervene: 60 steps" in checked.stdout
    assert list(elsewhere.iterdir()) == []
