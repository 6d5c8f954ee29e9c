"""`python -m emotui.core.engine --log FILE`: the engine's process, started by the client."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emotui.core.engine.serve import Handler


def _prepare() -> Handler:
    """Import torch and the operations, and open the session they share."""
    from emotui.core.engine import operations

    session = operations.Session()
    return lambda operation, job: operations.handle(operation, job, session)


def main(arguments: Sequence[str], *, prepare: Callable[[], Handler] = _prepare) -> None:
    """Serve until the input ends, a shutdown is asked for, or the parent ends; never returns."""
    parser = argparse.ArgumentParser(prog="python -m emotui.core.engine")
    parser.add_argument("--log", type=Path, required=True, help="file to append all output to")
    log = parser.parse_args(arguments).log

    from emotui.core.engine import isolate

    source, sink = isolate.detach(log)
    isolate.end_with_parent()
    isolate.yield_to_the_terminal()

    from emotui.core.engine.serve import serve

    serve(source, sink, prepare=prepare)


if __name__ == "__main__":
    main(sys.argv[1:])
