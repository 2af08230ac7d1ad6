"""Other projects' code, measured side by side: each in a process of its own, behind lines of JSON.

An adapter, ``tools/peers/PART/NAME.py`` of a clone, knows one peer; nothing of it is ever imported here. It is started
with the peer's folder and reads a request a line, ``{"do": "setup", ...}`` and then ``{"do": "block", "row": ...,
"count": ...}``; it answers each with a line: facts, a Block, or ``{"error": sentence}``.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import tomllib
from pathlib import Path
from types import TracebackType
from typing import Any

from worldmodel.bench.timing import Block, Subject
from worldmodel.errors import UserError, unknown

_ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = _ROOT / "tools" / "peers"


def find_adapter(folder: Path, part: str) -> Path:
    """The adapter for the peer in ``folder``: a checkout whose pyproject.toml bears its name, or a folder that the
    package of this name was installed into.

    Args: part: what is measured, "update" or "replay".
    Raises: UserError where the folder, the adapters or a known peer are missing.
    """
    if not folder.is_dir():
        raise UserError(f"--against {folder}: there is no such folder; give a peer's checkout or installation")
    if not ADAPTERS.is_dir():
        raise UserError("--against needs the adapters in tools/peers, which come with a clone and not with the package")
    known = {path.stem: path for path in sorted((ADAPTERS / part).glob("*.py"))}
    called = _project(folder)
    for name, path in known.items():
        if name == called or (folder / name / "__init__.py").is_file():
            return path
    here = unknown("peer", called, known) if called else f"no known peer is there. Known: {', '.join(known) or 'none'}"
    raise UserError(f"--against {folder}: {here} for `worldmodel bench {part}`")


def _project(folder: Path) -> str:
    """The name in a checkout's pyproject.toml."""
    path = folder / "pyproject.toml"
    try:
        return str(tomllib.loads(path.read_text()).get("project", {}).get("name", "")) if path.is_file() else ""
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return ""


class Peer:
    """A peer's process. Use it as a context: it ends with it."""

    def __init__(self, adapter: Path, folder: Path, python: str) -> None:
        """Raises: UserError where the interpreter cannot be started."""
        self.name = adapter.stem
        path = os.pathsep.join(filter(None, [str(_ROOT), str(ADAPTERS), os.environ.get("PYTHONPATH", "")]))
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        try:
            # -P: an adapter that bears its peer's name must not hide it
            self._process = subprocess.Popen(
                [python, "-P", str(adapter), str(folder.resolve())], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self._log, text=True, env=os.environ | {"PYTHONPATH": path},
            )
        except OSError as error:
            raise UserError(f"--peer-python {python} cannot be started: {error.strerror}") from error

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request, one answer. Raises UserError with the adapter's sentence, or its last line where it died."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip().splitlines()
            raise UserError(f"the peer {self.name} ended: {said[-1] if said else 'without a word'}")
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(f"the peer {self.name}: {answer['error']}")
        return answer

    def subject(self, row: str) -> Subject:
        """One of its rows, to be timed in turn with ours."""
        return lambda count: Block(**self.ask({"do": "block", "row": row, "count": count}))
