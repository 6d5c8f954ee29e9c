"""`emotui open`: the explorer."""

from __future__ import annotations

import gc
from pathlib import Path

import msgspec

from emotui.core.protocol import InspectRequest


def explore(
    text: str | None,
    request: InspectRequest,
    *,
    all_sites: bool,
    cache_dir: Path | None,
    private: bool,
    theme: str | None,
    mouse: bool | None,
) -> None:
    """Open the explorer on a text, `-` meaning standard input, or on nothing.

    With `all_sites`, attention and MLP outputs of every token are kept, not of the readout alone.
    """
    # Starting makes many objects that stay: collecting among them costs a tenth of the time to
    # the first paint. The app turns it on again and leaves them out of later collections.
    gc.disable()
    from emotui.cache.demo import example_request, is_demo
    from emotui.cache.session import saved_session
    from emotui.commands.common import cache_for
    from emotui.commands.texts import text_of_argument
    from emotui.ui.terminal import prepare_terminal

    terminal = prepare_terminal(mouse=mouse)
    demo = is_demo(request.spec)
    with cache_for(cache_dir, private=private, demo=demo) as root:
        request = msgspec.structs.replace(request, cache_dir=str(root), all_sites=all_sites)
        session = None if private or text else saved_session(root, request.spec)
        if text:
            request = msgspec.structs.replace(request, text=text_of_argument(text))
        elif demo:
            request = example_request(request)
        from emotui.app import run_explorer

        run_explorer(request, terminal=terminal, theme=theme, private=private, session=session)
