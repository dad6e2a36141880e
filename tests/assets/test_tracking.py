import mlflow
import pytest

from assets.tracking import Tracking


@pytest.fixture
def tracking(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = mlflow.get_tracking_uri()
    yield Tracking(tmp_path)
    mlflow.set_tracking_uri(before)


def test_a_checkpoint_is_a_model_with_signature_data_and_parameters(tracking, monkeypatch):
    monkeypatch.setattr("assets.tracking.SYSTEM_METRICS_SECONDS", 1)
    with tracking.run("checkpoint", {}, {"checkpoint": {"steps": 3, "lora": {"rank": 2}}}) as run:
        tracking.log_dataset("splits", "data/splits", "0" * 32, "training")
        model_id = tracking.log_model("geometric-qwen", run.info.run_id, "1" * 32, {"lora": {"rank": 2}})
    assert tracking.dataset_digest(run.info.run_id, "splits") == "0" * 32
    model = tracking.model_of("1" * 32)
    assert model.model_id == model_id and model.source_run_id == run.info.run_id
    assert model.params["lora.rank"] == "2"
    recorded = mlflow.get_run(run.info.run_id).data.params
    assert (recorded["checkpoint.steps"], recorded["checkpoint.lora.rank"]) == ("3", "2")
    signature = mlflow.models.get_model_info(f"models:/{model_id}").signature
    assert signature.inputs.input_names() == ["question", "options", "clip"]
    assert signature.outputs.input_names() == ["A", "B", "C", "D"]
