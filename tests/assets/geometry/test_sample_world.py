"""The whole way with the real videos link: rendered world, sampled frames, scene records."""

import numpy as np
import pyarrow.parquet as pq

from assets.geometry.cache import estimate_shard
from assets.geometry.frames_of_reference import inverse, transform
from assets.geometry.parameters import GeometryParameters
from assets.geometry.record import decode_mask, load
from assets.videos.parameters import SampleWorldParameters, VideoParameters
from assets.videos.prepare import prepare_shard
from assets.videos.world import render_shard

SHARD = "shard-000000"


def test_things_of_the_sample_world_are_where_their_masks_are(tmp_path):
    world = SampleWorldParameters(clips=2, width=96, height=72, fps=4, seconds=3)
    render_shard(SHARD, world, tmp_path / "raw" / SHARD)
    videos = tmp_path / "videos" / SHARD
    prepare_shard(
        tmp_path / "raw" / SHARD, videos, SHARD, VideoParameters(frames=8, max_pixels=4000), 1, lambda *_: None
    )
    out = tmp_path / "geometry" / SHARD
    estimate_shard(tmp_path / "raw" / SHARD, videos, out, SHARD, GeometryParameters())
    scenes = pq.read_table(out / "scenes.parquet").to_pylist()
    assert [(row["status"], row["estimator"], row["frames"]) for row in scenes] == [("3d", "rendered", 8)] * 2
    inside = []
    for row in scenes:
        record = load(out / f"{row['clip']}.safetensors")
        height, width = record.frame_size
        assert height * width <= 4000
        local = transform(inverse(record.world_from_camera), record.centers_world)
        pixels = np.einsum("tij,ntj->nti", record.intrinsics, local)
        pixels = pixels[..., :2] / pixels[..., 2:]
        for i, t in zip(*np.nonzero(np.isfinite(pixels).all(-1)), strict=True):
            x, y = pixels[i, t].round().astype(int)
            if 1 < x < width - 2 and 1 < y < height - 2:
                box = record.boxes[i, t]
                inside.append(box[0] - 2 <= x <= box[2] + 2 and box[1] - 2 <= y <= box[3] + 2)
                assert decode_mask(record.masks[i][t]).shape == (height, width)
    # A thing that is partly hidden by another or by the picture's edge has its centre outside of what is seen of it.
    assert len(inside) > 10 and np.mean(inside) > 0.8
