"""Tables, notes and charts as HTML and SVG; text is escaped unless it is Html."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float, str]]  # x, y, its description


class Html(str):
    """Text that is HTML already; all other text is escaped."""


def chart(series: Mapping[str, Points], x_label: str, y_label: str, lines: bool = False) -> str:
    """An SVG of points, or of lines over a part of the y axis, and its legend."""
    origin = [] if lines else [0.0]
    xs = _ticks([0.0, *(x for points in series.values() for x, _, _ in points)])
    ys = _ticks([*origin, *(y for points in series.values() for _, y, _ in points)])
    left, right, top, bottom = 76, 462, 16, 246

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(left + (right - left) * (x - xs[0]) / (xs[-1] - xs[0]), 1),
            round(bottom - (bottom - top) * (y - ys[0]) / (ys[-1] - ys[0]), 1),
        )

    drawn, legend = "", ""
    for tick in xs:
        x, _ = place(tick, ys[0])
        drawn += (
            f"<path class=grid d='M{x} {top}V{bottom}'/><text class=middle x={x} y=264>"
            f"{tick:{_digits(xs)}}</text>"
        )
    for tick in ys:
        _, y = place(xs[0], tick)
        drawn += (
            f"<path class=grid d='M{left} {y}H{right}'/><text class=end x=70 y={y + 4}>"
            f"{tick:{_digits(ys)}}</text>"
        )
    for i, (label, points) in enumerate(series.items()):
        placed = [(*place(x, y), title) for x, y, title in points]
        path = " ".join(f"{x},{y}" for x, y, _ in placed) if lines else ""
        dots = "".join(
            f"<circle cx={x} cy={y} r={2 if lines else 4}><title>{escape(title)}</title></circle>"
            for x, y, title in placed
        )
        drawn += f"<g class=c{i % 6}><polyline points='{path}'/>{dots}</g>"
        legend += f"<li><i class=c{i % 6}></i>{escape(label)}</li>"
    return (
        "<div class=drawing><svg class=chart viewBox='0 0 480 290' role=img "
        f"aria-label='{escape(y_label)} against {escape(x_label)}'>{drawn}"
        f"<text class=middle x={(left + right) / 2:g} y=286>{escape(x_label)}</text>"
        f"<text class=middle transform='translate(14 131) rotate(-90)'>{escape(y_label)}</text>"
        f"</svg><ul class=legend>{legend}</ul></div>"
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, five to eleven of them as a rule, that enclose all values."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(max(span / 4, 1e-300)))
    step = power * max((f for f in (1, 2, 5) if f * power <= span / 4), default=1)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * i for i in range(first, max(last, first + 1) + 1)]


def _digits(ticks: Sequence[float]) -> str:
    """The format in which all ticks have as many decimals as their distance needs."""
    return f".{max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))}f"


def table(name: str, rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """A table that scrolls in itself, its first row the header."""
    # A checkpoint's name may be on a line of its own.
    head = "".join(f"<th scope=col>{_html(t).replace('@', '@<wbr>')}</th>" for t in rows[0])
    body = ""
    for label, *cells in rows[1:]:
        body += f"<tr><th scope=row>{_html(label)}</th>"
        body += "".join(f"<td>{_html(text)}</td>" for text in cells) + "</tr>"
    return (
        f"<div class=scroll tabindex=0 role=region aria-label='{name}'><table class={kind}>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(values: Mapping[str, str]) -> str:
    """Short values, each behind its name."""
    shown = (
        f"<span>{escape(name)} <b>{escape(value)}</b></span> " for name, value in values.items()
    )
    return f"<p class='soft facts'>{''.join(shown)}</p>"


def section(ident: str, title: str, body: str) -> str:
    """A part of the page, which a link leads to, under its title."""
    return f"<section id={ident}><h2>{escape(title)}</h2>{body}</section>"


def notes(title: str, notes: Sequence[str]) -> str:
    """A list of at most six lines, the last of them how many more there are."""
    if not notes:
        return ""
    shown = [*notes] if len(notes) < 7 else [*notes[:5], f"and {len(notes) - 5} more"]
    lines = "".join(f"<li>{escape(note)}</li>" for note in shown)
    return f"<h3>{title}</h3>" * bool(title) + f"<ul class=soft>{lines}</ul>"


def link(ident: str, text: str) -> Html:
    """A link within the page."""
    return Html(f"<a href='#{ident}'>{escape(text)}</a>")


def _html(text: str) -> str:
    return text if isinstance(text, Html) else escape(text)
