"""The errors an operator reads: what is wrong, where, and what to do next."""

from __future__ import annotations

#: Characters of one part of a message: enough for every list that we print, too little for a value of megabytes.
_LONGEST = 4000


class SluiceError(Exception):
    """A refusal or failure with one message for the operator.

    ``what`` says what is wrong, ``where`` names the place (store, table, key, host), ``next_step`` what to do.
    """

    def __init__(self, what: str, *, where: str = "", next_step: str = "") -> None:
        self.what = _printable(what)
        self.where = _printable(where)
        self.next_step = _printable(next_step)
        super().__init__(str(self))

    def __str__(self) -> str:
        text = self.what if not self.where else f"{self.where}: {self.what}"
        return text if not self.next_step else f"{text} Next: {self.next_step}"


def _printable(text: str) -> str:
    """A message as every screen and log takes it: half a surrogate pair is escaped, a very long one is cut."""
    short = text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} [...] {text[-_LONGEST // 2 :]}"
    return short if short.isascii() else short.encode("utf-8", "backslashreplace").decode()


class MappingError(SluiceError):
    """The mapping is malformed, or does not fit the live schema."""


class StoreError(SluiceError):
    """A store cannot be reached, or refuses what was asked of it."""


class LeaseLost(SluiceError):
    """Another run holds a newer token: nothing more may be written under ours."""


class GenerationMismatch(SluiceError):
    """Redis no longer carries the stamp of this run: it was emptied, restored or replaced."""


class GateClosed(SluiceError):
    """A step was asked for whose gate has not passed."""


class FenceOpen(GateClosed):
    """The side that must be fenced can still claim, start or commit work."""


class RunConflict(SluiceError):
    """Another run is open, or the run does not stand where this step may begin."""


class StagesGone(StoreError):
    """Released tasks whose staged job is gone: the target lost its last writes. ``job_ids`` names them."""

    def __init__(self, activated: int, job_ids: list[str], where: str) -> None:
        self.activated = activated
        self.job_ids = job_ids
        super().__init__(
            f"{len(job_ids)} released tasks have no staged job (first: {job_ids[0]}): the target lost its last writes.",
            where=where,
            next_step="run the same command again; it stages them again from their rows.",
        )
