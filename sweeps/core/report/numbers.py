"""Numbers as text: few digits for people, six for programs."""

from __future__ import annotations

from collections.abc import Callable

from sweeps.core.statistics.image_noise import ImageInterval
from sweeps.core.statistics.paired import Paired, Summary


def format_value(value: float, *, percent: bool) -> str:
    """Format a value for people.

    Percent has one digit, a plain number three.

    >>> format_value(0.705, percent=True), format_value(0.705, percent=False)
    ('70.5', '0.705')
    """
    return without_negative_zero(f"{100 * value:.1f}" if percent else f"{value:.3f}")


def format_difference(value: float, *, percent: bool) -> str:
    """Format a difference with its sign.

    Points have two digits, plain numbers four.

    >>> format_difference(-0.0123, percent=True), format_difference(-1e-9, percent=True)
    ('-1.23', '0.00')
    """
    return without_negative_zero(f"{100 * value:+.2f}" if percent else f"{value:+.4f}")


def format_interval(
    interval: Summary | Paired | ImageInterval | None,
    format_end: Callable[..., str] = format_difference,
    *,
    percent: bool,
) -> str:
    """Format both ends of an interval, such as ``-1.50 to -0.20``.

    The result is ``-`` if there is no interval.

    Args:
        interval: The interval.
        format_end: ``format_value`` or ``format_difference``.
        percent: Whether the ends are fractions, printed in percent.
    """
    if interval is None or interval.low is None or interval.high is None:
        return "-"
    return " to ".join(format_end(end, percent=percent) for end in (interval.low, interval.high))


def format_p(p: float | None) -> str:
    """Format a p value with three digits; ``-`` for ``None``.

    >>> format_p(0.0312), format_p(0.0001), format_p(None)
    ('0.031', '<0.001', '-')
    """
    if p is None:
        return "-"
    return "<0.001" if p < 0.0005 else f"{p:.3f}"


def points(fraction: float, *, percent: bool = True) -> str:
    """Format a fraction as a number of points, or another number as it is.

    >>> points(0.01), points(0.005), points(0.005, percent=False)
    ('1 point', '0.5 points', '0.005')
    """
    if not percent:
        return f"{fraction:g}"
    number = f"{100 * fraction:g}"
    return f"{number} point{'' if number == '1' else 's'}"


def format_for_program(value: float | str | None) -> str:
    """Format a cell of a CSV file.

    A float has six digits after the point, more than any result needs; ``None`` is empty.

    >>> format_for_program(-1e-9), format_for_program(3), format_for_program(None)
    ('0.000000', '3', '')
    """
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return without_negative_zero(f"{value:.6f}")


def without_negative_zero(text: str) -> str:
    """Remove the sign of a number that is zero after rounding."""
    return text.lstrip("+-") if float(text) == 0 else text
