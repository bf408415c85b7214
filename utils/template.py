"""The organisers' results.json and results.txt, made of the runs."""

from collections.abc import Sequence
from typing import Any

from utils.text import in_terminal, number

# The template's words for the challenge's sets, in its order; other sets go by their own names.
# The second group are those of 2024 to 2026, in whose template fvcore counts the FLOPs.
SETS_2023 = {"DIV2K_valid": "valid", "DIV2K_test": "test", "LSDIR_DIV2K_test": "hybrid_test"}
SETS_LATER = {"DIV2K_LSDIR_valid": "valid", "DIV2K_LSDIR_test": "test"}
MODES = SETS_2023 | SETS_LATER
TITLES = {"valid": "Val", "test": "Test", "hybrid_test": "Hybrid"}
COSTS = ("Params [M]", "FLOPs [G]", "Acts [M]", "Mem [M]", "Conv")


def results(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The runs under the keys, in the order and in the units of the template's results.json.

    The key is the model's name; where a model ran on several devices, backends or precisions,
    their names follow it, and DIV2K_LSDIR where there are runs on sets of later years and on
    others. Where runs are of several weights, or of a network that changed, those of the latest run
    go by these names, and the others have the beginning of their weights' sha256 behind.
    """
    runs = sorted(runs, key=_place)
    latest: dict[str, dict[str, Any]] = {}
    for run in sorted(runs, key=lambda run: run["environment"]["date"]):
        latest[run["model"]] = run
    variants: dict[str, set[str]] = {}
    is_both = len({run["dataset"] in SETS_LATER for run in runs}) > 1
    for run in runs:
        variants.setdefault(run["model"], set()).add(_variant(run))
    entries: dict[str, dict[str, Any]] = {}
    counts: dict[str, dict[str, Any]] = {}
    for run in runs:
        model, is_later = run["model"], run["dataset"] in SETS_LATER
        key = f"{model}_{_variant(run)}" if len(variants[model]) > 1 else model
        key += "_DIV2K_LSDIR" if is_later and is_both else ""
        if _network(run) != _network(latest[model]):
            key += f"_{(run['checkpoint']['sha256'] or 'other')[:8]}"
        entries.setdefault(key, {}).update(_measured(run))
        counts[key] = _counted(run, "flops_fvcore" if is_later else "flops")
    return {key: entry | counts[key] for key, entry in entries.items()}


def _place(run: dict[str, Any]) -> int:
    modes = list(MODES)
    return modes.index(run["dataset"]) if run["dataset"] in modes else len(modes)


def _variant(run: dict[str, Any]) -> str:
    return f"{run['environment']['device_type']}_{run['backend']}_{run['precision']}"


def _network(run: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a network from another of its name."""
    counts = ("num_parameters", "flops", "activations", "num_conv")
    return run["checkpoint"]["sha256"], *(run[count] for count in counts)


def _mode(run: dict[str, Any]) -> str:
    """The template's word for a run's set; a folder of such a name is none of the challenge's."""
    name = run["dataset"] + "_" * run["dataset"].endswith("_ave")  # or a key has two meanings
    return MODES.get(name, f"folder_{name}" if name in MODES.values() else name)


def _measured(run: dict[str, Any]) -> dict[str, Any]:
    mode = _mode(run)
    scores = ["psnr"] if run["ave_ssim"] is None else ["psnr", "ssim"]
    return {
        f"{mode}_runtime": [image["runtime_ms"] for image in run["images"]],
        **{f"{mode}_{score}": [image.get(score) for image in run["images"]] for score in scores},
        f"{mode}_memory": run["memory_mib"],
        f"{mode}_ave_runtime": run["ave_runtime_ms"],
        **{f"{mode}_ave_{score}": run[f"ave_{score}"] for score in scores},
    }


def _counted(run: dict[str, Any], counter: str) -> dict[str, Any]:
    flops = run.get(counter)
    return {
        "activations": run["activations"] / 1e6,
        "num_conv": run["num_conv"],
        "flops": None if flops is None else flops / 1e9,
        "num_parameters": run["num_parameters"] / 1e6,
    }


def table(runs: Sequence[dict[str, Any]]) -> str:
    """The template's results.txt: one line a model; what a model was not run on stays empty.

    The template writes of one mode a run: validation, with or without the test set, or the hybrid
    set under the headings of validation. Where the runs are of several modes or of other sets,
    each has its own headings, one below the other.
    """
    runs = [in_terminal(run) for run in runs]
    entries = results(runs)
    modes = [_mode(run) for run in sorted(runs, key=_place)]
    groups = [[mode] for mode in dict.fromkeys(modes) if mode not in ("valid", "test")]
    titles = TITLES if len(set(modes)) > 1 else TITLES | {"hybrid_test": "Val"}
    if "test" in modes:
        groups.insert(0, ["valid", "test"])
    elif "valid" in modes:
        groups.insert(0, ["valid"])
    return "\n".join(_block(entries, group, titles) for group in groups)


def _block(entries: dict[str, dict[str, Any]], modes: list[str], titles: dict[str, str]) -> str:
    names = [titles.get(mode, mode) for mode in modes]
    times = [*names, "Ave"] if len(names) > 1 else names
    rows = [["Model", *(f"{n} PSNR" for n in names), *(f"{n} Time [ms]" for n in times), *COSTS]]
    for model, entry in entries.items():
        measured = [mode for mode in modes if f"{mode}_memory" in entry]
        if not measured:
            continue
        runtimes: list[float | None] = [entry.get(f"{mode}_ave_runtime") for mode in modes]
        if len(modes) > 1:
            known = [runtime for runtime in runtimes if runtime is not None]
            runtimes.append(sum(known) / len(known) if len(known) == len(modes) else None)
        rows.append(
            [
                model,
                *(number(entry.get(f"{mode}_ave_psnr"), 2, "") for mode in modes),
                *(number(runtime, 2, "") for runtime in runtimes),
                f"{entry['num_parameters']:.3f}",
                number(entry["flops"], 2, ""),
                f"{entry['activations']:.2f}",
                number(entry[f"{measured[0]}_memory"], 2, ""),
                f"{entry['num_conv']:4d}",
            ]
        )
    widths = [20, *[10] * len(names), *[14] * len(times), 10, 10, 8, 8, 8]
    return "".join("\t".join(map(str.ljust, row, widths)) + "\n" for row in rows)
