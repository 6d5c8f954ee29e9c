"""The console: edits, recipes and commands from one line, with history and completion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from emotui.cache import history, notes, recipes
from emotui.core.edits.completion import Completion, wrong_span
from emotui.core.errors import EditError, EmotuiError
from emotui.core.records import EMBEDDING_LAYER, Note, Trace
from emotui.core.text import clean, template_named
from emotui.ui import edits
from emotui.ui import state as states
from emotui.ui.commands import (
    EXPORTS,
    Command,
    command_in,
    command_table,
    edit_in,
    is_recipe,
    refusal,
)
from emotui.ui.completion import ConsoleContext, console_completions, context_of
from emotui.ui.exports import export_prose
from emotui.ui.handlers.area import Area
from emotui.ui.messages import Fetched
from emotui.ui.state import Notice
from emotui.ui.writing import parse_spec

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.ui.screens.explore import ExploreScreen


class ConsoleHandlers(Area):
    """Actions in the console."""

    def __init__(self, screen: ExploreScreen) -> None:
        super().__init__(screen)
        self._lines: tuple[str, ...] = ()
        """What was run, the oldest first."""
        self._back = 0
        """How many lines back the console is; 0 is what is being typed."""
        self._draft = ""
        self._recipes: Mapping[str, str] = {}
        self._context: ConsoleContext | None = None
        self._refusal: Notice | None = None
        """What was said to be wrong with a line last."""

    # Opening, leaving, history

    def opened(self) -> None:
        """Learn what there is to name; called when the console opens."""
        self._back, self._context = 0, None
        self._screen.console.completer = self._complete
        private = self._screen.options.private

        def look(store: Store) -> None:
            lines = () if private else history.load_history(store.root)
            known = recipes.recipes_held(store.root)
            self._post(partial(self._learned, lines, known))

        self._screen.workbench.with_store(look, lambda _error: None)

    def _learned(self, lines: tuple[str, ...], known: Mapping[str, str]) -> None:
        if lines and not self._back:
            self._lines = lines
        self._recipes, self._context = known, None
        self._screen.console.refresh_choices()

    def _complete(self, line: str, cursor: int) -> list[Completion]:
        if self._context is None:
            self._context = context_of(self._state, commands=self._commands, recipes=self._recipes)
        return console_completions(line, cursor, self._context)

    @property
    def _commands(self) -> Mapping[str, Command]:
        return command_table(self._screen.options.actions)

    def closed(self) -> None:
        """Take back what was said of a line that is gone; called when the console closes."""
        if self._refusal is not None and self._state.notice is self._refusal:
            self._update(replace(self._state, notice=None))
        self._refusal = None

    def do_leave(self) -> None:
        """Close the console."""
        self._screen.close_console()

    def do_complete(self) -> None:
        """Take the first word that may stand next, then the one after it."""
        self._screen.console.take(1)

    def do_complete_back(self) -> None:
        """Take the word before in the list."""
        self._screen.console.take(-1)

    def do_older(self) -> None:
        """Show the line that was run before."""
        self._go_back(1)

    def do_newer(self) -> None:
        """Show the line that was run after, in the end what was being typed."""
        self._go_back(-1)

    def _go_back(self, by: int) -> None:
        console = self._screen.console
        if self._back == 0:
            self._draft = console.value
        place = max(0, min(self._back + by, len(self._lines)))
        if place != self._back:
            self._back = place
            console.put(self._lines[-place] if place else self._draft)

    def _remember(self, line: str) -> None:
        self._lines, self._back = history.with_line(self._lines, line), 0
        if not self._screen.options.private:
            self._screen.workbench.with_store(
                lambda store: history.add_to_history(store.root, line), lambda _error: None
            )

    # Running

    async def do_run(self) -> None:
        """Do what the line says; it stays open, pointed at, where it was not understood."""
        line = self._screen.console.value
        if not line.strip():
            self._screen.close_console()
            return
        self._remember(line.strip())
        try:
            found = command_in(line, self._commands)
            if found is None:
                self._edit(line)
                return
            command, argument = found
            run = self._own().get(command.name)
            if run is not None and (argument or not command.optional or not command.action):
                run(argument)
            elif command.action:
                self._screen.close_console()
                await self._screen.action_do(command.action)
        except EmotuiError as error:
            self._refuse(line, error)

    def _refuse(self, line: str, error: EmotuiError) -> None:
        """Say what is wrong, and point at it while the line is still there."""
        self._refusal = Notice.of_error(error)
        self._update(replace(self._state, notice=self._refusal))
        console = self._screen.console
        if console.has_focus and console.value == line and isinstance(error, EditError):
            console.point_at(*wrong_span(line, error))

    def _edit(self, line: str) -> None:
        edit = edit_in(line)
        if edit.startswith("@"):
            self._use(line, edit)
            return
        self._screen.handlers.edit.make(edits.understood(edit, self._state))
        self._screen.close_console()

    def _own(self) -> Mapping[str, Callable[[str], None]]:
        return {
            "note": self._note,
            "save": self._save,
            "export": self._export,
            "emotion": self._emotion,
            "layer": self._layer,
            "goto": self._goto,
            "metric": self._metric,
            "template": self.read_under,
            "unmark": self._unmark,
            "generate": self._generate,
            "where": self._where,
            "find": self._find,
            "models": self._screen.handlers.held.models,
            "probes": self._screen.handlers.held.probes,
            "labels": self._screen.handlers.held.labels,
            "sae": self._screen.handlers.held.sae,
            "message": self._screen.handlers.held.message,
        }

    def _trace(self) -> Trace:
        readings = self._state.readings
        if readings is None:
            raise refusal("", "There is no trace yet.", why="The text is still being read.")
        return readings.trace

    def _done(self, *lines: str) -> None:
        if self._screen.pane == "console":
            self._screen.close_console()
        self._update(replace(self._state, notice=Notice("good", lines) if lines else None))

    # Recipes

    def _use(self, line: str, edit: str) -> None:
        """Put a recipe in force once it is read."""
        is_recipe(edit)  # raises where the name cannot be one
        run = self._trace().run

        def look(store: Store) -> None:
            held = recipes.with_recipes([edit], store.root, run.fingerprint, model=run.model)
            self._post(partial(self._put_recipe, line, held))

        self._screen.workbench.with_store(look, self._refused_later(line))

    def _put_recipe(self, line: str, held: tuple[str, ...]) -> None:
        try:
            lines = [one for edit in held for one in edits.understood(edit, self._state)]
            self._screen.handlers.edit.make(tuple(lines))
        except EmotuiError as error:
            self._refuse(line, error)
        else:
            self._screen.close_console()

    def _save(self, name: str) -> None:
        line = self._screen.console.value
        recipe = recipes.recipe_of(self._trace(), name)

        def save(store: Store) -> None:
            recipes.save_recipe(store.root, recipe)
            count = len(recipe.edits)
            said = f"Saved @{recipe.name}: {count} {'edit' if count == 1 else 'edits'}."
            self._post(partial(self._done, said))

        self._screen.workbench.with_store(save, self._refused_later(line))

    # Notes

    def _note(self, text: str) -> None:
        line, trace = self._screen.console.value, self._trace()

        def write(store: Store) -> None:
            note = notes.add_note(store.root, trace.id, text)
            self._post(partial(self._noted, note))

        self._screen.workbench.with_store(write, self._refused_later(line))

    def _noted(self, note: Note) -> None:
        readings = self._state.readings
        if readings is not None and readings.trace.id == note.trace:
            self._update(replace(self._state, notes=(*self._state.notes, note)))
        self._done("Noted beside this trace.")

    def trace_shown(self) -> None:
        """Fetch the notes of the trace that is on the screen now."""
        self._context = None
        readings = self._state.readings
        if readings is None:
            return
        trace = readings.trace.id

        def look(store: Store) -> None:
            found = notes.notes_of(store.root, [trace])
            if found:
                self._post(partial(self._show_notes, trace, found))

        def failed(error: EmotuiError) -> None:
            self._post(partial(self.say, "error", error.what, error.why, error.todo))

        self._screen.workbench.with_store(look, failed)

    def _show_notes(self, trace: str, found: tuple[Note, ...]) -> None:
        readings = self._state.readings
        if readings is not None and readings.trace.id == trace:
            self._update(replace(self._state, notes=found))

    # The other commands

    def _emotion(self, name: str) -> None:
        defined = self._screen.handlers.emotion.define(edit_in(self._screen.console.value))
        if defined is not None:
            if defined:
                self._screen.close_console()
            return
        readings = self._state.readings
        known = () if readings is None else readings.emotions
        if name.lower() not in known:
            raise refusal(name, f"No probe reads {clean(name)!r}.", why=_there(known))
        self._done()
        self._update(replace(self._state, emotion=name.lower()))

    def _layer(self, word: str) -> None:
        readings = self._state.readings
        layers = () if readings is None else readings.layers
        digits = word.lower().removeprefix("l")
        layer = EMBEDDING_LAYER if digits == "emb" else int(digits) if digits.isdecimal() else None
        if layer not in layers:
            top = max(layers, default=0)
            raise refusal(word, f"There is no layer {clean(word)!r}.", why=f"There are 0 to {top}.")
        self._done()
        self._update(states.at_layer(self._state, layer))

    def _goto(self, word: str) -> None:
        text = self._trace().text
        place = {"readout": text.readout, "last": text.last}.get(word.lower())
        if place is None and word.isdecimal() and int(word) < len(text.tokens):
            place = int(word)
        if place is None:
            why = f"There are 0 to {len(text.tokens) - 1}, readout and last."
            raise refusal(word, f"There is no token {clean(word)!r}.", why=why)
        self._done()
        self._update(states.at_token(self._state, place))

    def _generate(self, words: str) -> None:
        spec = parse_spec(words)
        if spec is None:
            why = "Expected tokens, texts and temperature, as in 60 x8 t0.8."
            raise refusal(words, f"{clean(words)!r} was not understood.", why=why)
        self._done()
        self._screen.handlers.generate.start(spec)

    def _where(self, words: str) -> None:
        word, _, text = words.partition(" ")
        text = text.strip().strip('"').strip()
        if word.lower() != "from" or not text:
            why = 'Expected: from "a neutral rewrite of the text".'
            raise refusal(words, f"{clean(words)!r} was not understood.", why=why)
        self._done()
        self._screen.handlers.where.ask(text)

    def _find(self, words: str) -> None:
        self._trace()
        self._screen.handlers.search.find(words.strip().strip('"'))
        self._screen.close_console()

    def _unmark(self, _argument: str) -> None:
        self._done()
        self._update(replace(self._state, marks=()))

    def _export(self, form: str) -> None:
        form = form.lower()
        if form not in EXPORTS:
            why = f"Expected {', '.join(EXPORTS)}."
            raise refusal(form, f"{clean(form)!r} is no form of export.", why=why)
        line, trace = self._screen.console.value, self._trace()
        if form == "json":
            self._screen.close_console()
            self._screen.handlers.trace.do_export()
            return

        def write(store: Store) -> None:
            path, already = export_prose(store, trace, Path.cwd(), form)
            self._post(partial(self._done, f"{'Already there' if already else 'Wrote'}: {path}"))

        self._screen.workbench.with_store(write, self._refused_later(line))

    def _metric(self, word: str) -> None:
        readings = self._state.readings
        known = () if readings is None else readings.emotions
        kind, _, rest = word.partition(".")
        emotion = rest.partition("@")[0]
        if word not in ("top", "none") and (
            kind not in ("answer", "readout") or emotion not in known
        ):
            raise refusal(
                word,
                f"{clean(word)!r} is no metric.",
                why="Expected top, none, answer.EMOTION, readout.EMOTION or readout.EMOTION@L5.",
            )
        self._read_again(metric=word)

    def read_under(self, name: str) -> None:
        """Read the text in another prompt; UsageError where there is none of that name.

        The probes at hand are used; where none are fitted for it, the Layers pane says that F does.
        """
        template_named(name)
        self._screen.workbench.leave_unfitted()
        kept, left = edits.carried_over(self._trace().edits)
        self._read_again(template=name, lines=kept)
        if left:
            self.say("hint", f"Not carried over to the other prompt: {', '.join(left)}.")

    def _read_again(self, *, lines: tuple[str, ...] | None = None, **changes: str) -> None:
        self._screen.workbench.require_own()
        lines = self._trace().edits if lines is None else lines
        self._done()
        self._screen.workbench.settle(**changes)
        self._screen.workbench.read(self._state.text, edits=lines)

    # From the cache's thread to the screen's

    def _post(self, show: Callable[[], object]) -> None:
        self._screen.post_message(Fetched(show))

    def _refused_later(self, line: str) -> Callable[[EmotuiError], None]:
        return lambda error: self._post(partial(self._refuse, line, error))


def _there(known: tuple[str, ...]) -> str:
    return f"There are {', '.join(known)}." if known else "No probe is fitted yet."
