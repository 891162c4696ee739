"""The examples, against loops written out by hand, and the pages on extending, as a stranger would use them."""

import importlib
import inspect
import os
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from copy import deepcopy
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import sharp.test_oracles as oracles
import torch
import torch.nn.functional as F
import yaml
from cases import COUNTS, close, closure, data, gradient, mlp
from small import different, same_weights
from torch import nn

from flattail import SSESAM, FriendlySAM, SharpnessAware, __version__
from flattail.experiment import run
from flattail.recipe import from_tree, read
from flattail.runs import read as finished
from flattail.sharp import SAM

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NEEDS = {"lightning_module": "lightning", "hf_trainer": "transformers"}  # of the extra `dev`


def example(name, run_name="example"):
    """What an example defines; as "__main__" it also does what it shows."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed: pip install 'flattail[dev]'")
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=run_name)


@pytest.fixture
def double():
    """Examples in double precision, so that they may be compared to the last digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def ran():
    """What an example defines and says when it runs as it stands; each runs once."""
    kept = {}

    def once(name):
        if name not in kept:
            torch.set_num_threads(1)
            with redirect_stdout(StringIO()) as said:
                kept[name] = example(name, "__main__"), said
            kept[name] = kept[name][0], said.getvalue()
        return kept[name]

    return once


# -- all of them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_they_run_as_they_stand_and_say_that_they_act(path, ran):
    assert len(path.read_text().splitlines()) < 80
    _, said = ran(path.stem)
    assert "|e|/|w|" in said
    assert "vacuous" not in said and "nan" not in said


# -- drop_in -----------------------------------------------------------------------------------------------


def test_the_drop_in_is_the_papers_loop(double, monkeypatch):
    """Five steps of the example, and of the algorithm by explicit passes, from the same noise."""
    source = (EXAMPLES / "drop_in.py").read_text()
    assert "steps = 300" in source
    names = {}
    exec(compile(source.replace("steps = 300", "steps = 5").replace("float32", "float64"), "drop_in", "exec"), names)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    tail = names["counts"] < 30
    monkeypatch.setattr(oracles, "N", torch.where(tail, 1.0, 1000.0))
    step_of = oracles.ssesam(0.7, epochs=5, rho_head=0.05, rho_tail=0.2)
    for step in range(5):
        batch = names["rows"][torch.randint(len(names["rows"]), (64,))]
        x, y = names["x"][batch], names["y"][batch]
        grads = step_of(model, lambda x=x, y=y: F.cross_entropy(model(x), y, reduction="none"), y, step / 5)
        for p, g in zip(model.parameters(), grads, strict=True):
            p.grad = g
        optimizer.step()
    for a, b in zip(names["model"].parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_drop_in_learns_the_tail(ran):
    names, said = ran("drop_in")
    assert names["loss"] < 0.1
    assert names["right"][:6].mean() > 0.8 and names["right"][6:].mean() > 0.6
    assert "active in 70 % of steps" in said  # the head, until the switch


# -- custom_method -----------------------------------------------------------------------------------------


def test_two_groups_are_ssesam_and_one_is_sam():
    method, model, (x, y) = example("custom_method")["GroupSAM"], mlp(), data()
    two = gradient(model, method(radii=(0.3, 0.1), borders=(100,)), x, y)
    close(two, gradient(model, SSESAM(head_rho=0.1, tail_rho=0.3, switch=1.0, eta=100), x, y), 1e-13)
    close(gradient(model, method(radii=(0.2,), borders=()), x, y), gradient(model, SAM(rho=0.2), x, y), 1e-13)
    with pytest.raises(ValueError, match="1 borders need 2 radii, not 3"):
        method(borders=(20,))


def test_the_custom_method_enters_a_recipe_without_registration(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    method = {"name": "examples.custom_method:GroupSAM", "borders": [20, 100]}
    recipe = from_tree({"data": "digits-lt", "model": "resnet8", "stages": [{"epochs": 1, "method": method}]})
    assert recipe.stages[0].method.radii == (0.2, 0.1, 0.05)


# -- class_hessian -----------------------------------------------------------------------------------------


def test_the_class_hessian_is_that_of_each_class(ran):
    """The exact largest and smallest eigenvalues of a class, by products with all of its images in one batch."""
    names, _ = ran("class_hessian")
    found, model = names["found"], names["model"].eval()
    assert list(found["name"]) == ["0", "1", "2", "all"] and bool(np.all(found["converged"]))
    x, y = names["data"].tensors
    weights = [p for n, p in model.named_parameters() if re.search("conv5|fc", n)]
    rare = x[y == 2]  # eight images: all of them are in the estimate
    slope = torch.autograd.grad(F.cross_entropy(model(rare), y[y == 2]), weights, create_graph=True)

    def product(v):
        return torch.autograd.grad(slope, weights, v, retain_graph=True)

    torch.manual_seed(0)
    v = [torch.randn_like(p) for p in weights]
    for _ in range(40):
        size = torch.sqrt(sum((a**2).sum() for a in v))
        v = product([a / size for a in v])
    top = torch.sqrt(sum((a**2).sum() for a in v)).item()
    assert found["lambda_max"][2] == pytest.approx(top, rel=1e-3)
    assert all(low < 0 < high for low, high in zip(found["lambda_min"], found["lambda_max"], strict=True))
    assert min(names["flat"]["gap"]) > 0


# -- Lightning ---------------------------------------------------------------------------------------------


def net():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, len(COUNTS))).double()


