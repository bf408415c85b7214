"""The organisers' results.json and results.txt, made of the runs."""

from typing import Any

from utils.text import aligned, number

# The template's words for the challenge's sets; other sets go by their own names.
MODES = {"DIV2K_valid": "valid", "DIV2K_test": "test", "LSDIR_DIV2K_test": "hybrid_test"}


def results(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The runs under the keys and in the units of the challenge template's results.json.

    The key is the model's name; where a model ran on several devices, backends or precisions,
    their names follow it.
    """
    variants: dict[str, set[str]] = {}
    for run in runs:
        variants.setdefault(run["model"], set()).add(_variant(run))
    entries: dict[str, dict[str, Any]] = {}
    for run in runs:
        several = len(variants[run["model"]]) > 1
        key = f"{run['model']}_{_variant(run)}" if several else run["model"]
        mode = MODES.get(run["dataset"], run["dataset"])
        entry = entries.setdefault(key, {})
        entry[f"{mode}_runtime"] = [image["runtime_ms"] for image in run["images"]]
        entry[f"{mode}_psnr"] = [image["psnr"] for image in run["images"]]
        entry[f"{mode}_memory"] = run["memory_mib"]
        entry[f"{mode}_ave_runtime"] = run["ave_runtime_ms"]
        entry[f"{mode}_ave_psnr"] = run["ave_psnr"]
        if run["ave_ssim"] is not None:
            entry[f"{mode}_ssim"] = [image["ssim"] for image in run["images"]]
            entry[f"{mode}_ave_ssim"] = run["ave_ssim"]
        entry["activations"] = run["activations"] / 1e6
        entry["num_conv"] = run["num_conv"]
        entry["flops"] = run["flops"] / 1e9
        entry["num_parameters"] = run["num_parameters"] / 1e6
    return entries


def _variant(run: dict[str, Any]) -> str:
    return f"{run['environment']['device_type']}_{run['backend']}_{run['precision']}"


def table(runs: list[dict[str, Any]]) -> str:
    """The template's results.txt: one line a model; what a model was not run on stays empty."""
    entries = results(runs)
    modes = list(dict.fromkeys(MODES.get(r["dataset"], r["dataset"]) for r in runs))
    header = [
        "Model",
        *(f"{mode.capitalize()} PSNR" for mode in modes),
        *(f"{mode.capitalize()} Time [ms]" for mode in modes),
        "Params [M]",
        "FLOPs [G]",
        "Acts [M]",
        "Mem [MiB]",
        "Conv",
    ]
    rows = []
    for name, entry in entries.items():
        memory = max((entry.get(f"{m}_memory") or 0 for m in modes), default=0)
        rows.append(
            [
                name,
                *(number(entry.get(f"{mode}_ave_psnr"), 2, "") for mode in modes),
                *(number(entry.get(f"{mode}_ave_runtime"), 2, "") for mode in modes),
                number(entry["num_parameters"], 3),
                number(entry["flops"], 2),
                number(entry["activations"], 2),
                number(memory or None, 2),
                str(entry["num_conv"]),
            ]
        )
    return aligned([header, *rows], " | ") + "\n"
