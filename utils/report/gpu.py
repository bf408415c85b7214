"""What deploy.gpu_check found on a GPU, as tables."""

from collections.abc import Sequence
from typing import Any

from utils.record import ENVIRONMENT
from utils.schema import Kind
from utils.text import markdown, revision

Record = dict[str, Any]

# A row has a forward's time, or why it has none, or whatever else was measured.
TIMED: dict[str, Kind] = {
    "name": str,
    **dict.fromkeys(("p20_ms", "p50_ms", "p80_ms"), float),
    "memory_mib": float,
}
OTHER: dict[str, Kind] = {
    "name": str,
    **dict.fromkeys(("failed?", "refused?"), str),
    "p50_ms?": range(0),  # nothing is
    "last_lines?": [str],
}
CHECK: dict[str, Kind] = {
    "part": str,
    "environment": {**ENVIRONMENT, "torch": str},
    "rows": [(TIMED, OTHER)],
}


def checks(records: Sequence[Record]) -> str:
    """Every part that was run, a row for each measurement, the failed ones too."""
    return "\n\n".join(map(_check, records)) or "not measured"


def _check(record: Record) -> str:
    where = record["environment"]
    rows = [[record["part"], "found"], *([row["name"], found(row)] for row in record["rows"])]
    return (
        f"{where['device']}, torch {where['torch']}, {where['date'][:10]}, commit "
        f"{revision(where)}:\n\n{markdown(rows)}"
    )


def found(row: Record) -> str:
    """What a row measured, in words: a forward's times, or whatever numbers it has."""
    for word in ("failed", "refused"):
        if word in row:
            return f"{word}: {row[word]}"
    if "p50_ms" in row:
        return (
            f"{row['p50_ms']:.3g} ms ({row['p20_ms']:.3g}, {row['p80_ms']:.3g}), "
            f"{row['memory_mib']:.0f} MiB"
        )
    numbers = {k: v for k, v in row.items() if isinstance(v, float) and k != "seconds"}
    found = [f"{name.replace('_', ' ')} {value:.3g}" for name, value in numbers.items()]
    return ", ".join(found) or "; ".join(map(str, row.get("last_lines", ["done"])[-1:]))
