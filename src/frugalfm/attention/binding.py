"""The attention that a config names: its parameters made, its name binding, its model checked.

Nothing heavy is imported here before a model is made: ``import frugalfm`` stays light.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from frugalfm.attention import NAMES
from frugalfm.errors import InputError

__all__ = [
    "attach_parameters",
    "find_attentions",
    "make_binding",
    "make_initialise",
    "make_post_init",
    "require_attention",
]

_PARAMETERS = {"gated": ("gate_weight", "gate_bias"), "sink": ("sink_logit",)}
"""What an attention learns, by the names in the state dict, on every attention module."""


def find_attentions(model: Any) -> list[Any]:
    """List the modules of a model that call transformers' attention interface.

    They are those whose ``forward`` looks up ``ALL_ATTENTION_FUNCTIONS``, and are what the
    interface hands to an attention function as ``module``.
    """
    found = []
    for module in model.modules():
        code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        if code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names:
            found.append(module)
    return found


def attach_parameters(model: Any, attention: str) -> None:
    """Give every attention module of a model the parameters of its attention, where it has any.

    Parameters
    ----------
    model
        A transformers model. Modules that have the parameters already keep them.
    attention
        One of ``frugalfm.attention.NAMES``. ``sink``: ``sink_logit`` per head, zero at first, which
        is softmax1. ``gated``: ``gate_weight`` (heads, hidden_size) and ``gate_bias`` (heads),
        zero at first, so that every gate is half open; they read the module's input, as in
        Bondarenko et al. (arXiv 2306.12929, "all-heads linear").

    Raises
    ------
    InputError
        No module of the model calls the attention interface, or heads cannot be counted.
    """
    if attention == "softmax" or attention not in NAMES:
        return
    modules = find_attentions(model)
    if not modules:
        raise InputError(_explain(model, attention))
    if attention not in _PARAMETERS:
        return
    import torch

    for module in modules:
        if hasattr(module, _PARAMETERS[attention][0]):
            continue
        heads, width = _measure_heads(module, model.config)
        if attention == "gated":
            module.register_forward_pre_hook(note_gate, with_kwargs=True)
        for name in _PARAMETERS[attention]:
            shape = (heads, width) if name == "gate_weight" else (heads,)
            # Beside the module's other weights; on no device while a checkpoint is being read.
            near = next(module.parameters())
            dtype = near.dtype if near.is_floating_point() else None
            zeros = torch.zeros(shape, device=near.device, dtype=dtype)
            module.register_parameter(name, torch.nn.Parameter(zeros))


def note_gate(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Leave the gates of one call on the module: an attention function gets no layer's input."""
    import torch

    hidden = args[0] if args else kwargs["hidden_states"]
    # Not under autocast: a rounded gate would round the whole head.
    with torch.autocast(hidden.device.type, enabled=False):
        weight = module.gate_weight
        logits = hidden.to(weight.dtype) @ weight.mT + module.gate_bias
    module.gate_logits = logits.transpose(-1, -2)


def require_attention(model: Any, name: str) -> None:
    """Refuse a model that does not really run an attention.

    Parameters
    ----------
    model
        A transformers model, made with the attention or switched to it.
    name
        One of ``frugalfm.attention.NAMES``.

    Raises
    ------
    InputError
        The name is unknown, the model's layers do not go through transformers' attention
        interface, or run another attention, or lack its parameters.
    """
    if name not in NAMES:
        raise InputError(f"attention {name!r} is not known; there are: {', '.join(NAMES)}")
    modules = find_attentions(model)
    configs = [getattr(module, "config", model.config) for module in modules]
    runs = {_name_run(config._attn_implementation) for config in configs}  # noqa: SLF001
    if name == "softmax":
        # A model outside the interface computes softmax, whatever it is asked for.
        if runs - {name}:
            raise InputError(f"{type(model).__name__} runs {', '.join(sorted(runs))}, not softmax")
        return
    if not modules or not _can_switch(model):
        raise InputError(_explain(model, name))
    if runs != {name}:
        raise InputError(f"{type(model).__name__} runs {', '.join(sorted(runs))}, not {name}")
    for parameter in _PARAMETERS.get(name, ()):
        if not all(hasattr(module, parameter) for module in modules):
            raise InputError(
                f"{type(model).__name__} lacks {parameter}: make it with attention {name!r} in its "
                "config"
            )


