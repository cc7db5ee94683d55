"""The README tells the truth: its table is the committed CSV, its example runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_table_is_the_committed_csv() -> None:
    shown = re.search(r"<!-- table -->\n(.*?)\n<!-- /table -->", README, re.DOTALL)
    assert shown is not None
    path = shown.group(1).rsplit(": ", 1)[1]
    script = [sys.executable, "benchmarks/readme_table.py", path]
    made = subprocess.run(script, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert shown.group(1) == made.strip()


def test_examples_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert, prune = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        exec(convert, {})
        assert (tmp_path / "fast.safetensors").exists()
        assert "tensor(" in capsys.readouterr().out
        exec(prune, {})
        assert re.match(r"30,\d+ MACs of 303,104 \(10\.0%\)", capsys.readouterr().out)
    finally:
        os.chdir(before)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
