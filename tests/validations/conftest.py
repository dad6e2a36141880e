import json

import pandas as pd
import pytest

TEMPLATE_TYPES = [
    f"{viewpoint}_{kind}"
    for viewpoint in ("abs", "rel")
    for kind in ("dis", "dir", "ori", "spd", "spd_comp", "dir_pred")
]
OPTIONS = [
    "Becomes larger",
    "Becomes smaller",
    "(1) Becomes larger (2) Becomes smaller",
    "(1) Becomes smaller (2) Becomes larger",
]


def quad_rows(number: int, kind: str, split: str) -> list[dict]:
    """Four well-formed questions of one clip that share four options."""
    rows = []
    for place, truth in enumerate(OPTIONS):
        predicts = kind.endswith("dir_pred")
        absolute = kind.startswith("abs")
        rows.append(
            {
                "qa_id": f"{number:04d}-{place}",
                "clip": f"{number:064x}",
                "videoID": f"{number:064x}",
                "shard": "shard-000000",
                "type": kind,
                "question": f"What happens to thing {place} of scene {number}?",
                "options": list(OPTIONS),
                "answer": "ABCD"[place],
                "viewpoint_kind": "abs" if absolute else "rel",
                "viewpoint_subject": "camera",
                "viewpoint_time": 1.0 if absolute else None,
                "targets": ["red robot"],
                "interval_start": 0.5,
                "interval_end": 3.0,
                "states": ["larger"] if truth.startswith("B") else ["larger", "smaller"],
                "evidence": json.dumps({"ratio": [1.0, 1.3]}),
                "stability": 0.95,
                "visible_until": 2.0 if predicts else None,
                "split": split,
                "quad": f"quad-{number}",
                "has_video": True,
                "estimator": "rendered",
                "generator_version": "1",
            }
        )
    return rows


@pytest.fixture
def questions() -> pd.DataFrame:
    """A well-formed table: one quad per type for bench, one for train, one for val."""
    rows, number = [], 0
    for split in ("train", "val", "bench"):
        for kind in TEMPLATE_TYPES:
            rows += quad_rows(number, kind, split)
            number += 1
    return pd.DataFrame(rows)


@pytest.fixture
def clips() -> pd.DataFrame:
    video = {
        "shard": "shard-000000",
        "name": "street.mp4",
        "kind": "video",
        "reader": "decord",
        "codec": "h264",
        "width": 640,
        "height": 360,
        "rotation": 0,
        "seconds": 30.0,
        "frame_count": 300,
        "variable_rate": False,
        "sampled": 32,
        "frame_width": 320,
        "frame_height": 180,
        "has_truth": False,
        "cuts": 0,
        "phash": "0f" * 160,
    }
    log = {**dict.fromkeys(video), "shard": "shard-000000", "name": "log", "kind": "av2", "has_truth": True}
    video, log = ({**row, "fit": True, "unfit": ""} for row in (video, log))
    return pd.DataFrame([{"clip": f"{0:064x}", **video}, {"clip": f"{1:064x}", **log}])


@pytest.fixture
def scenes() -> pd.DataFrame:
    scene = {"shard": "shard-000000", "name": "street.mp4", "kind": "video", "estimator": "classical"}
    usable = {"status": "3d", "reason": "", "objects": 3, "moving": 2, "agents": 1, "seconds": 30.0}
    usable |= {"smallest_share": 0.02, "largest_share": 0.1, "mount_share": 0.0, "fit": True, "unfit": ""}
    refused = {
        "status": "refused",
        "reason": "no parallax",
        "objects": 0,
        "moving": 0,
        "agents": 0,
        "seconds": 5.0,
        "fit": False,
        "unfit": "moving",
    }
    return pd.DataFrame([{"clip": f"{0:064x}", **scene, **usable}, {"clip": f"{1:064x}", **scene, **refused}])
