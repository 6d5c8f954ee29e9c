"""The job of a part of a stage."""

from __future__ import annotations

from emotui.core.engine.capture import Job, QuietJob


class Within(QuietJob):
    """A job that can be cancelled, and leaves progress to the stage it is a part of."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def check(self) -> None:
        """Raise Cancelled where the user cancelled."""
        self._job.check()
