import json

import pytest
import torch
from safetensors.torch import load_file

from models.geometric_qwen import load_checkpoint
from models.lora import ADAPTER
from models.train import main
from tests.models.conftest import TINY
from tests.models.test_train import command

LORA = {**TINY, "reading_steps": 0, "lora": {"rank": 2, "targets": ["q_proj", "down_proj"]}, "steps": 3}


@pytest.fixture
def adapted(release, checkpoint, tmp_path):
    """A checkpoint whose adapters were trained on another one as base, and alone."""
    rates = {"language": 1e-2, "geometry": 0.0, "merger": 0.0}
    mapping = {**LORA, "base": str(checkpoint), "learning_rates": rates}
    assert main(command(release, tmp_path / "run", mapping)) == 0
    return tmp_path / "run" / "checkpoint"


def test_only_the_targets_of_the_language_model_move(adapted, checkpoint):
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, adapted))
    assert set(before) == set(after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {name for name in before if "layers." in name and name.endswith(("q_proj.weight", "down_proj.weight"))}
    assert moved == {name for name in expected if not name.startswith(("gsm.", "visual.", "model.visual."))}


def test_adapter_on_its_base_is_the_merged_model(adapted, checkpoint):
    from peft import PeftModel

    plain = load_checkpoint(checkpoint)
    joined = PeftModel.from_pretrained(plain, adapted / ADAPTER).merge_and_unload()
    for name, value in load_checkpoint(adapted).state_dict().items():
        torch.testing.assert_close(joined.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert str(checkpoint.parent) not in (adapted / ADAPTER / "adapter_config.json").read_text()


def test_report_names_the_bytes_of_the_base(adapted):
    report = json.loads((adapted / "training.json").read_text())
    assert len(report["base_sha256"]) == 64 and "peft" in report["versions"]


@pytest.mark.parametrize(
    ("precision", "lora", "trained", "frozen"),
    [
        ("bf16-mixed", 2, torch.float32, torch.bfloat16),
        ("bf16-mixed", 0, torch.float32, torch.float32),
        ("bf16-true", 0, torch.bfloat16, torch.bfloat16),
        ("bf16-true", 2, torch.bfloat16, torch.bfloat16),
    ],
)
def test_number_formats(release, tmp_path, precision, lora, trained, frozen):
    mapping = {**LORA, "precision": precision, "lora": {**LORA["lora"], "rank": lora}}
    assert main(command(release, tmp_path / "run", mapping)) == 0
    weights = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    assert weights["gsm.queries"].dtype == trained
    assert weights[next(name for name in weights if "visual.blocks" in name)].dtype == frozen
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_targets_that_do_not_exist_are_told(release, tmp_path, capsys):
    mapping = {**LORA, "lora": {"rank": 2, "targets": ["query"]}}
    assert main(command(release, tmp_path / "run", mapping)) == 2
    line = capsys.readouterr().err.strip()
    assert "lora.targets = query: no matrix of a decoder layer is called so" in line and "\n" not in line
