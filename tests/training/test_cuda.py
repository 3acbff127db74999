"""What only CUDA runs: its precision, layout, pinned memory, and batch norm over ranks. The CPU's run is the oracle."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing import start_processes

from configs.model import ModelConfig
from tests.support.registry import MLFLOW_WARNINGS
from tests.support.runs import CONFIG, CPU, NUM_STEPS, MakeSpec, curve
from trainer.learning.learner import Learner, Loss
from trainer.learning.ranks import Ranks
from trainer.model.cnn_rnn import CnnRnn
from trainer.schedule.rows import Row
from trainer.stream.batch import Batch
from trainer.stream.loader import PRELOADED
from trainer.stream.prefetch import on_device
from trainer.worker.parts import open_index, train_loader
from trainer.worker.spec import JobSpec
from trainer.worker.training import Training

pytestmark = [
    pytest.mark.needs_cuda,
    *MLFLOW_WARNINGS,
    pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision:DeprecationWarning"),
]

MODEL = ModelConfig(backbone="narrow", width=8, weights="none", hidden_size=8, dropout=0.0)


@pytest.fixture(autouse=True)
def cuda() -> Iterator[torch.device]:
    """The device, with float32 that is float32, so that what differs from the CPU is the order of sums."""
    if not torch.cuda.is_available():
        if os.environ.get("REQUIRE_CUDA") == "1":
            pytest.fail("there is no CUDA device")
        pytest.skip("there is no CUDA device")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield torch.device("cuda")


def train_steps(spec: JobSpec, device: torch.device, ranks: Ranks | None = None) -> list[float]:
    Training(spec, ranks or Ranks(), device).run()
    return [value for _, value in curve(spec, "train_loss")]


def train_rank(rank: int, folder: Path, spec: JobSpec) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        train_steps(spec, torch.device("cuda"), Ranks(rank, 2))
    dist.destroy_process_group()


def test_a_run_is_the_run_on_the_cpu_also_where_it_is_stopped_and_resumed(
    make_spec: MakeSpec, cuda: torch.device
) -> None:
    wanted = train_steps(make_spec(model=MODEL, precision="fp32"), CPU)
    assert len(wanted) == NUM_STEPS
    spec = make_spec(model=MODEL, precision="fp32")
    spec.stop_file.touch()
    for _ in range(5):
        assert Training(spec, Ranks(), cuda).run().stopped
    spec.stop_file.unlink()
    assert train_steps(spec, cuda) == pytest.approx(wanted, rel=1e-2)


def test_batch_norm_over_two_ranks_is_that_of_one(make_spec: MakeSpec, cuda: torch.device, tmp_path: Path) -> None:
    values = {"micro_batch": 0, "precision": "fp32"}
    wanted = train_steps(make_spec(model=MODEL, **values), cuda)
    spec = replace(make_spec(model=MODEL.model_copy(update={"batch_norm": "sync"}), **values), num_workers=2)
    get_context("forkserver").set_forkserver_preload(PRELOADED)
    start_processes(train_rank, args=(tmp_path, spec), nprocs=2, start_method="forkserver")
    assert [value for _, value in curve(spec, "train_loss")] == pytest.approx(wanted, rel=1e-2)


def step(model: nn.Module, batch: Batch, device: torch.device, dtype: torch.dtype | None) -> tuple[float, Tensor]:
    """Returns the loss of a step that changes nothing, and its gradient in one vector on the CPU."""
    learner = Learner(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        Loss(),
        Ranks(),
        device,
        max_grad_norm=1e9,
        autocast_dtype=dtype,
    )
    learner.step(batch, partial(learner.weight_sum, batch), learning_rate=0.0)
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return learner.last_loss, torch.cat(gradients).float().cpu()


@pytest.fixture
def batch(make_spec: MakeSpec) -> Batch:
    spec = make_spec(global_batch=16)
    return next(iter(train_loader(spec.config, open_index(spec, "train"), 0, Ranks(), CPU)[1]))


def check_rounding(batch: Batch, cuda: torch.device, model: CnnRnn, change: Callable[[CnnRnn], CnnRnn]) -> None:
    """Checks that a change of how a model computes, and then bf16, change a step by rounding alone."""
    loss, gradient = step(model, batch, cuda, None)
    last_loss, last = step(change(model), batch, cuda, None)
    assert last_loss == pytest.approx(loss, rel=1e-4)
    assert torch.cosine_similarity(last, gradient, dim=0) > 0.999
    rough_loss, rough = step(model, batch, cuda, torch.bfloat16)
    assert rough_loss == pytest.approx(loss, rel=0.05)
    assert torch.cosine_similarity(rough, gradient, dim=0) > 0.95


@pytest.mark.parametrize("backbone", ["narrow", "resnet18", "r3d_18"])
def test_bf16_and_channels_last_change_a_step_by_rounding_alone(
    batch: Batch, cuda: torch.device, backbone: str
) -> None:
    torch.manual_seed(0)
    model = CnnRnn(MODEL.model_copy(update={"backbone": backbone}), 2, 4).to(cuda)
    check_rounding(batch, cuda, model, CnnRnn.channels_last)


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_batches_are_pinned_and_arrive_as_they_were(
    make_spec: MakeSpec, cuda: torch.device, loader_workers: int
) -> None:
    spec = make_spec(loader_workers=loader_workers, augment=CONFIG.augment.model_copy(update={"mixup": 0.5}))
    for one in train_loader(spec.config, open_index(spec, "train"), 0, Ranks(), CPU)[1]:
        tensors = [one.clips, one.labels, one.weights]
        assert all(tensor.is_pinned() for tensor in tensors)
        moved = [tensor.to(cuda, non_blocking=True) for tensor in tensors]
        assert all(torch.equal(there.cpu(), here) for there, here in zip(moved, tensors, strict=True))


@pytest.mark.parametrize("backbone", ["narrow", "resnet18"])
def test_compiling_changes_a_step_by_rounding_alone(batch: Batch, cuda: torch.device, backbone: str) -> None:
    torch.manual_seed(0)
    model = CnnRnn(MODEL.model_copy(update={"backbone": backbone}), 2, 4).to(cuda).channels_last()
    check_rounding(batch, cuda, model, CnnRnn.compiled)


def test_a_compiled_run_is_the_run_on_the_cpu(make_spec: MakeSpec, cuda: torch.device) -> None:
    wanted = train_steps(make_spec(model=MODEL, precision="fp32"), CPU)
    spec = make_spec(model=MODEL, precision="fp32", compile=True)
    assert train_steps(spec, cuda) == pytest.approx(wanted, rel=1e-2)


def test_batches_copied_ahead_are_whole_when_they_are_used(cuda: torch.device) -> None:
    """Each is read only after long work on the device, while later ones are copied into memory that was freed."""
    size, work = 16, torch.randn(4096, 4096, device=cuda)
    hosts = [
        Batch(
            step=number,
            clips=torch.full((size, 16, 3, 112, 112), number, dtype=torch.uint8).pin_memory(),
            labels=torch.zeros(size, dtype=torch.int64),
            weights=torch.ones(size),
            rows=tuple(Row(0, place, 1.0) for place in range(size)),
            errors=(),
        )
        for number in range(20)
    ]
    ends = []
    for one in on_device(hosts, cuda):
        assert one.clips.is_cuda
        for _ in range(10):
            work = (work @ work).clamp(-1, 1)
        ends.append(torch.stack([one.clips.amin(), one.clips.amax()]))
        del one  # its memory may be used again, though the device has yet to read it
    assert torch.stack(ends).tolist() == [[number, number] for number in range(20)]


def test_clips_decoded_on_the_device_are_the_clips(make_spec: MakeSpec, cuda: torch.device) -> None:
    """Samples, order and views are the same; nvJPEG rounds otherwise and enlarges colours its own way."""
    changes = {"horizontal_flip": True, "min_scale": 0.6, "contrast": 0.2, "mixup": 0.5}
    augment = CONFIG.augment.model_copy(update=changes)
    specs = [make_spec(augment=augment, decode_on=decode_on) for decode_on in ("loader", "device")]
    loaders = [train_loader(one.config, open_index(one, "train"), 0, Ranks(), cuda)[1] for one in specs]
    differences = []
    for one, other in zip(*(on_device(loader, cuda) for loader in loaders), strict=True):
        assert (one.rows, one.errors) == (other.rows, other.errors)
        for (labels, weights), (other_labels, other_weights) in zip(one.targets, other.targets, strict=True):
            assert torch.equal(labels, other_labels)
            assert torch.equal(weights, other_weights)
        assert other.clips.is_cuda
        differences.append((one.clips.int() - other.clips.int()).abs().float())
    everything = torch.cat(differences)
    print(f"nvJPEG against libjpeg-turbo: mean {everything.mean():.3f}, largest {everything.max():.0f} of 255")
    assert everything.mean() < 2


def test_a_run_that_decodes_on_the_device_is_near_the_run_on_the_cpu(make_spec: MakeSpec, cuda: torch.device) -> None:
    wanted = train_steps(make_spec(model=MODEL, precision="fp32"), CPU)
    spec = make_spec(model=MODEL, precision="fp32", decode_on="device")
    assert train_steps(spec, cuda)[:3] == pytest.approx(wanted[:3], rel=0.1)
