"""One video reaches the model in two ways: packed and evaluated, and served over HTTP. The results must agree."""

import base64
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from configs.model import ModelConfig
from configs.serve import ServeConfig
from configs.train import CHAMPION, TrainConfig, ViewConfig
from packer.__main__ import main
from packer.shards.manifest import read_manifest, read_samples
from packer.video.jpeg import decode_frames
from packer.video.sampling import frame_indices
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from tests.support.serving import ask, served
from tests.support.videos import write_video
from trainer.learning.ranks import Ranks
from trainer.model.cnn_rnn import CnnRnn
from trainer.model.contract import ModelContract
from trainer.stream.index import SampleIndex
from trainer.tracking.registry import Registry
from trainer.worker.parts import eval_loader
from trainer.worker.spec import JobSpec

pytestmark = [pytest.mark.integration, *MLFLOW_WARNINGS]

NUM_PACKED = 8
# Fewer frames than were packed: both ways must pick the same ones.
VIEW = ViewConfig(short_side_px=48, size_px=40, num_frames=6)
PICKED = frame_indices(NUM_PACKED, 6)
MODEL = ModelConfig(backbone="narrow", width=8, weights="none", temporal_shift=True, hidden_size=16)
REAL = "known/hmdb51/*wave*"


@dataclass(frozen=True)
class Packed:
    """One packed sample: its video, the JPEGs of its tar that the model reads, and what evaluation makes of them."""

    video: Path
    jpegs: list[bytes]
    clip_TCHW: torch.Tensor


