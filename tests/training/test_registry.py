"""Exporting, registering and promoting a model in a real MLflow store."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException
from torch import Tensor, nn

from configs.home import tracking_uri
from configs.model import ModelConfig
from configs.pack import ClipConfig
from configs.section import UsageError
from configs.train import CHAMPION, ViewConfig
from tests.support.registry import CLIP, MLFLOW_WARNINGS, VIEW, Brightness, contract, store_uri
from trainer.model.cnn_rnn import CnnRnn
from trainer.model.contract import ModelContract
from trainer.tracking.registry import Promotion, Registry

pytestmark = [*MLFLOW_WARNINGS, pytest.mark.usefixtures("one_thread")]

CONTRACT = contract()


class Store:
    """A registry with one exported model, whose val figure is 0.5, and a run to export more into."""

    def __init__(self, folder: Path) -> None:
        self.uri = store_uri(folder)
        client = Registry(self.uri, "any").client
        experiment_id = client.create_experiment("test", artifact_location=(folder / "artifacts").as_uri())
        self.run_id = client.create_run(experiment_id).info.run_id
        self.model_uri = Registry(self.uri, "any").export(Brightness().eval(), self.run_id, CONTRACT)

    def registry(self, name: str, num_versions: int) -> Registry:
        """A registered model of its own with some versions of the exported model."""
        registry = Registry(self.uri, name)
        versions = [registry.register(self.model_uri, self.run_id, CONTRACT) for _ in range(num_versions)]
        assert versions == [str(number + 1) for number in range(num_versions)]
        return registry


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("registry"))


def champion(registry: Registry) -> str | None:
    version = registry.champion()
    return str(version.version) if version else None


def changed(**values: object) -> ModelContract:
    return CONTRACT.model_copy(update=values)


def never(model: nn.Module, held: ModelContract) -> float:
    raise AssertionError("figures that can be compared are not measured again")


@pytest.mark.parametrize(
    "values",
    [
        {"backbone": "narrow", "temporal_shift": True, "differences": True, "bidirectional": True},
        {"backbone": "narrow", "rnn": "none", "pooling": "attention", "grid": 2, "batch_norm": "frozen"},
        {"backbone": "resnet50", "num_layers": 2},
        {"backbone": "mobilenet_v3_small"},
        {"backbone": "efficientnet_b0"},
        {"backbone": "convnext_tiny"},
        {"backbone": "mc3_18", "rnn": "none", "pooling": "mean"},
        {"backbone": "r2plus1d_18", "rnn": "gru"},
    ],
    ids=lambda values: values["backbone"],
)
def test_an_exported_model_answers_like_the_original_at_any_batch_size(store: Store, values: dict[str, object]) -> None:
    config = ModelConfig(width=8, weights="none", hidden_size=8, **values)
    model = CnnRnn(config, num_classes=3, num_frames=CLIP.num_frames).eval()
    registry = Registry(store.uri, "answers")
    wanted = changed(view=ViewConfig(short_side_px=32, size_px=32))
    uri = registry.export(model, store.run_id, wanted)
    exported, held = registry.load(uri)
    assert held == wanted
    for size in (1, 2, 3, 7):
        clips = torch.randint(0, 256, (size, CLIP.num_frames, 3, 32, 32), dtype=torch.uint8)
        with torch.no_grad():
            assert torch.allclose(exported(clips), model(clips), atol=1e-4, rtol=0)
    signature = mlflow.models.get_model_info(uri).signature
    (inputs,) = signature.inputs.inputs
    assert (inputs.type, inputs.shape) == (np.dtype(np.uint8), (-1, CLIP.num_frames, 3, 32, 32))
    assert signature.outputs.inputs[0].shape == (-1, 3)


def test_an_export_does_not_end_its_run(store: Store) -> None:
    client = Registry(store.uri, "any").client
    run = client.get_run(store.run_id)
    assert (run.info.status, run.info.end_time) == ("RUNNING", None)
    model_id = store.model_uri.removeprefix("models:/")
    assert model_id in {output.model_id for output in run.outputs.model_outputs}  # linked, as by an active run
    model = client.get_logged_model(model_id)
    assert model.source_run_id == store.run_id
    assert model.experiment_id == run.info.experiment_id
    assert model.artifact_location.startswith(client.get_experiment(run.info.experiment_id).artifact_location)


def test_a_model_is_registered_from_its_own_store_whichever_was_used_last(store: Store, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(store_uri(tmp_path))
    assert Registry(store.uri, "elsewhere").register(store.model_uri, store.run_id, CONTRACT) == "1"


def test_mlflow_itself_scores_what_is_sent_as_json(store: Store) -> None:
    from mlflow.pyfunc.scoring_server import infer_and_parse_data  # here, since it warns when it is imported

    clips = np.random.default_rng(0).integers(0, 256, (2, CLIP.num_frames, 3, VIEW.size_px, VIEW.size_px), np.uint8)
    body = json.dumps({"inputs": clips.tolist()})  # of `mlflow models serve`, whose parser this is
    model = mlflow.pyfunc.load_model(store.model_uri)
    parsed = infer_and_parse_data(json.loads(body), model.metadata.get_input_schema())
    np.testing.assert_allclose(model.predict(parsed), Brightness()(torch.from_numpy(clips)), atol=1e-4)


class OtherInside(Brightness):
    """Answers differently once it is exported."""

    def forward(self, frames_BTCHW: Tensor) -> Tensor:
        logits: Tensor = super().forward(frames_BTCHW)
        return logits + 1 if torch.compiler.is_exporting() else logits


class NotANumber(Brightness):
    def forward(self, frames_BTCHW: Tensor) -> Tensor:
        logits: Tensor = super().forward(frames_BTCHW)
        return logits * float("nan")


@pytest.mark.parametrize(("model", "difference"), [(OtherInside(), "1"), (NotANumber(), "nan")])
def test_an_export_that_answers_differently_is_not_used(store: Store, model: nn.Module, difference: str) -> None:
    message = rf"the exported model's logits differ by {difference} at batch 1, more than 0.001: it was not registered"
    with pytest.raises(RuntimeError, match=message):
        Registry(store.uri, "differs").export(model.eval(), store.run_id, CONTRACT)


def test_a_pickled_model_is_refused(store: Store) -> None:
    mlflow.set_tracking_uri(store.uri)
    with mlflow.start_run(run_id=store.run_id):
        logged = mlflow.pytorch.log_model(
            Brightness(),
            name="pickled",
            serialization_format="pickle",
            pip_requirements=["torch"],
            metadata={"clipstream": CONTRACT.model_dump(mode="json")},
        )
    with pytest.raises(MlflowException, match=r"(?i)pickle"):
        Registry(store.uri, "pickled").load(logged.model_uri)


def test_a_version_carries_its_figure_its_code_and_its_contract(store: Store) -> None:
    registry = store.registry("carries", 1)
    version = registry.client.get_model_version("carries", "1")
    assert version.tags == {"val_metric": "macro_f1=0.5000", "code": "test"}
    assert version.run_id == store.run_id
    assert registry.load("models:/carries/1")[1] == CONTRACT


def test_no_registered_model_or_alias_is_no_champion(store: Store) -> None:
    assert Registry(store.uri, "unknown").champion() is None
    assert store.registry("unpromoted-at-first", 1).champion() is None


def test_the_first_version_becomes_champion(store: Store) -> None:
    registry = store.registry("first", 1)
    assert registry.promote_if_better("1", CONTRACT, never) == Promotion(moved=True, former=None)
    assert champion(registry) == "1"


@pytest.mark.parametrize(("value", "moves"), [(0.6, True), (0.5, False), (0.4, False), (float("nan"), False)])
def test_only_a_better_version_takes_over(store: Store, value: float, moves: bool) -> None:
    registry = store.registry(f"better-{value}", 2)
    registry.promote_if_better("1", CONTRACT, never)
    promotion = registry.promote_if_better("2", changed(val_metric=value), never)
    assert (promotion.moved, promotion.former_value) == (moves, 0.5)
    assert promotion.former is not None
    assert str(promotion.former.version) == "1"
    assert champion(registry) == ("2" if moves else "1")


@pytest.mark.parametrize("values", [{"val_sha256": "1" * 64}, {"select_by": "top1"}])
@pytest.mark.parametrize(("measured_value", "moves"), [(0.7, True), (0.8, False), (0.9, False)])
def test_a_champion_measured_otherwise_is_measured_first(
    store: Store, values: dict[str, str], measured_value: float, moves: bool
) -> None:
    registry = store.registry(f"measured-{measured_value}-{next(iter(values))}", 2)
    registry.promote_if_better("1", CONTRACT, never)
    measured = []

    def evaluate(model: nn.Module, held: ModelContract) -> float:
        white = torch.full((1, CLIP.num_frames, 3, VIEW.size_px, VIEW.size_px), 255, dtype=torch.uint8)
        measured.append((int(model(white).argmax()), held))
        return measured_value

    promotion = registry.promote_if_better("2", changed(val_metric=0.8, **values), evaluate)
    assert (promotion.moved, promotion.former_value) == (moves, measured_value)
    assert champion(registry) == ("2" if moves else "1")
    assert measured == [(CONTRACT.class_names.index("bright"), CONTRACT)]


@pytest.mark.parametrize(
    "values",
    [
        {"class_names": ("dark", "bright", "middle")},
        {"class_names": ("dark", "bright")},
        {"clip": ClipConfig(num_frames=8, short_side_px=32)},
        {"clip": ClipConfig(num_frames=4, short_side_px=64)},
    ],
)
def test_a_champion_of_other_classes_or_clips_stays(
    store: Store, values: dict[str, object], request: pytest.FixtureRequest
) -> None:
    registry = store.registry(request.node.callspec.id, 2)
    registry.promote_if_better("1", CONTRACT, never)
    promotion = registry.promote_if_better("2", changed(val_metric=0.99, **values), never)
    assert (promotion.moved, promotion.former_value) == (False, None)
    assert promotion.obstacle == "it has other classes or another clip contract"
    assert champion(registry) == "1"


def test_a_champion_whose_files_lie_elsewhere_stays(store: Store) -> None:
    registry = store.registry("elsewhere-files", 2)
    registry.promote_if_better("1", CONTRACT, never)
    model_id = store.model_uri.removeprefix("models:/")
    files = Path(registry.client.get_logged_model(model_id).artifact_location.removeprefix("file://"))
    away = files.rename(files.with_name("away"))
    try:
        promotion = registry.promote_if_better("2", changed(val_metric=0.99), never)
    finally:
        away.rename(files)
    assert champion(registry) == "1"
    assert not promotion.moved
    assert promotion.obstacle.startswith("its files cannot be read from this machine (")


def test_promote_moves_the_alias_forward_and_back(store: Store) -> None:
    registry = store.registry("promoted", 3)
    assert registry.promote("2") == f"promoted@{CHAMPION} is now version 2 (before: none)"
    assert registry.promote("3") == f"promoted@{CHAMPION} is now version 3 (before: version 2)"
    assert registry.promote("1") == f"promoted@{CHAMPION} is now version 1 (before: version 3)"
    assert champion(registry) == "1"


@pytest.mark.parametrize("version", ["9", "0", "latest", "-1"])
def test_an_unknown_version_is_not_promoted(store: Store, version: str) -> None:
    registry = store.registry(f"unpromoted-{version}", 1)
    registry.promote("1")
    message = f"unpromoted-{version} has no version {version} in {store.uri}: `python -m trainer ui` shows them all"
    with pytest.raises(UsageError, match=message):
        registry.promote(version)
    assert champion(registry) == "1"
    with pytest.raises(UsageError, match="gone has no version 1"):
        Registry(store.uri, "gone").promote("1")


def test_the_store_is_where_mlflow_ui_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSTREAM_HOME", str(tmp_path))
    assert tracking_uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri() == "http://tracking:5000"
