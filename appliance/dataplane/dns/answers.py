"""Encoded answers that are kept, by asker and question. When there are too many, the asker with most loses its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

NONE: Mapping[bytes, bytes] = {}


class EncodedAnswers:
    """The answers behind the id, by asker and by question behind the id."""

    def __init__(self, most: int) -> None:
        """Keep `most` answers of all askers together."""
        self._most = most
        self.by_asker: dict[str, dict[bytes, bytes]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def keep(self, asker: str, question: bytes, answer: bytes) -> None:
        """Keep an answer. Whoever asks for ever new names pushes out answers to itself, and to nobody else."""
        if self._count >= self._most:
            most = max(self.by_asker, key=lambda known: len(self.by_asker[known]))
            self._count -= len(self.by_asker.pop(most))
        kept = self.by_asker.setdefault(asker, {})
        self._count += question not in kept
        kept[question] = answer

    def clear(self) -> None:
        """Keep none."""
        self.by_asker.clear()
        self._count = 0
