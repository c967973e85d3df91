"""`import frugalfm` disturbs no import of transformers, whatever comes first."""

import subprocess
import sys

from transformers import AutoModelForMaskedLM, PreTrainedModel

import frugalfm

MODULES = [
    "transformers.modeling_layers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.masking_utils",
    "transformers.models.esm.configuration_esm",
    "transformers.models.esm.modeling_esm",
    "transformers.models.esmc.configuration_esmc",
    "transformers.models.esmc.modeling_esmc",
    "frugalfm.encoders.dnabert2.modeling",
    "frugalfm.encoders.dnabert2.layers",
    "frugalfm.encoders.pieces",
    "frugalfm.encoders.pooled",
    "frugalfm.encoders.resolve",
]


# Each module comes first in a fork of a process that has imported torch, and nothing else.
FORKS = """
import os, sys, torch
for module in sys.argv[1:]:
    child = os.fork()
    if not child:
        status = 1
        try:
            import frugalfm, importlib
            importlib.import_module(module)
            from transformers import AutoConfig, AutoModelForMaskedLM, EsmForMaskedLM
            config = AutoConfig.for_model(
                "dnabert2", vocab_size=16, hidden_size=8, num_hidden_layers=1,
                num_attention_heads=2, intermediate_size=8,
            )
            made = AutoModelForMaskedLM.from_config(config)
            status = type(made).__name__ != "DnaBert2ForMaskedLM"
        finally:
            sys.stderr.flush()
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        print(module)
"""


def test_any_module_may_come_first():
    command = [sys.executable, "-c", FORKS, *MODULES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not done.stdout.split(), done.stderr


def test_every_module_of_ours_with_a_model_is_waited_for():
    """Registered in the middle of one of them, transformers would not know its classes."""
    assert AutoModelForMaskedLM  # registered by now
    homes = {
        name
        for name, module in list(sys.modules.items())
        if name.startswith("frugalfm.")
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, PreTrainedModel)
        and value.__module__ == name
    }
    registered = {name for name in homes if name.startswith("frugalfm.encoders.")}
    assert registered
    assert registered <= set(frugalfm._MODELS)


def test_what_registering_imports_of_transformers_is_waited_for():
    code = (
        "import sys, transformers.modeling_layers, transformers.models.auto.modeling_auto; "
        "before = set(sys.modules); import frugalfm; "
        "new = {n for n in set(sys.modules) - before if n.startswith('transformers.models.')}; "
        "found = {n for n in new if not hasattr(sys.modules[n], '__path__')}; "
        "print(len(found), sorted(found - set(frugalfm._MODELS)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "4 []"
