"""Records of runs as the commands write them, with round numbers."""

from typing import Any

from utils.datasets import IMAGES


def a_run(dataset: str = "Set5", model: str = "23_LKDN", device: str = "cpu") -> dict[str, Any]:
    images = IMAGES.get(dataset, 1)  # all of a set with published figures
    image = {
        "size": [64, 48],
        "runtime_ms": 2.0,
        "psnr": 30.0,
        "psnr_y": 31.5,
        "ssim": None,
        "ssim_y": 0.9,
        "psnr_bicubic": 28.0,
        "psnr_y_bicubic": 29.0,
    }
    return {
        "model": model,
        "dataset": dataset,
        "checkpoint": {"name": "w.pth", "sha256": "0" * 64},
        "lr_source": "files in LR",
        "backend": "eager",
        "precision": "fp32",
        "environment": {
            "device_type": device,
            "device": "a chip",
            "threads": 2,
            "commit": "c" * 40,
            "date": "2026-01-02T03:04:05+00:00",
        },
        "ave_psnr": 30.0,
        "ave_psnr_y": 31.5,
        "ave_ssim": None,
        "ave_ssim_y": 0.9,
        "ave_psnr_bicubic": 28.0,
        "ave_psnr_y_bicubic": 29.0,
        "ave_runtime_ms": 2.0,
        "median_runtime_ms": None,
        "p20_runtime_ms": None,
        "p80_runtime_ms": None,
        "memory_mib": 100.0,
        "num_parameters": 129177,
        "flops": 8289189888,
        "flops_counter": "multiply-adds",
        "activations": 202702848,
        "num_conv": 86,
        "images": [image | {"name": "abcde"[i % 5] * (i // 5 + 1)} for i in range(images)],
        "failed": [],
    }


def a_benchmark(device: str = "cpu") -> dict[str, Any]:
    row = {
        "against": "",
        "prepared": True,
        "height": 340,
        "width": 510,
        "p20_ms": 9.0,
        "p80_ms": 11.0,
        "memory_mib": 20.0,
        "psnr_drift_db": -0.001,
        "tflop_s": 0.5,
        "gb_s": 40.0,
        "precision": "fp32",
    }
    return {
        "environment": {
            "device_type": device,
            "device": "a chip",
            "threads": 2,
            "torch": "2.9",
            "commit": "c" * 40,
            "date": "2026-01-02T03:04:05+00:00",
        },
        "ceilings": {"gb_s": 80.0, "tflop_s_fp32": 1.0},
        "rounds": 3,
        "refused": {"triton fp16": "no GPU"},
        "rows": [
            {
                **row,
                "backend": "eager",
                "label": "eager fp32",
                "ran": "eager fp32",
                "p50_ms": 50.0,
                "p80_ms": 55.0,
                "ratio_to_eager": 1.0,
            },
            {
                **row,
                "backend": "auto",
                "label": "auto fp32",
                "ran": "native fp32",
                "p50_ms": 10.0,
                "ratio_to_eager": 5.0,
            },
        ],
    }
