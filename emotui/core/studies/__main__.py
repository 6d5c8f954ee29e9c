"""`python -m emotui.core.studies --log FILE`: the engine that also does studies."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from emotui.core.engine.__main__ import main

if TYPE_CHECKING:
    from emotui.core.engine.serve import Handler, Job
    from emotui.core.protocol import Operation, Outcome


def _prepare() -> Handler:
    from emotui.core.engine import operations
    from emotui.core.protocol import StudyRequest
    from emotui.core.studies.common.runner import run_study

    session = operations.Session()

    def handle(operation: Operation, job: Job) -> Outcome:
        if not isinstance(operation, StudyRequest):
            return operations.handle(operation, job, session)
        store = session.store(operation.cache_dir)
        model = session.model(operation.spec, job, store=store)
        return run_study(operation, model, session.instruments(model, store), store, job)

    return handle


if __name__ == "__main__":
    main(sys.argv[1:], prepare=_prepare)
