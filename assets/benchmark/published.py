"""Figures that others published, shown beside ours as context: other questions, other videos, never comparable.

Table 4 of "Learning to Reason in 4D" (arXiv 2512.20557): accuracy on DSR-Bench in per cent, 1,484 questions over 575
videos. "GSM" is the row the paper calls "Ours". Its last column is the average over questions, not over types.
"""

SOURCE = "arXiv 2512.20557, table 4 (DSR-Bench, 1,484 questions); published, other data"

COLUMNS = (
    *("abs_dis", "abs_dir", "abs_ori", "abs_spd", "abs_spd_comp", "abs_dir_pred"),
    *("rel_dis", "rel_dir", "rel_ori", "rel_spd", "rel_spd_comp", "rel_dir_pred"),
    *("non_temp", "overall"),
)

ROWS = {
    "GPT-4o": (18.8, 29.2, 26.8, 29.7, 21.5, 26.2, 24.1, 23.8, 17.2, 32.3, 22.8, 24.4, 34.7, 26.4),
    "Gemini-2.5-Pro": (20.0, 44.6, 53.6, 27.3, 38.7, 30.5, 23.2, 32.9, 43.2, 17.1, 28.5, 27.9, 34.3, 31.7),
    "Qwen2.5-VL-7B": (18.8, 15.3, 14.6, 42.8, 29.0, 19.4, 31.8, 19.3, 11.1, 22.2, 19.2, 20.2, 30.1, 23.5),
    "VG-LLM": (55.2, 32.3, 58.5, 57.1, 51.6, 32.2, 56.0, 36.3, 32.0, 30.3, 32.1, 29.1, 27.9, 38.4),
    "GSM, 50K": (87.0, 73.8, 84.1, 73.8, 72.0, 35.5, 75.8, 76.1, 77.7, 60.6, 37.1, 35.1, 46.4, 58.9),
}


def published_rows() -> list[dict]:
    """One mapping per model: `model`, `source`, `overall` and `by_type`, as shares 0..1."""
    rows = []
    for model, values in ROWS.items():
        shares = {column: round(value / 100, 3) for column, value in zip(COLUMNS, values, strict=True)}
        rows.append({"model": model, "source": SOURCE, "overall": shares.pop("overall"), "by_type": shares})
    return rows
