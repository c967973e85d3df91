"""What deploying costs: the deployed model beside the simulated scheme and floating point."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from frugalfm.deployment.engine import Precision
from frugalfm.deployment.lowering import centre_heads
from frugalfm.deployment.runtime import DeployedEncoder, load_deployed
from frugalfm.deployment.support import plan_execution
from frugalfm.deployment.tracing import trace
from frugalfm.deployment.writing import deploy
from frugalfm.progress import progress
from frugalfm.quantization.scheme import Scheme
from frugalfm.quantization.simulate import Simulation, simulate
from frugalfm.quantization.task_evaluation import score_task
from frugalfm.tasks.folder import Task
from frugalfm.tasks.kinds import is_map
from frugalfm.tokens.codec import Codec
from frugalfm.training.data import Batch
from frugalfm.training.predicting import DeployedPredictor, Predictor

__all__ = ["Fidelity", "deploy_scheme", "measure_fidelity", "measure_task"]

_REPORTED = ("execution", "precision", "bytes", "bytes_fp32", "tables_at_8_bits")


@dataclass(frozen=True)
class Fidelity:
    """How near a deployed model's logits are to others of the same batches.

    Attributes
    ----------
    error_to_scheme, error_to_fp32, scheme_error
        ``|difference| / |logits|`` (Euclidean, over all logits of real tokens or of sequences):
        of the deployed model to the simulated scheme, and to fp32; and of the simulated scheme to
        fp32.
    agreement_with_scheme, agreement_with_fp32
        Fraction of largest logits at the same place; None where there is one logit, and of maps.
    """

    error_to_scheme: float
    error_to_fp32: float
    scheme_error: float
    agreement_with_scheme: float | None
    agreement_with_fp32: float | None


def deploy_scheme(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | Path,
    scheme: Scheme | None,
    folder: Path,
    batches: Sequence[Batch],
    *,
    precision: Precision = "bf16",
    task: Mapping[str, Any] | None = None,
    graph: Any = None,
) -> dict[str, Any]:
    """Deploy a model and measure what became of it: all that a verb has to call.

    Parameters
    ----------
    model, tokenizer, scheme, folder, precision, task, graph
        As of :func:`~frugalfm.deployment.writing.deploy`.
    batches
        To measure on; not used if empty. In bf16, a task's head reads its inputs less their means
        here (:func:`~frugalfm.deployment.lowering.centre_heads`).

    Returns
    -------
    dict
        For a summary: ``execution``, ``precision``, ``bytes``, ``bytes_fp32``, ``smaller`` (times),
        ``tables_at_8_bits``, ``kernels`` (products by precision), and of :class:`Fidelity`.
    """
    plan_execution(scheme)
    if scheme is not None and task is not None and precision == "bf16" and batches:
        graph = trace(model) if graph is None else graph
        centre_heads(graph, model, scheme, _find_means(model, scheme, batches))
    card = deploy(model, tokenizer, scheme, folder, precision=precision, task=task, graph=graph)
    engine = load_deployed(folder, outputs=("logits",))
    found = {
        **{name: card[name] for name in _REPORTED},
        "smaller": card["bytes_fp32"] / card["bytes"],
        "kernels": engine.count_kernels(),
    }
    if batches:
        found |= vars(measure_fidelity(engine, model, scheme, batches))
    return found


@torch.no_grad()
def measure_fidelity(
    engine: DeployedEncoder, model: nn.Module, scheme: Scheme | None, batches: Sequence[Batch]
) -> Fidelity:
    """Compare a deployed model with its scheme, simulated, and with floating point.

    Parameters
    ----------
    engine
        With the output ``logits``.
    model, scheme
        That it was deployed of.
    batches
        At least one.
    """
    maps = is_map((engine.task or {}).get("kind"))
    tally = _Tally()
    with contextlib.nullcontext() if scheme is None else simulate(model, scheme) as simulation:
        for batch in progress(batches, desc="compare", unit="batch"):
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            exact, simulated = _run_twice(model, simulation, inputs)
            arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
            deployed = torch.from_numpy(engine.run(**arrays)["logits"])
            tally.add([_select(x, batch, maps) for x in (deployed, simulated, exact)])
    return tally.finish()


@torch.no_grad()
def _find_means(model: nn.Module, scheme: Scheme, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Mean inputs of the linears that are no sites, which are those of a task's head."""
    sums: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()

    def keep(name: str, values: Tensor) -> None:
        rows = values.detach().flatten(0, -2)
        sums[name] = sums.get(name, torch.zeros(rows.shape[1])) + rows.sum(0)
        counts[name] += len(rows)

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and name not in scheme.sites:
                hook = module.register_forward_pre_hook(
                    lambda _, given, name=name: keep(name, given[0])
                )
                stack.callback(hook.remove)
        for batch in batches:
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    return {name: total / counts[name] for name, total in sums.items()}


