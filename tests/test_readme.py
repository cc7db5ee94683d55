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


def test_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        exec(example.group(1), {})
    finally:
        os.chdir(before)
    assert (tmp_path / "fast.safetensors").exists()
    assert "tensor(" in capsys.readouterr().out


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
