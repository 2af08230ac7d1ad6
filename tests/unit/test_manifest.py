"""What a run says of the code that made it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from worldmodel.train.manifest import _commit


def git(root: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(
        ["git", "-C", str(root), *who, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_changed_code_is_dirty_and_changed_pages_are_not(tmp_path):
    assert _commit(tmp_path) == ""
    git(tmp_path, "init", "-q")
    assert _commit.__wrapped__(tmp_path) == "unknown", "nothing is committed"
    for name in ("code.py", "docs/results/a.json", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "both")
    head = git(tmp_path, "rev-parse", "HEAD")
    for page in ("docs/results/a.json", "README.md"):
        (tmp_path / page).write_text("2\n")
    (tmp_path / "new.py").write_text("not part of it\n")
    assert _commit.__wrapped__(tmp_path) == head
    (tmp_path / "code.py").write_text("2\n")
    assert _commit.__wrapped__(tmp_path) == head + "-dirty"