def make_binding(original: Callable[..., str]) -> Callable[..., str]:
    """Wrap transformers' choice of an implementation: what the config stores is what runs."""

    def get_correct_attn_implementation(
        self: Any, requested_attention: str | None, is_init_check: bool = False
    ) -> str:
        stored = getattr(self.config, "attention", None)
        if not isinstance(stored, str) or stored not in NAMES:
            stored = None
        if stored is None and requested_attention in NAMES and requested_attention != "softmax":
            # Asked for by name on a model that stores none: stored from here on.
            stored = self.config.attention = requested_attention
        if stored is not None:
            # Every implementation that transformers ships computes softmax.
            runs = _name_run(requested_attention)
            if requested_attention is not None and runs != stored:
                raise InputError(
                    f"this model was trained with attention {stored!r} and cannot run with "
                    f"{requested_attention!r}; leave the attention to its config.json"
                )
            if stored != "softmax" and not _can_switch(self):
                raise InputError(_explain(self, stored))
            if not is_init_check:
                attach_parameters(self, stored)
            # A model outside the interface computes softmax by its own means.
            if requested_attention is None and (stored != "softmax" or _can_switch(self)):
                requested_attention = stored
            # Saved along, so that transformers without FrugalFM refuses instead of using softmax.
            self.config.attn_implementation = stored
        return original(self, requested_attention, is_init_check)

    get_correct_attn_implementation.by_frugalfm = True  # type: ignore[attr-defined]
    return get_correct_attn_implementation


def make_post_init(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap what ends every model's ``__init__``: parameters come before weights are loaded."""

    def post_init(self: Any) -> None:
        stored = getattr(self.config, "attention", None)
        if isinstance(stored, str):
            attach_parameters(self, stored)
        original(self)

    return post_init


def make_initialise(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap the initialisation of one module: parameters that a checkpoint lacks are zero.

    transformers makes room for missing keys without filling it, and leaves that to the model,
    which does not know these.
    """

    def _initialize_weights(self: Any, module: Any, *rest: Any, **options: Any) -> None:
        if not getattr(module, "_is_hf_initialized", False):
            for name in (name for names in _PARAMETERS.values() for name in names):
                parameter = module._parameters.get(name)  # noqa: SLF001
                if parameter is not None and not getattr(parameter, "_is_hf_initialized", False):
                    parameter.data.zero_()
        original(self, module, *rest, **options)

    return _initialize_weights


def _name_run(implementation: str | None) -> str:
    return implementation if implementation in NAMES else "softmax"


def _can_switch(model: Any) -> bool:
    from transformers import PreTrainedModel

    # The binding asks before nn.Module.__init__ has run, too: then the class answers alone.
    modules = model.modules() if "_modules" in vars(model) else [model]
    kinds = {type(module) for module in modules if isinstance(module, PreTrainedModel)}
    return all(kind._can_set_attn_implementation() for kind in kinds)  # noqa: SLF001


def _explain(model: Any, attention: str) -> str:
    return (
        f"{type(model).__name__} cannot run attention {attention!r}: its layers do not go through "
        "transformers' attention interface, so it would compute softmax without a word"
    )


def _measure_heads(module: Any, config: Any) -> tuple[int, int]:
    """Find the number of heads and the width of what enters."""
    config = getattr(module, "config", config)
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(width, int):
        raise InputError(f"{type(module).__name__}: cannot tell how many heads it has")
    return heads, width