def ten():
    """Ten samples: micro-batches of 4, 4 and 2, which make a step."""
    return data(n=10)


def by_hand(model, epochs, *, rho, clip):
    """Whole batches of ten: SAM by two passes, clipping, SGD with momentum, a cosine."""
    x, y = ten()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    losses = closure(model, x, y)
    for _ in range(epochs):
        for p, e in zip(model.parameters(), oracles.passes(model, losses().mean()), strict=True):
            p.grad = e
        grads = [p.grad for p in model.parameters()]
        moved = oracles.at(model, oracles.up(grads, rho), lambda: oracles.passes(model, losses().mean()))
        for p, g in zip(model.parameters(), moved, strict=True):
            p.grad = g
        assert nn.utils.clip_grad_norm_(model.parameters(), clip) > clip, "clipping should be at work"
        optimizer.step()
        schedule.step()
    return model


@pytest.fixture
def lit(tmp_path):
    """Train the example's module for some epochs; returns it."""
    names = example("lightning_module")
    lightning = names["lightning"]

    def train(start, method, *, epochs, steps=None, fields=None, batch=4, resume=None, keep=False, **how):
        x, y = ten()
        x = x.to(start[0].weight)
        module = names["SharpModule"](start, method, COUNTS, steps=steps or epochs, **(fields or {}))
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", enable_checkpointing=False, default_root_dir=tmp_path, **quiet, **how
        )
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=batch)
        trainer.fit(module, loader, ckpt_path=resume)
        if keep:
            trainer.save_checkpoint(tmp_path / "half.ckpt")
        return module

    return train


