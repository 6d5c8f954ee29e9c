"""Walking back and forth among the states of a text: each is a trace that stands in the cache."""

from __future__ import annotations

from pathlib import Path

from support_models import LAYERS, WIDTH, tiny_folder, tiny_model
from support_saes import write_residual_saes

from emotui.cache.store import Store
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.inspect import inspect
from emotui.core.engine.instruments import Instruments
from emotui.core.protocol import InspectRequest, ModelSpec

TEXT = "He shouted at me for no reason and I could not answer."
EDITS = ("knock attn L1 mean at readout", "steer L2/5 +0.2 at all", "ablate L3/7 at readout")
FASTEST_OF = 5
"""A loaded machine delays single calls; what the work itself takes is the fastest of a few."""


def test_no_state_that_was_seen_takes_a_forward_pass_again(tmp_path: Path) -> None:
    model = tiny_model("llama")
    saes = write_residual_saes(tmp_path / "saes", d_in=WIDTH, layers=LAYERS)

    def request(edits: tuple[str, ...]) -> InspectRequest:
        return InspectRequest(
            spec=ModelSpec(str(tiny_folder("llama"))),
            text=TEXT,
            cache_dir=str(tmp_path / "cache"),
            saes=(str(saes),),
            edits=edits,
            selected=bool(edits),
        )

    states = [EDITS[:count] for count in range(len(EDITS) + 1)]
    with Store.open(tmp_path / "cache") as store:
        instruments = Instruments(model, store)
        shown = [inspect(request(edits), model, instruments, store, QuietJob()) for edits in states]
    assert [done.forwards > 0 for done in shown] == [True] * len(states)
    assert len({done.trace_id for done in shown}) == len(states)
    before = model.forwards
    # A store that was opened anew, as in the next session.
    with Store.open(tmp_path / "cache") as store:
        instruments = Instruments(model, store)
        for number in (*reversed(range(len(states))), *range(len(states))):
            found = [
                inspect(request(states[number]), model, instruments, store, QuietJob())
                for _ in range(FASTEST_OF)
            ]
            for again in found:
                assert (again.trace_id, again.cached) == (shown[number].trace_id, True)
                assert again.forwards == 0
            assert min(again.seconds for again in found) < 0.05
            trace = store.get_trace(found[0].trace_id)
            assert trace.edits == states[number]
            assert trace.parent == (shown[number - 1].trace_id if number else None)
    assert model.forwards == before
