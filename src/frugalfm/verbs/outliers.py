"""Measure the outliers in an encoder's activations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugalfm.errors import InputError
from frugalfm.verbs import with_paths

if TYPE_CHECKING:
    from frugalfm.probing.activations import OutlierReport

__all__ = ["outliers"]


@with_paths
def outliers(
    checkpoint: Path,
    *,
    data: Path,
    out: Path | None = None,
    sequence_column: str | None = None,
    base: Path | None = None,
    limit: int = 512,
    batch_tokens: int = 16_384,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> Path | None:
    """Measure the outliers in an encoder's activations: kurtosis and infinity norms.

    Measured in fp32 on real tokens (<cls> and <eos> count, pads don't), unmasked, at the output
    of each layer's second feed-forward linear before the residual sum, and of each layer's final
    LayerNorm; where LayerNorm comes first (ESM, RNA-FM), that is the LayerNorm that reads the
    layer's output. Definitions as in GERM (arXiv 2505.00598).

    Parameters
    ----------
    checkpoint
        A Hugging Face folder with safetensors weights, or what ``frugalfm tune`` made; an adapter
        is merged in memory.
    data
        Sequences: FASTA, FASTQ, CSV, TSV, JSON lines, Parquet, or a folder of shards.
    out
        Folder for outliers.json and outliers.parquet; without it the table is only printed.
    sequence_column
        Of tables: ``sequence``, if not given.
    base
        Of an adapter: the checkpoint that it adapts, if that is no longer where it was.
    limit
        Sequences to draw at random, at most.
    batch_tokens
        Padded tokens of a batch, at most; lower it if memory runs out.
    seed
        Determines which sequences are drawn.
    device
        auto, cpu, cuda or cuda:N.
    overwrite
        Replace what other settings left in the output folder.

    Returns
    -------
    Path or None
        The artifact: `out`.

    Raises
    ------
    InputError
        A checkpoint, data or option that cannot be used.
    """
    from frugalfm.artifacts import open_stage
    from frugalfm.destinations import find_place
    from frugalfm.encoders.devices import choose_device
    from frugalfm.training.trunks import check_trunk, find_base

    if limit < 1 or batch_tokens < 1:
        raise InputError("--limit and --batch-tokens are to be at least 1")
    check_trunk(checkpoint)
    adapted = find_base(checkpoint, base)
    where = choose_device(device)
    config: dict[str, Any] = {"limit": limit, "seed": seed}
    if sequence_column is not None:
        config["sequence_column"] = sequence_column
    if out is None:
        _show(_measure(checkpoint, base, data, config, batch_tokens, str(where)))
        return None
    find_place(out, [adapted])
    inputs = {"checkpoint": checkpoint, "data": data}
    stage = open_stage(out, "outliers", config, inputs, overwrite=overwrite)
    with stage:
        if stage.done:
            print(f"{out}: already measured; {_summarise(stage.summary)}")
            return stage.out
        report = _measure(checkpoint, base, data, config, batch_tokens, str(where))
        _write(report, stage.work)
        stage.commit(report.summary | {"sequences": report.sequences, "tokens": report.tokens})
    _show(report)
    print(f"{out}: written")
    return stage.out


def _measure(
    checkpoint: Path,
    base: Path | None,
    data: Path,
    draw: dict[str, Any],
    batch_tokens: int,
    device: str,
) -> OutlierReport:
    from frugalfm.probing.activations import measure_outliers
    from frugalfm.tokens.codec import Codec
    from frugalfm.tokens.inputs import sample_encoded
    from frugalfm.training.trunks import load_trunk

    model, tokenizer = load_trunk(checkpoint, base=base, device=device)
    codec = Codec.from_tokenizer(tokenizer)
    drawn = sample_encoded(data, codec, **draw)
    return measure_outliers(model, codec, drawn.tokens, batch_tokens=batch_tokens)


def _write(report: OutlierReport, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from frugalfm.artifacts import write_json

    content = report.to_dict()
    write_json(folder / "outliers.json", content)
    pq.write_table(pa.Table.from_pylist(content["sites"]), folder / "outliers.parquet")


def _show(report: OutlierReport) -> None:
    """Print one line a layer, then the encoder as a whole."""
    print(f"{'':>5} | {'feed-forward output':^30} | {'final LayerNorm':^30}")
    columns = f"{'kurtosis':>10}{'inf-norm':>10}{'max':>10}"
    print(f"{'layer':>5} | {columns} | {columns}")
    for first, second in zip(report.at("ffn_output"), report.at("layer_norm"), strict=True):
        cells = [
            f"{site.kurtosis:10.3f}{site.inf_norm:10.3f}{site.max_abs:10.3f}"
            for site in (first, second)
        ]
        print(f"{first.layer:>5} | {cells[0]} | {cells[1]}")
    print(f"{report.sequences:,} sequences, {report.tokens:,} tokens: {_summarise(report.summary)}")
    exact = report.summary["avg_kurtosis_unfloored"]
    if exact > 1.05 * report.summary["avg_kurtosis"]:
        print(
            f"note: activations are so small that the definition's 1e-6 lowers the kurtosis; "
            f"without it the average is {exact:.3f}"
        )


def _summarise(summary: dict[str, float]) -> str:
    return (
        f"average kurtosis {summary['avg_kurtosis']:.3f} "
        f"(Gaussian {summary['avg_kurtosis_gaussian']:.3f}), "
        f"maximum inf-norm {summary['max_inf_norm']:.3f} "
        f"(LayerNorm {summary['max_inf_norm_layer_norm']:.3f}), "
        f"largest value {summary['max_abs']:.3f}"
    )