def textured(seed: int, shift: int) -> list[NDArray[np.uint8]]:
    """Pictures of a soft coloured texture that drifts sideways: camera-like content, unlike flat shapes."""
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(30, 225, (9, 16, 1)) + generator.uniform(-30, 30, (9, 16, 3))
    rows, columns = np.linspace(0, 8, 90), np.linspace(0, 15, 160)
    tall = np.stack([[np.interp(rows, range(9), coarse[:, x, c]) for x in range(16)] for c in range(3)])
    wide = np.stack([[np.interp(columns, range(16), tall[c, :, y]) for y in range(90)] for c in range(3)])
    picture = wide.transpose(1, 2, 0).astype(np.uint8)
    return [np.roll(picture, shift * number, axis=1) for number in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds data, its shards, and a registered model in an MLflow store."""
    folder = tmp_path_factory.mktemp("agreement")
    for class_name, shift in {"left": -4, "right": 4}.items():
        (folder / "data" / class_name).mkdir(parents=True)
        for number in range(4):
            write_video(folder / "data" / class_name / f"{number}.mp4", textured(number, shift))
    for path in Path(os.environ.get("CLIPSTREAM_TEST_DATA", "absent")).glob(REAL):
        shutil.copy2(path, folder / "data" / "left")
    options = ["--workers=1", f"--clip.num-frames={NUM_PACKED}", "--clip.short-side-px=48"]
    assert main([str(folder / "data"), str(folder / "shards"), *options]) == 0
    return folder


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Packed]:
    """Every packed sample, read as the trainer's evaluation reads it."""
    found = []
    config = TrainConfig(view=VIEW, global_batch=3, loader_workers=0)
    spec = JobSpec(config, folder / "shards", folder, run_id="", tracking_uri="", num_workers=1)
    for split in ("train", "val", "test"):
        index = SampleIndex.open(folder / "shards", split)
        reader = index.reader()
        sources = read_samples(folder / "shards", split, columns=["source"])["source"].to_pylist()
        for batch in eval_loader(spec, split, Ranks()):
            for clip, row in zip(batch.clips, batch.rows, strict=True):
                if row.weight:
                    stored = index.read(reader, row.index)
                    jpegs = [stored[f"{number:03d}.jpg"] for number in PICKED]
                    found.append(Packed(folder / "data" / sources[row.index], jpegs, clip))
        reader.close()
    return found


@pytest.fixture(scope="module")
def eager() -> CnnRnn:
    torch.manual_seed(0)
    model = CnnRnn(MODEL, 2, len(PICKED)).eval()
    with torch.no_grad():
        model.head.weight.mul_(30)  # answers that differ between videos, as a trained model's do
    return model


@pytest.fixture(scope="module")
def exported(folder: Path, eager: CnnRnn) -> torch.nn.Module:
    """The model as a server loads it, registered as champion."""
    manifest = read_manifest(folder / "shards")
    contract = ModelContract(
        class_names=manifest.class_names,
        clip=manifest.clip,
        view=VIEW,
        manifest_sha256="0" * 64,
        val_sha256="0" * 64,
        select_by="macro_f1",
        val_metric=0.5,
        code_version="test",
    )
    registry = Registry(store_uri(folder), "clipstream")
    experiment = registry.client.create_experiment("test", artifact_location=(folder / "artifacts").as_uri())
    run_id = registry.client.create_run(experiment).info.run_id
    version = registry.register(registry.export(eager, run_id, contract), run_id, contract)
    registry.client.set_registered_model_alias("clipstream", CHAMPION, version)
    return registry.load(f"models:/clipstream@{CHAMPION}")[0]


@pytest.fixture(scope="module")
def port(folder: Path, exported: torch.nn.Module) -> Iterator[int]:
    values = {"tracking_uri": store_uri(folder), "allow_unauthenticated": True, "decoder_processes": 1}
    with served(ServeConfig.model_validate(values)) as port:
        yield port


@torch.no_grad()
def logits(model: torch.nn.Module, *samples: Packed) -> torch.Tensor:
    found: torch.Tensor = model(torch.stack([sample.clip_TCHW for sample in samples]))
    return found


def test_the_served_clip_is_the_packed_one_and_so_is_the_answer(
    port: int, samples: list[Packed], eager: CnnRnn
) -> None:
    answers = []
    for sample in samples:
        reply = ask(port, "POST", "/v1/predict?frames=true&top_k=2", sample.video.read_bytes())
        assert reply.status == 200
        # The JPEGs that the replica decoded are the tar's, byte for byte: all that follows is the same code.
        assert len(reply.json["clip"]["frame_indices"]) == len(PICKED)
        assert [base64.b64decode(frame) for frame in reply.json["frames"]] == sample.jpegs
        probabilities = {one["class"]: one["probability"] for one in reply.json["predictions"]}
        wanted = torch.softmax(logits(eager, sample)[0], 0)
        assert [probabilities["left"], probabilities["right"]] == pytest.approx(wanted.tolist(), abs=1e-4)
        answers.append(probabilities["left"])
    assert np.ptp(answers) > 0.01


def test_the_exported_model_answers_as_the_eager_one_alone_and_in_batches(
    samples: list[Packed], eager: CnnRnn, exported: torch.nn.Module
) -> None:
    alone = torch.cat([logits(exported, sample) for sample in samples])
    torch.testing.assert_close(alone, logits(eager, *samples), atol=1e-4, rtol=0)
    for size in (2, 3, len(samples)):
        torch.testing.assert_close(logits(exported, *samples[:size]), alone[:size], atol=1e-4, rtol=0)
        turned = logits(exported, *reversed(samples[:size])).flip(0)
        torch.testing.assert_close(turned, alone[:size], atol=1e-4, rtol=0)


def test_the_order_of_the_frames_changes_the_answer(samples: list[Packed], exported: torch.nn.Module) -> None:
    for sample in samples:
        backwards = Packed(sample.video, sample.jpegs, sample.clip_TCHW.flip(0))
        assert (logits(exported, sample) - logits(exported, backwards)).abs().max() > 1e-3


def test_jpeg_is_all_that_a_packed_frame_lost(samples: list[Packed]) -> None:
    """Against the decoded frames, shrunk in the same way to RGB and never compressed.

    Quality 90 at 4:2:0 leaves 33 to 38 dB on these pictures. A wrong frame, colour matrix or range leaves less: the
    neighbouring frame of the made videos gives 21 dB.
    """
    for sample in samples:
        stored = decode_frames(sample.jpegs).astype(float)
        height_px, width_px = stored.shape[1:3]
        with av.open(str(sample.video), metadata_errors="ignore") as container:
            frames = [
                frame.to_ndarray(format="rgb24", height=height_px, width=width_px, interpolation="AREA")
                for frame in container.decode(video=0)
            ]
        packed = frame_indices(len(frames), NUM_PACKED)
        wanted = np.stack([frames[packed[number]] for number in PICKED])
        assert psnr_db(stored, wanted) > 30, sample.video.name


def psnr_db(got: NDArray[np.float64], wanted: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((got - wanted) ** 2)))