def test_lightning_accumulates_clips_and_schedules_as_one_batch_does(lit):
    """Micro-batches of 4, 4 and 2 are one batch of ten: to the last digits, though they are of different sizes."""
    start = net()
    expected = by_hand(deepcopy(start), 5, rho=0.3, clip=0.2)
    module = lit(start, SAM(rho=0.3), epochs=5, fields={"accumulate": 3, "clip": 0.2})
    assert module.global_step == 5
    for a, b in zip(module.net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_lightning_goes_on_as_if_it_had_not_stopped(lit, tmp_path):
    """Bit for bit, for a method that remembers."""
    start, how = net(), {"steps": 12}
    whole = lit(deepcopy(start), FriendlySAM(rho=0.3), epochs=4, **how)
    lit(deepcopy(start), FriendlySAM(rho=0.3), epochs=2, keep=True, **how)
    resumed = lit(deepcopy(start), FriendlySAM(rho=0.3), epochs=4, resume=tmp_path / "half.ckpt", **how)
    same_weights(whole.net, resumed.net)
    for a, b in zip(whole.flat.memory.values(), resumed.flat.memory.values(), strict=True):
        assert all(torch.equal(s, t) for s, t in zip(a, b, strict=True)) if isinstance(a, list) else torch.equal(a, b)


def test_lightning_in_bf16_looks_from_elsewhere(lit):
    """One autocast region around the whole step: the second pass must not see the first one's cast weights."""
    module = lit(net().float(), SAM(rho=0.5), epochs=2, batch=10, precision="bf16-mixed")
    assert float(module.flat.gaps["flat"]) > 1e-3
    assert next(module.net.parameters()).dtype == torch.float32


def test_lightning_with_a_scaler(lit):
    """`16-mixed` on a GPU has one; on the CPU it is given: unscaled, clipped, stepped, updated."""
    from lightning.pytorch.plugins.precision import MixedPrecision

    start = net()
    expected = by_hand(deepcopy(start), 3, rho=0.3, clip=0.2)
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
    scaled.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
    module = lit(start, SAM(rho=0.3), epochs=3, batch=10, fields={"clip": 0.2}, plugins=[scaled])
    for a, b in zip(module.net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# -- Hugging Face ------------------------------------------------------------------------------------------


@pytest.fixture
def hugged(tmp_path):
    """Train the example's trainer; returns it and its model."""
    names = example("hf_trainer")

    class Answers(nn.Module):
        """A network that answers as transformers' classifiers do; its own loss is not to be asked for."""

        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x, labels=None):
            assert labels is None, "the mean loss of the model is of no use"
            return type("Output", (), {"logits": self.net(x)})

    def train(method, *, resume=None, **how):
        torch.manual_seed(0)
        x, y = ten()
        model = Answers()
        start = deepcopy(model.net)
        settings = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "disable_tqdm": True}
        settings |= {"per_device_train_batch_size": 4, "learning_rate": 0.1, "optim": "sgd", "save_strategy": "no"}
        trainer = names["SharpTrainer"](
            model,
            names["TrainingArguments"](**(settings | how)),
            train_dataset=[{"x": a, "labels": b} for a, b in zip(x, y, strict=True)],
            method=method,
            counts=COUNTS,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer, start

    return train


def test_the_trainer_accumulates_and_clips_as_one_batch_does(hugged):
    """Micro-batches of 4, 4 and 2, shuffled: one batch of ten, to the last digits."""
    how = {"gradient_accumulation_steps": 3, "max_grad_norm": 0.2, "num_train_epochs": 5, "weight_decay": 0.0}
    how |= {"optim_args": "momentum=0.9", "lr_scheduler_type": "cosine"}
    trainer, start = hugged(SAM(rho=0.3), **how)
    expected = by_hand(start, 5, rho=0.3, clip=0.2)
    assert trainer.state.global_step == 5
    for a, b in zip(trainer.model.net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_trainer_logs_the_plain_loss_of_a_step(hugged):
    trainer, start = hugged(SAM(rho=0.3), gradient_accumulation_steps=3, max_steps=1, logging_steps=1)
    x, y = ten()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(F.cross_entropy(start(x), y).item(), abs=1e-6)


def test_the_trainer_goes_on_as_if_it_had_not_stopped(hugged, tmp_path):
    how = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "cosine"}
    whole, _ = hugged(FriendlySAM(rho=0.3), **how)
    resumed, start = hugged(FriendlySAM(rho=0.3), resume=str(tmp_path / "checkpoint-3"), **how)
    assert (tmp_path / "checkpoint-3" / "flat.pt").exists()
    assert resumed.flat.report.steps == 5
    same_weights(whole.model.net, resumed.model.net)
    assert different(start, resumed.model.net)


# -- two processes -----------------------------------------------------------------------------------------

TWO = """
import sys
from copy import deepcopy
sys.path[:0] = [{tests!r}]
import test_examples as here
import torch
import torch.distributed as dist
from flattail import SAM
from flattail.sharp import SharpnessAware
from torch import nn
import torch.nn.functional as F
from transformers.modeling_outputs import ImageClassifierOutput

which, seen = sys.argv[1], []
x, y = here.data(n=12)
start = here.net()
for p in start.parameters():
    nn.init.normal_(p, generator=torch.Generator().manual_seed(p.numel()))
trained = deepcopy(start)


class Answers(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = trained

    def forward(self, x, labels=None):
        return ImageClassifierOutput(logits=self.net(x))


def rows(batch):
    return torch.stack([(x == row).all(1).nonzero()[0, 0] for row in batch])


if which == "lightning_module":
    names = here.example(which)
    class Seen(names["SharpModule"]):
        def training_step(self, batch, index):
            seen.append(rows(batch[0]))
            return super().training_step(batch, index)
    module = Seen(trained, SAM(rho=0.3), here.COUNTS, steps=10**9, clip=0.2)
    trainer = names["lightning"].Trainer(max_epochs=3, accelerator="cpu", devices=2, strategy="ddp", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=6))
else:
    names = here.example(which)
    class Seen(names["SharpTrainer"]):
        def training_step(self, model, inputs, num_items_in_batch=None):
            seen.append(rows(inputs["x"]))
            return super().training_step(model, inputs, num_items_in_batch)
    args = names["TrainingArguments"](output_dir={folder!r}, use_cpu=True, ddp_backend="gloo", report_to="none",
        disable_tqdm=True, per_device_train_batch_size=2, gradient_accumulation_steps=3, learning_rate=0.1, optim="sgd",
        optim_args="momentum=0.9", save_strategy="no", num_train_epochs=3, lr_scheduler_type="constant",
        max_grad_norm=0.2)
    images = [dict(x=a, labels=b) for a, b in zip(x, y)]
    Seen(Answers(), args, train_dataset=images, method=SAM(rho=0.3), counts=here.COUNTS).train()
    seen = [torch.cat(seen[i : i + 3]) for i in (0, 3, 6)]

assert dist.get_world_size() == 2
mine = torch.stack(seen)
both = [torch.empty_like(mine) for _ in range(2)]
dist.all_gather(both, mine)
assert len(both[0]) == 3
optimizer = torch.optim.SGD(start.parameters(), lr=0.1, momentum=0.9)
for step in range(3):
    optimizer.zero_grad()
    for part in both:
        flat = SharpnessAware(start, SAM(rho=0.3))
        flat.backward(lambda: F.cross_entropy(start(x[part[step]]), y[part[step]], reduction="none"), y[part[step]])
    for p in start.parameters():
        p.grad.div_(2)
    assert nn.utils.clip_grad_norm_(start.parameters(), 0.2) > 0.2
    optimizer.step()
for a, b in zip(start.parameters(), trained.parameters()):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
print("equal on", dist.get_rank())
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_on_two_processes_each_climbs_by_its_own_batch_and_gradients_are_averaged(name, tmp_path):
    pytest.importorskip(NEEDS[name])
    script = tmp_path / "two.py"
    script.write_text(TWO.format(tests=str(ROOT / "tests"), folder=str(tmp_path)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script), name]
    done = subprocess.run(
        launch, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal on 0" in done.stdout and "equal on 1" in done.stdout


# -- timm --------------------------------------------------------------------------------------------------


def timm_epoch(model, batches, method, *, mixup, scaler=None, amp=None):
    """An epoch of the example on a model; returns its gradient-free parts."""
    names = example("timm_script")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler, _ = names["create_scheduler_v2"](optimizer, "cosine", num_epochs=2)
    flat, ema = SharpnessAware(model, method, COUNTS), names["ModelEmaV3"](model, decay=0.5)
    scaler = scaler or names["SharpScaler"]("cpu")
    how = {"amp": amp} if amp else {}
    names["train_one_epoch"](0, 1, model, batches, optimizer, flat, scaler, scheduler, ema, mixup, **how)
    return flat, ema, scaler


def soft(x, y):
    return x, F.one_hot(y, len(COUNTS)).to(x)


def test_timms_step_is_two_passes_clipping_and_an_average():
    batches = [data(seed=s, n=12) for s in range(4)]
    model, hand = mlp(), mlp()
    _, ema, _ = timm_epoch(model, batches, SAM(rho=0.3), mixup=soft)

    optimizer, average = torch.optim.SGD(hand.parameters(), lr=0.1, momentum=0.9), deepcopy(hand)
    for step, (x, y) in enumerate(batches):
        for p, g in zip(hand.parameters(), oracles.sam(hand, closure(hand, x, y), y, 0.0), strict=True):
            p.grad = g
        nn.utils.clip_grad_norm_(hand.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():  # timm's average begins with its third step
            for a, p in zip(average.parameters(), hand.parameters(), strict=True):
                a.lerp_(p, 0.5 if step > 1 else 1.0)
    for one, other in ((model, hand), (ema.module, average)):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_timms_mixup_goes_by_the_first_label(double):
    """Soft targets in the loss, hard labels in the terms: the tail's share of the batch is that of the labels."""
    from timm.data import Mixup

    np.random.seed(0)
    x, y = data(n=12)
    model = mlp()
    mix = Mixup(mixup_alpha=1.0, num_classes=len(COUNTS), label_smoothing=0.0)

    def mixup(x, y):
        mixed, target = mix(x[:, :, None, None].clone(), y)
        return mixed[:, :, 0, 0], target.to(x)

    flat, _, _ = timm_epoch(model, [(x, y)], SSESAM(eta=100), mixup=mixup)
    assert set(flat.outcome.radii) == {"head", "tail"} and all(float(g) > 0 for g in flat.gaps.values())


def test_timms_scaler_skips_a_step_that_overflows_and_is_saved():
    """float16 with a scale that is too large: weights as before, half the scale, and a state to resume from."""
    model, kind = mlp(dtype=torch.float32), example("timm_script")["SharpScaler"]
    before, scaler = deepcopy(model), kind("cpu")
    scaler._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    batches = [data(n=12, dtype=torch.float32)]
    amp = partial(torch.autocast, "cpu", dtype=torch.float16)
    timm_epoch(model, batches, SAM(rho=0.3), mixup=soft, scaler=scaler, amp=amp)
    same_weights(model, before)
    assert scaler.state_dict()["scale"] == 2.0**39
    again = kind("cpu")
    again._scaler = torch.amp.GradScaler("cpu")
    again.load_state_dict(scaler.state_dict())
    assert again._scaler.get_scale() == 2.0**39
    scaler._scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    timm_epoch(model, batches, SAM(rho=0.3), mixup=soft, scaler=scaler, amp=amp)
    assert different(model, before)


def test_the_lines_that_change_are_those_of_the_examples():
    """Every added line of a page's diff stands in the example beside it."""
    text = (ROOT / "docs" / "migration" / "frameworks.md").read_text()
    sections = re.findall(r"\(\.\./\.\./(examples/\w+\.py)\).*?^```diff\n(.*?)^```", text, re.S | re.M)
    assert {path for path, _ in sections} == {f"examples/{n}.py" for n in (*NEEDS, "timm_script")}
    for path, diff in sections:
        added = [line[1:].strip() for line in diff.splitlines() if line.startswith("+")]
        there = (ROOT / path).read_text()
        assert added and not [line for line in added if line not in there]


def test_the_citation_names_papers_that_the_code_cites():
    """An arXiv number of CITATION.cff stands in the code or the docs of what is implemented, with its first author."""
    tree = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert tree["cff-version"] == "1.2.0" and {"message", "title", "authors", "license", "version"} <= tree.keys()
    assert tree["version"] == __version__
    cited = "".join(path.read_text() for path in [*ROOT.glob("flattail/**/*.py"), *ROOT.glob("docs/**/*.md")])
    for paper in tree["references"]:
        assert paper["authors"][0]["family-names"] in cited, paper["title"]
        assert str(paper["year"]) in cited and paper["conference"]["name"]
    titles = [paper["title"] for paper in tree["references"]]
    assert len(titles) == len(set(titles))


# -- the pages on extending --------------------------------------------------------------------------------


def blocks(page):
    """A page's files: `mine.py`, and those with a title."""
    text = (ROOT / "docs" / "extending" / f"{page}.md").read_text()
    (mine,) = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    return {"mine.py": mine} | dict(re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```', text, re.S | re.M))


@pytest.fixture
def written(request, tmp_path, monkeypatch):
    """The page's files in a folder on the path."""
    for name, text in blocks(request.param).items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("mine", "test_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("mine", "test_mine"):
        sys.modules.pop(name, None)


PAGES = pytest.mark.parametrize("written", ["method", "loss", "data"], indirect=True)


@PAGES
def test_the_contract_that_a_page_shows_holds_for_its_class(written):
    tests = {n: f for n, f in vars(importlib.import_module("test_mine")).items() if n.startswith("test_")}
    assert len(tests) >= 4
    for name, test in tests.items():
        folder = written / name
        folder.mkdir()
        test(**({"tmp_path": folder} if "tmp_path" in inspect.signature(test).parameters else {}))


@PAGES
def test_the_recipe_that_a_page_shows_trains(written):
    recipe = read(written / "recipe.yaml")
    if (pictures := getattr(importlib.import_module("test_mine"), "pictures", None)) is not None:
        pictures(written)
    folder = run(recipe, out=written / "run", root=written, device="cpu")
    done = finished(folder)
    assert "mine:" in done.text
    assert 0 <= done.scores["scores"]["balanced"] <= 1
    assert all(np.isfinite(row["loss"]) for row in done.rows)


def test_the_pages_method_is_the_examples():
    page, shown = blocks("method")["mine.py"], (EXAMPLES / "custom_method.py").read_text()
    assert page[page.index("@dataclass") :].strip() in shown
