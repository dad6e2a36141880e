"""Figures that others published, shown beside ours as context: other questions, other videos, never comparable.

Table 4 of "Learning to Reason in 4D" (arXiv 2512.20557): accuracy on DSR-Bench in per cent, 1,484 questions over 575
videos. "GSM" is the row the paper calls "Ours". Its last column is the average over questions, not over types. Later
work reports one figure for all questions; each with where it stands and what is known against it.
"""

SOURCE = "arXiv 2512.20557, table 4 (DSR-Bench, 1,484 questions); published, other data"

CAVEATS = (
    "Other questions about other videos: context, not a comparison.",
    "Averages of the paper are over questions (micro), not over types.",
    "About 68 % on this benchmark without any video was reported for a fine-tuned 2B or 3B model (issue 9 of the "
    "authors' repository; not replicated). In the authors' code wrong options come from noise and right ones from "
    "smooth paths, which text alone can tell apart: without a blind row beside it, no figure says what the video adds.",
    "Training on text and video alone brought +30.9 points at 20K questions, the geometry module another +3.0; "
    "no seeds and no intervals were published.",
    "GeoSR's rerun of that geometry fusion scored 1.2 points below the same model without geometry.",
)

COLUMNS = (
    *("abs_dis", "abs_dir", "abs_ori", "abs_spd", "abs_spd_comp", "abs_dir_pred"),
    *("rel_dis", "rel_dir", "rel_ori", "rel_spd", "rel_spd_comp", "rel_dir_pred"),
    *("non_temp", "overall"),
)

ROWS = {
    "GPT-4o": (18.8, 29.2, 26.8, 29.7, 21.5, 26.2, 24.1, 23.8, 17.2, 32.3, 22.8, 24.4, 34.7, 26.4),
    "GPT-5": (21.1, 41.5, 48.7, 34.5, 33.3, 34.7, 17.2, 44.3, 41.9, 21.2, 25.0, 30.9, 26.7, 30.8),
    "Gemini-2.5-Flash": (18.8, 27.6, 19.5, 25.0, 23.6, 22.0, 11.2, 28.4, 30.8, 23.2, 17.1, 22.6, 38.8, 24.9),
    "Gemini-2.5-Pro": (20.0, 44.6, 53.6, 27.3, 38.7, 30.5, 23.2, 32.9, 43.2, 17.1, 28.5, 27.9, 34.3, 31.7),
    "LLaVA-Video-7B": (22.3, 16.9, 25.6, 33.3, 45.1, 24.5, 24.1, 15.9, 17.2, 19.1, 24.2, 21.4, 33.9, 25.9),
    "VideoRefer": (23.5, 18.4, 25.6, 33.5, 45.4, 27.1, 25.0, 16.1, 18.5, 20.2, 26.4, 22.6, 34.7, 26.9),
    "LongVILA-R1": (20.0, 21.5, 23.1, 21.4, 37.6, 22.8, 24.1, 26.1, 28.3, 22.2, 17.8, 20.8, 33.9, 25.3),
    "Qwen2.5-VL-7B": (18.8, 15.3, 14.6, 42.8, 29.0, 19.4, 31.8, 19.3, 11.1, 22.2, 19.2, 20.2, 30.1, 23.5),
    "Qwen2.5-VL-32B": (31.7, 21.5, 23.1, 44.0, 36.5, 25.4, 27.5, 23.8, 37.0, 27.2, 29.2, 21.4, 36.2, 29.9),
    "Qwen3-VL-8B": (23.5, 24.6, 42.6, 29.7, 27.9, 33.8, 18.1, 28.4, 34.5, 24.2, 22.1, 27.9, 33.5, 28.7),
    "Qwen3-VL-30B-A3B": (25.8, 27.6, 46.3, 30.9, 31.1, 34.7, 20.6, 29.5, 37.0, 28.2, 24.2, 31.5, 35.4, 31.1),
    "InternVL3.5-8B": (23.5, 27.6, 28.0, 34.5, 24.7, 27.9, 22.4, 17.0, 19.7, 28.2, 30.0, 14.2, 30.1, 25.4),
    "InternVL3.5-38B": (25.8, 27.8, 29.2, 34.2, 24.7, 28.5, 26.7, 16.3, 23.4, 29.2, 32.1, 15.4, 31.3, 26.7),
    "VLM-3R": (28.2, 27.6, 31.7, 42.8, 38.7, 33.0, 34.4, 23.8, 30.8, 22.2, 26.4, 29.1, 35.0, 31.4),
    "VG-LLM": (55.2, 32.3, 58.5, 57.1, 51.6, 32.2, 56.0, 36.3, 32.0, 30.3, 32.1, 29.1, 27.9, 38.4),
    "GSM, 50K": (87.0, 73.8, 84.1, 73.8, 72.0, 35.5, 75.8, 76.1, 77.7, 60.6, 37.1, 35.1, 46.4, 58.9),
}

# Drawn into the chart of types: the plain base model, and what the paper made of it.
CHARTED = ("Qwen2.5-VL-7B", "GSM, 50K")

# Model, per cent, where the figure stands, what is known against it.
LATER = (
    ("Qwen2.5-VL-7B, re-run", 24.7, "EASI, zero-shot, 1 frame per second", "1.2 points above the paper's row"),
    ("Qwen3-VL-8B, re-run", 30.6, "EASI, zero-shot, 1 frame per second", "1.9 points above the paper's row"),
    ("InternVL3.5-8B, re-run", 26.6, "EASI, zero-shot, 1 frame per second", "1.2 points above the paper's row"),
    (
        "4DThinker-3B, public checkpoint",
        34.2,
        "its own evaluation results",
        "1,413 of 1,450 questions; mean of types 35.7",
    ),
    (
        "4DThinker",
        62.0,
        "arXiv 2605.05997, from a digest",
        "its script averages over types, skips missing videos and samples at temperature 0.7",
    ),
    ("Qwen3-VL-8B, fine-tuned", 62.0, "GenDSR paper", "no geometry"),
    ("GSM, run by GeoSR", 62.8, "arXiv 2603.26639, ablation", "1.2 points below the row without geometry"),
    ("GeoSR without geometry", 64.0, "arXiv 2603.26639, ablation", ""),
    ("GeoSR", 66.1, "arXiv 2603.26639", "its authors show questions of the benchmark that are ambiguous"),
    ("GenDSR", 67.2, "GenDSR paper (2026)", "checkpoint not available"),
    ("Qwen3-VL, no video at all", 68.0, "issue 9 of the authors' repository", "approximate, not replicated"),
)


def published_rows() -> list[dict]:
    """One mapping per model: `model`, `source`, `note`, `charted`, `overall` and `by_type`, as shares 0..1.

    `by_type` is empty where only the figure for all questions was published.
    """
    rows = []
    for model, values in ROWS.items():
        shares = {column: round(value / 100, 3) for column, value in zip(COLUMNS, values, strict=True)}
        overall = shares.pop("overall")
        rows.append(_row(model, SOURCE, "", overall, shares) | {"charted": model in CHARTED})
    rows += [_row(model, f"{source}; published, other data", note, value / 100) for model, value, source, note in LATER]
    return rows


def _row(model: str, source: str, note: str, overall: float, by_type: dict[str, float] | None = None) -> dict:
    by_type = by_type or {}
    return {
        "model": model,
        "source": source,
        "note": note,
        "charted": False,
        "overall": round(overall, 3),
        "by_type": by_type,
    }
