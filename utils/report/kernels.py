"""What a compiler says of the Triton kernels without a GPU, as tables."""

from typing import Any

from utils.record import COUNT, ENVIRONMENT
from utils.schema import Kind
from utils.text import markdown, number, revision

Record = dict[str, Any]

MODELLED: dict[str, Kind] = {
    "environment": ENVIRONMENT,
    "triton": str,
    "rows": [
        {
            "precision": str,
            "size": [COUNT, COUNT, COUNT],
            **dict.fromkeys(("ms", "held_mib"), float),
            "rows": [
                {
                    **dict.fromkeys(("kernel", "bound_by"), str),
                    **dict.fromkeys(("launches", "registers"), range(1, 10**6)),
                    "ms": float,
                }
            ],
        }
    ],
}
COMPILED: dict[str, Kind] = {
    "environment": ENVIRONMENT,
    "triton": str,
    "compiled": [
        (
            {
                **dict.fromkeys(("architecture", "precision"), str),
                **dict.fromkeys(("kernels", "stack_bytes"), COUNT),
                **dict.fromkeys(("on_tensor_cores", "doubtful_products"), COUNT),
                "registers": [COUNT, COUNT],
            },
            {**dict.fromkeys(("architecture", "precision", "failed"), str)},
        )
    ],
}


def modelled(record: Record) -> str:
    """A table a precision: the time of each kernel's launches by the model, and what bounds it."""
    return "\n\n".join(_modelled(record, forward) for forward in record["rows"])


def _modelled(record: Record, forward: Record) -> str:
    lines = [["kernel", "launches", "registers", "µs a launch", "bound by"]]
    for row in forward["rows"]:
        each = 1000 * row["ms"] / row["launches"]
        counts = [str(row["launches"]), str(row["registers"])]
        lines.append([row["kernel"], *counts, number(each, 1), row["bound_by"]])
    height, width = forward["size"][1:]
    return (
        f"Modelled, not measured: an H100, {forward['precision']}, {height}x{width}, "
        f"{_made_by(record)}: {number(forward['ms'], 2)} ms a forward, "
        f"{number(forward['held_mib'], 0)} MiB held.\n\n{markdown(lines)}"
    )


def compiled(record: Record) -> str:
    """A row an architecture and precision: registers, stack and products of its kernels."""
    lines = [["architecture", "precision", "kernels", "registers", "stack, bytes"]]
    lines[0] += ["on tensor cores", "doubtful products"]
    for row in record["compiled"]:
        if "failed" in row:
            cells = ["fails", row["failed"], "", "", ""]
        else:
            cells = [
                str(row["kernels"]),
                "{} to {}".format(*row["registers"]),
                str(row["stack_bytes"]),
                str(row["on_tensor_cores"]),
                str(row["doubtful_products"]),
            ]
        lines.append([row["architecture"], row["precision"], *cells])
    return f"{_made_by(record)}:\n\n{markdown(lines)}"


def _made_by(record: Record) -> str:
    where = record["environment"]
    return f"Triton {record['triton']}, {where['date'][:10]}, commit {revision(where)}"
