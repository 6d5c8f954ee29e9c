"""From a text in a template to tokens that know their characters.

The prompt is built in three parts: before, the user's text, after. The tokens up to the end of
the text are fixed before `after` is looked at, so nothing that follows a text changes its tokens.
Where `before` ends in a space, that space goes into the text's first token, as in the plain
string (" When", not " " + "When"); everything else before the text leaves its tokens as they are.
`after` takes the tokens of the plain string where these begin with the tokens already fixed, and
is otherwise tokenised as a continuation. BOS stands at the front once, or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emotui.core.errors import ModelError, TextError
from emotui.core.records import TextRecord, Token, TokenPart
from emotui.core.text import Template, clean

_ANCHORS = ("a", ".", "0", "\n")
_PLACEHOLDER = "EMOTUIPLACEHOLDER"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_LARGE_TEXT = 4_000_000


def _byte_alphabet() -> dict[str, int]:
    """Return the character that stands for each byte in byte-level BPE (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + rank): byte for rank, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


@dataclass(frozen=True)
class _Piece:
    """Token ids with their character spans in the piece."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    def __getitem__(self, part: slice) -> _Piece:
        return _Piece(self.ids[part], self.spans[part])

    def __len__(self) -> int:
        return len(self.ids)


_Part = tuple[TokenPart, _Piece]


def _forget_texts(backend: Any) -> None:
    """Switch off the cache of cut words that BPE and Unigram keep.

    Without a pre-tokenizer, as in SentencePiece models, a whole text is one word: each text stayed
    in memory, some kilobytes of it, and was of no use to another.
    """
    resize = getattr(backend.model, "_resize_cache", None)
    if resize is not None:
        resize(0)


class TokenReader:
    """A model's tokenizer, as emotui uses it: fast, without truncation, BOS in one place."""

    def __init__(self, tokenizer: Any, *, prepends_bos: bool | None = None) -> None:
        """Wrap a transformers tokenizer; ModelError where it has no character offsets.

        `prepends_bos` None asks the tokenizer whether it begins a text with BOS.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or not hasattr(backend, "encode_special_tokens"):
            raise ModelError(
                "The tokenizer of this model cannot be used.",
                why="It does not say which characters a token covers.",
                todo="Use a model whose folder holds a tokenizer.json.",
            )
        backend.no_truncation()
        backend.no_padding()
        _forget_texts(backend)
        self._tokenizer = tokenizer
        self._backend = backend
        bos = tokenizer.bos_token_id
        if prepends_bos is None:
            prepends_bos = bos is not None and backend.encode("a").ids[:1] == [bos]
        self.bos_id: int | None = int(bos) if prepends_bos and bos is not None else None
        eos = tokenizer.eos_token_id
        self.eos_id: int | None = None if eos is None else int(eos)
        self._special = frozenset(int(i) for i in tokenizer.all_special_ids)
        self._anchor = self._encode("a").ids
        self._strings: dict[int, str] = {}

    @classmethod
    def from_folder(cls, folder: Path, *, prepends_bos: bool | None = None) -> TokenReader:
        """Read the tokenizer of a model folder; ModelError where that fails."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=False, local_files_only=True
            )
        # The tokenizers library raises bare Exception.
        except Exception as error:
            raise ModelError(
                f"The tokenizer in {clean(str(folder))} could not be read.",
                why=f"It is damaged or of a kind transformers does not know "
                f"({type(error).__name__}).",
                todo="Copy or download the folder again.",
            ) from error
        return cls(tokenizer, prepends_bos=prepends_bos)

    @property
    def begins_with_bos(self) -> bool:
        """Whether every prompt begins with BOS."""
        return self.bos_id is not None

    def read(self, text: str, template: Template, *, context_length: int = 0) -> TextRecord:
        """Return the tokens of `text` in `template`.

        TextError where the text is blank, not decodable, or longer than `context_length` tokens
        together with its template (0 means no limit).
        """
        if not text.strip():
            raise TextError("The text is empty.", todo="Give a text with at least one word.")
        _check_characters(text)
        before, after = template.before, template.after
        opening = closing = ""
        if template.chat:
            opening, closing = self._chat_parts()
        parts = self._prompt(opening, before, text, after, closing, context_length)
        count = sum(len(piece) for _, piece in parts)
        if context_length and count > context_length:
            raise _too_long(count, context_length)
        tokens = tuple(self._tokens(parts, len(text)))
        text_positions = [i for i, token in enumerate(tokens) if token.part == "text"]
        return TextRecord(raw=text, tokens=tokens, readout=len(tokens) - 1, last=text_positions[-1])

    def prompt_ids(self, text: str) -> list[int]:
        """Return BOS (where the model has it) and the tokens of a plain text, for generation."""
        _check_characters(text)
        bos = [] if self.bos_id is None else [self.bos_id]
        return bos + list(self._encode(text).ids)

    def continuation_ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of `text` as they are when other text stands before it."""
        return self._continuation(text).ids

    def decode(self, ids: Sequence[int], *, after: Sequence[int]) -> str:
        """Return the text of tokens that follow the tokens `after`, special tokens left out."""
        before = self._backend.decode(list(after), skip_special_tokens=True)
        whole = self._backend.decode([*after, *ids], skip_special_tokens=True)
        return str(whole[len(before) :])

    def string(self, token_id: int) -> str:
        """Return one token as readable text; bytes that are no character as `<0xF0>`."""
        known = self._strings.get(token_id)
        if known is None:
            known = self._strings[token_id] = self._string(token_id)
        return known

    def _string(self, token_id: int) -> str:
        anchor = list(self._anchor)
        if token_id in self._special:
            return str(self._backend.id_to_token(token_id))
        before = self._backend.decode(anchor, skip_special_tokens=False)
        decoded = self._backend.decode([*anchor, token_id], skip_special_tokens=False)
        string = str(decoded[len(before) :])
        piece = self._backend.id_to_token(token_id)
        if piece is None:
            return f"<{token_id}>"
        if "\N{REPLACEMENT CHARACTER}" in string or not string:
            return _bytes_string(piece)
        return string

    def _tokens(self, parts: Sequence[_Part], length: int) -> Iterator[Token]:
        for part, piece in parts:
            inside = part == "text"
            spans = _covering(piece.spans, length) if inside else piece.spans
            for token_id, (start, end) in zip(piece.ids, spans, strict=True):
                yield Token(
                    id=token_id,
                    string=self.string(token_id),
                    start=start if inside else None,
                    end=end if inside else None,
                    # In the user's text nothing is special: "</s>" there is four characters.
                    special=not inside and token_id in self._special,
                    part=part,
                )

    def _encode(self, text: str, *, parse_special: bool = False) -> _Piece:
        with self._special_as_text(not parse_special):
            encoding = self._backend.encode(text, add_special_tokens=False)
        return _Piece(tuple(encoding.ids), tuple(encoding.offsets))

    @contextmanager
    def _special_as_text(self, on: bool) -> Iterator[None]:
        before = self._backend.encode_special_tokens
        self._backend.encode_special_tokens = on
        try:
            yield
        finally:
            self._backend.encode_special_tokens = before

    def _continuation(self, text: str, *, parse_special: bool = False) -> _Piece:
        """Tokenise `text` behind an anchor that stays a token of its own."""
        if not text:
            return _Piece((), ())
        for anchor in _ANCHORS:
            alone = self._encode(anchor)
            behind = self._encode(anchor + text, parse_special=parse_special)
            if behind.ids[: len(alone)] == alone.ids:
                rest = behind[slice(len(alone), None)]
                return _Piece(
                    rest.ids, tuple((max(a - 1, 0), max(b - 1, 0)) for a, b in rest.spans)
                )
        return self._encode(text, parse_special=parse_special)

    def _prompt(
        self, opening: str, before: str, text: str, after: str, closing: str, limit: int
    ) -> list[_Part]:
        """Return the parts of the prompt in order; spans of the text are spans in `text`."""
        parts: list[_Part] = []
        if opening:
            parts.append(("before", self._encode(opening, parse_special=True)))
        if self.bos_id is not None and not (parts and parts[0][1].ids[:1] == (self.bos_id,)):
            parts.insert(0, ("special", _Piece((self.bos_id,), ((0, 0),))))
        # A text far beyond the context is not worth minutes of tokenising.
        if limit and len(text) > max(_LARGE_TEXT, 64 * limit):
            raise TextError(
                f"The text is too long: {len(text):,} characters.",
                why=f"This model reads at most {limit:,} tokens.",
                todo="Give a shorter text, or split it with --file.",
            )
        start_of_prompt = not opening or parts[-1][1].ids[-1] in self._special
        encode = self._encode if start_of_prompt else self._continuation
        head, text_part = self._head(encode, before, text)
        if head.ids:
            parts.append(("before", head))
        parts.append(("text", text_part))
        if after:
            fixed = head.ids + text_part.ids
            whole = encode(before + text + after)
            begins_alike = whole.ids[: len(fixed)] == fixed
            rest = whole[slice(len(fixed), None)] if begins_alike else self._continuation(after)
            parts.append(("after", rest))
        if closing:
            parts.append(("after", self._continuation(closing, parse_special=True)))
        return parts

    def _head(self, encode: Any, before: str, text: str) -> tuple[_Piece, _Piece]:
        """Tokenise `before + text` and cut it where the text begins."""
        if not before:
            return _Piece((), ()), encode(text)
        joint: _Piece = encode(before + text)
        border = len(before)
        cut = next(i for i, (_, end) in enumerate(joint.spans) if end > border)
        start = joint.spans[cut][0]
        if start >= border or not before[start:].strip(" "):
            shifted = tuple((max(a - border, 0), b - border) for a, b in joint.spans[cut:])
            return joint[slice(None, cut)], _Piece(joint.ids[cut:], shifted)
        return encode(before), self._continuation(text)

    def _chat_parts(self) -> tuple[str, str]:
        """Return what the tokenizer's chat template puts around a user's message."""
        if not getattr(self._tokenizer, "chat_template", None):
            raise ModelError(
                "This model has no chat template.",
                why="Its tokenizer does not define one.",
                todo="Use --template ask, or an instruction-tuned model.",
            ).of_input()
        rendered = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": _PLACEHOLDER}],
            tokenize=False,
            add_generation_prompt=True,
        )
        opening, found, closing = str(rendered).partition(_PLACEHOLDER)
        if not found:
            raise ModelError(
                "The chat template of this model cannot be used.",
                why="It does not hand on the user's message as it is.",
                todo="Use --template ask.",
            ).of_input()
        return opening, closing

    def is_special(self, token_id: int) -> bool:
        """Whether a token is special (BOS, EOS, padding, turn marks)."""
        return token_id in self._special


def _check_characters(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(
            "The text could not be decoded.",
            why=f"Character {error.start} is half of a surrogate pair, not a character.",
            todo="Save the text as UTF-8.",
        ) from None


def _too_long(count: int, limit: int) -> TextError:
    return TextError(
        f"The text is too long: {count:,} tokens with its template.",
        why=f"This model reads at most {limit:,} tokens.",
        todo=f"Shorten it by at least {count - limit:,} tokens, or split it with --file.",
    )


def _bytes_string(piece: str) -> str:
    if _BYTE_PIECE.fullmatch(piece):
        return piece
    if all(character in _BYTE_OF for character in piece):
        return "".join(
            chr(_BYTE_OF[c]) if 32 <= _BYTE_OF[c] < 127 else f"<0x{_BYTE_OF[c]:02X}>" for c in piece
        )
    return piece


def _covering(spans: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Return spans that cover 0 to `length` without gaps.

    A gap (whitespace that a tokenizer leaves out of its offsets) goes to the token after it, or
    to the last one. Tokens that share a character, as the bytes of one, keep it in common.
    """
    covering: list[tuple[int, int]] = []
    reached = 0
    for start, end in spans:
        if start < end <= reached:
            covering.append((start, end))
            continue
        covering.append((reached, max(end, reached)))
        reached = max(end, reached)
    if covering and reached < length:
        covering[-1] = (covering[-1][0], length)
    return covering