def measure_task(
    engine: DeployedEncoder,
    task: Task,
    codec: Codec,
    *,
    max_tokens: int | None = None,
    batch_tokens: int = 8192,
) -> dict[str, dict[str, Any]]:
    """Score a deployed model on its task; the rows and metrics are those of the simulation.

    Parameters
    ----------
    engine
        With the output ``logits``.
    task, codec, max_tokens, batch_tokens
        As of :func:`~frugalfm.quantization.task_evaluation.compare_task`.

    Returns
    -------
    dict
        By split (``dev``, ``test``) and metric: ``value``, ``low`` and ``high``.
    """
    model = _Stand(DeployedPredictor(engine))
    return score_task(model, task, codec, max_tokens=max_tokens, batch_tokens=batch_tokens)


@dataclass
class _Output:
    logits: Tensor


class _Stand(nn.Module):
    """Whatever predicts, in the place of a torch model on the CPU."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self._predictor = predictor
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> _Output:
        """Compute logits, as the models do that it stands for."""
        logits = self._predictor.logits(input_ids.numpy(), attention_mask.numpy())
        return _Output(torch.from_numpy(logits))


def _run_twice(
    model: nn.Module, simulation: Simulation | None, inputs: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Logits in floating point, and simulated if there is a scheme."""
    if simulation is None:
        exact: Tensor = model(**inputs).logits
        return exact, exact
    simulation.enable(False)
    exact = model(**inputs).logits
    simulation.enable()
    return exact, model(**inputs).logits


def _select(logits: Tensor, batch: Batch, maps: bool) -> Tensor:
    """Logits of real tokens, or of pairs of them, where there are such; sequences' as they are."""
    real = batch.attention_mask.bool()
    if maps:
        return logits[real[:, :, None] & real[:, None, :]][:, None].double()
    if logits.ndim == 3 and logits.shape[:2] == real.shape:
        return logits[real].double()
    return logits.flatten(1).double() if logits.ndim > 1 else logits[:, None].double()


class _Tally:
    def __init__(self) -> None:
        self._sums = torch.zeros(5, dtype=torch.float64)
        self._same = torch.zeros(2, dtype=torch.float64)
        self._rows = 0
        self._choices = True

    def add(self, found: list[Tensor]) -> None:
        deployed, simulated, exact = found
        pairs = ((deployed, simulated), (deployed, exact), (simulated, exact))
        squares = [(a - b).square().sum() for a, b in pairs]
        self._sums += torch.stack([*squares, simulated.square().sum(), exact.square().sum()])
        choices = [x.argmax(-1) for x in found]
        self._same += torch.stack([(choices[0] == other).sum() for other in choices[1:]])
        self._rows += len(deployed)
        self._choices &= deployed.shape[-1] > 1

    def finish(self) -> Fidelity:
        to_scheme, to_exact, scheme, simulated, exact = self._sums.tolist()
        same = (self._same / max(1, self._rows)).tolist() if self._choices else [None, None]
        tiny = torch.finfo(torch.float64).tiny
        return Fidelity(
            (to_scheme / max(simulated, tiny)) ** 0.5,
            (to_exact / max(exact, tiny)) ** 0.5,
            (scheme / max(exact, tiny)) ** 0.5,
            *same,
        )
