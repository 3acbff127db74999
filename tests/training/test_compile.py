"""A compiled CNN: the losses of the uncompiled run, few graphs, and nothing else of the run or the model changed."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.utils import counters
from torch.multiprocessing import start_processes
from torch.nn import functional
from torchvision.ops import StochasticDepth

from configs.model import ModelConfig
from configs.train import TrainConfig
from tests.support.registry import MLFLOW_WARNINGS
from tests.support.runs import (
    CONFIG,
    CPU,
    RECIPE,
    MakeSpec,
    assert_as_whole,
    curve,
    newest,
    put_weights,
    train,
)
from tests.support.training import project
from trainer.learning.ranks import Ranks
from trainer.model.cnn_rnn import CnnRnn
from trainer.stream.loader import PRELOADED
from trainer.worker.spec import JobSpec
from trainer.worker.training import Training

pytestmark = [*MLFLOW_WARNINGS, pytest.mark.usefixtures("one_thread")]

# Adam's first steps have the learning rate's size however small the gradient, so they show its rounding, too.
SLOW = CONFIG.optimizer.model_copy(update={"learning_rate": 1e-4})


@pytest.fixture(autouse=True)
def counted() -> Iterator[None]:
    """Torch counts the graphs of each test from 0, and uses none of another test's."""
    torch._dynamo.reset()
    counters.clear()
    yield
    assert not counters["graph_break"]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What torch compiles here is neither found from an earlier run of the tests nor left for a later one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


def num_graphs() -> int:
    return counters["stats"]["unique_graphs"]


def assert_close(spec: JobSpec, wanted: JobSpec) -> None:
    for name in ("train_loss", "val_loss", "test_loss", "grad_norm"):
        points = curve(wanted, name)
        assert curve(spec, name) == [(step, pytest.approx(value, rel=1e-3)) for step, value in points]
    for one in ("model", "optimizer"):
        assert newest(spec)[one].keys() == newest(wanted)[one].keys()


def gradient(model: CnnRnn, clips: Tensor) -> Tensor:
    functional.cross_entropy(model.train()(clips), torch.arange(len(clips)) % 4).backward()
    return torch.cat([one.grad.flatten().double() for one in model.parameters() if one.grad is not None])


def test_a_step_is_as_near_to_that_of_float64_as_the_uncompiled_one() -> None:
    """Maps of 40 px become 5 and 3 px wide, in whose last row and column torch 2.14 averages wrongly once compiled."""
    config = ModelConfig(backbone="narrow", width=8, weights="none", hidden_size=8, dropout=0.3)
    clips = torch.randint(256, (4, 3, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    models, gradients = [], []
    for kind in (CnnRnn.double, CnnRnn.channels_last, lambda model: model.channels_last().compiled()):
        torch.manual_seed(0)
        model = kind(CnnRnn(config, 4, 3))
        torch.manual_seed(1)
        gradients.append(gradient(model, clips))
        models.append(model)
    exact, plain, compiled = gradients
    assert (compiled - exact).norm() < 2 * (plain - exact).norm() + 1e-4 * exact.norm()
    assert models[2].state_dict().keys() == models[1].state_dict().keys()
    for name, value in models[2].state_dict().items():
        torch.testing.assert_close(value, models[1].state_dict()[name], rtol=1e-3, atol=1e-4)
    copied = copy.deepcopy(models[2]).double()
    copied.load_state_dict(models[0].state_dict())
    with torch.no_grad():
        torch.testing.assert_close(copied.eval()(clips), models[0].eval()(clips))  # its own weights, and still compiled


def test_chance_within_the_cnn_is_that_of_the_uncompiled_one() -> None:
    """Such as stochastic depth, by which an EfficientNet, whose 16 blocks take a minute to compile, skips blocks."""
    torch.manual_seed(0)
    model = CnnRnn(ModelConfig(backbone="narrow", width=8, weights="none", hidden_size=8), 4, 2).channels_last()
    model.backbone.append(StochasticDepth(0.5, "row"))
    clips = torch.randint(256, (4, 2, 3, 32, 32), dtype=torch.uint8)
    logits = []
    for seed, one in ((1, copy.deepcopy(model)), (2, copy.deepcopy(model)), (1, model.compiled())):
        torch.manual_seed(seed)
        with torch.no_grad():
            logits.append(one.train()(clips))
    torch.testing.assert_close(logits[2], logits[0], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(logits[1], logits[0], rtol=1e-2, atol=1e-3)


def test_a_compiled_run_is_the_uncompiled_one_also_where_it_is_resumed(make_spec: MakeSpec) -> None:
    model = CONFIG.model.model_copy(update={"batch_norm": "frozen"})
    values = {"model": model, "optimizer": SLOW}
    plain, whole, spec = (make_spec(**values, compile=compile) for compile in (False, True, True))
    train(plain)
    assert num_graphs() == 0
    outcome = train(whole)
    # Of batches of 4 the micro-batches have 3 clips and 1, evaluation has 4; three epochs compile nothing more.
    assert num_graphs() == 3
    assert_close(whole, plain)
    spec.stop_file.touch()
    for _ in range(2):  # each start traces its graphs again, which takes seconds
        assert train(spec).stopped
    spec.stop_file.unlink()
    assert_as_whole(spec, (whole, outcome), train(spec))


def test_stages_that_are_trained_later_are_compiled_anew_once(make_spec: MakeSpec) -> None:
    """Three epochs, each with other frozen stages, take three graphs; the evaluated average stays and takes one."""
    staged = RECIPE["model"].model_copy(update={"unfreeze_stage_epochs": 1})
    values = {"model": staged, "optimizer": SLOW.model_copy(update={"ema_decay": 0.8}), "micro_batch": 0}
    plain, spec = (put_weights(make_spec(**values, compile=compile)) for compile in (False, True))
    train(plain)
    train(spec)
    assert num_graphs() == 4
    assert_close(spec, plain)


def train_rank(rank: int, folder: Path, spec: JobSpec) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    Training(spec, Ranks(rank, 2, dist.group.WORLD), CPU).run()
    (folder / f"{rank}").write_text(str(num_graphs()))
    dist.destroy_process_group()


def test_ranks_compile_what_ddp_wraps(make_spec: MakeSpec, tmp_path: Path) -> None:
    model = CONFIG.model.model_copy(update={"batch_norm": "frozen", "dropout": 0.0})
    plain, spec = (make_spec(optimizer=SLOW, model=model, compile=compile) for compile in (False, True))
    train(plain)
    get_context("forkserver").set_forkserver_preload(PRELOADED)
    start_processes(train_rank, args=(tmp_path, replace(spec, num_workers=2)), nprocs=2, start_method="forkserver")
    assert_close(spec, plain)
    assert [(tmp_path / f"{rank}").read_text() for rank in range(2)] == ["2", "2"]  # shares of 2, in two modes


def test_what_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compile cannot see through model.batch_norm \(sync\): leave it off"):
        TrainConfig(compile=True, model=ModelConfig(batch_norm="sync"))


@pytest.mark.integration
def test_without_a_compiler_it_is_refused_at_once(packed: Path, tmp_path: Path) -> None:
    with project(tmp_path, packed) as made:
        refused = made.train("--compile", CXX="/nowhere/c++")
    assert refused.code == 2
    assert "compile needs a C++ compiler, but neither g++ nor the program that CXX names is one: install" in refused.log
    assert not (made.home / "mlflow.db").exists()
