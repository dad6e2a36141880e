import pandas as pd
import pytest

from assets.checkpoints.curves import draw, learning_curves

CURVES = """\
step,stage,loss,accuracy,rate,validation,words
2,reading,8.7,0.33,1.0,,
4,reading,8.5,0.5,0.5,,
6,grounding,21.5,,0.5,,2.3
8,videos,12.7,0.25,0.5,,2.2
9,videos,12.1,0.3,0.4,0.28,2.1
12,videos,11.5,0.6,0.1,0.55,2.0
"""


@pytest.fixture
def curves(tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text(CURVES)
    return path


def lines(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_each_stage_has_its_loss_and_what_was_right(curves):
    panels = draw(pd.read_csv(curves)).axes
    losses, shares = panels[:3], panels[3:]
    assert [axes.get_title() for axes in losses] == ["reading", "grounding", "videos"]
    assert [lines(axes) for axes in losses[:2]] == [{"loss": ([2, 4], [8.7, 8.5])}, {"loss": ([6], [21.5])}]
    assert lines(shares[0]).keys() == {"training", "chance"}
    assert not shares[1].axison and not lines(shares[1])
    assert lines(shares[2])["training"] == ([8, 9, 12], [0.25, 0.3, 0.6])
    assert lines(shares[2])["validation"] == ([9, 12], [0.28, 0.55])


@pytest.mark.parametrize("stages", [("videos",), ("grounding",), ("reading", "grounding", "videos")])
def test_any_stages_make_a_picture(curves, stages):
    rows = pd.read_csv(curves)
    rows[rows["stage"].isin(stages)].to_csv(curves, index=False)
    picture = learning_curves(curves)
    assert picture.startswith(b"\x89PNG") and len(picture) < 100_000
