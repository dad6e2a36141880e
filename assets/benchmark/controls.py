"""Controls of an evaluation: what else is asked beside the questions themselves, to see where answers come from."""

import hashlib

import pyarrow as pa


def strangers(table: pa.Table) -> pa.Table | None:
    """The same questions, each about another clip's frames and geometry.

    Clips are put into the order of a hash of their names, which are hashes of their content, and each is given the
    next one that was cut from another source video. So the pairs depend on which clips are asked about and on nothing
    else, and all questions of a clip meet the same stranger.

    Args:
        table: questions with `clip, shard, videoID`.

    Returns:
        The table with other clips and shards in the same rows; None where all clips come from one source video.
    """
    rows = table.select(["clip", "shard", "videoID"]).to_pylist()
    homes = {row["clip"]: (row["shard"], row["videoID"]) for row in rows}
    order = sorted(homes, key=lambda clip: (hashlib.sha256(f"stranger {clip}".encode()).hexdigest(), clip))
    if len({source for _, source in homes.values()}) < 2:
        return None
    partner = {}
    for place, clip in enumerate(order):
        following = order[place + 1 :] + order[:place]
        partner[clip] = next(other for other in following if homes[other][1] != homes[clip][1])
    met = [partner[row["clip"]] for row in rows]
    for column, values in (("clip", met), ("shard", [homes[clip][0] for clip in met])):
        place = table.column_names.index(column)
        table = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
    return table
