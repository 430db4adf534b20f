"""Figures with their aims, as a table and as JSON."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured value. ``aim`` compares: ('>=', 25.0). A value of None was not measured, ``note`` says why."""

    key: str
    value: float | None
    unit: str
    aim: tuple[str, float] | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None without an aim or a value."""
        if self.aim is None or self.value is None:
            return None
        word, bound = self.aim
        return self.value >= bound if word == ">=" else self.value <= bound


def table(figures: list[Figure]) -> str:
    """An aligned table: figure, value, aim, verdict, note."""
    lines = [("figure", "value", "aim", "", "")]
    for figure in figures:
        value = "not measured" if figure.value is None else f"{_number(figure.value)} {figure.unit}".rstrip()
        aim = "" if figure.aim is None else f"{figure.aim[0]} {_number(figure.aim[1])}"
        verdict = {True: "met", False: "MISSED", None: ""}[figure.met]
        lines.append((figure.key, value, aim, verdict, figure.note))
    first, second, third, fourth = (max(len(line[column]) for line in lines) for column in range(4))
    return "\n".join(
        f"{key:<{first}}  {value:>{second}}  {aim:>{third}}  {verdict:<{fourth}}  {note}".rstrip()
        for key, value, aim, verdict, note in lines
    )


def as_json(figures: list[Figure]) -> dict[str, object]:
    """Values by key, and beside them the aims with their verdicts."""
    return {
        **{figure.key: figure.value for figure in figures},
        "aims": {
            figure.key: {"aim": f"{figure.aim[0]} {_number(figure.aim[1])}", "met": figure.met}
            for figure in figures
            if figure.aim is not None
        },
        "notes": {figure.key: figure.note for figure in figures if figure.note},
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"
