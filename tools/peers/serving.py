"""The peer's side of ``worldmodel/bench/peers.py``: a request a line in, an answer a line out, timed by our clock."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from worldmodel.bench.timing import clock_of, run_block

Calls = dict[str, Callable[[], object]]


class Refused(Exception):
    """The peer cannot do what is asked for; carries a sentence."""


def serve(setup: Callable[[Path, dict[str, Any]], tuple[dict[str, Any], Calls]]) -> None:
    """Answer requests until there are no more.

    Args: setup: makes the peer of a folder for a request; gives facts and a call for every row that can be timed.
    """
    folder = Path(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the peer prints is no answer
    calls: Calls = {}
    clock = clock_of(torch.device("cpu"))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "setup":
                torch.set_num_threads(request["threads"])
                answer, calls = setup(folder, request)
                clock = clock_of(torch.device(request["device"]))
            else:
                answer = dataclasses.asdict(run_block(calls[request["row"]], request["count"], clock))
        except Refused as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)
