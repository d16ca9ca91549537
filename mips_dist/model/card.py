"""The card of a model directory: what its files say, in words (Markdown)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def card(
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    trained_on: str,
    scaler: Mapping[str, Any] | None,
    weights: Mapping[str, Tensor],
    files: Sequence[str],
) -> str:
    """Return the text of the card.

    Parameters
    ----------
    config, metrics, scaler
        What stands in the files of these names; ``config["training"]`` may be missing.
    trained_on
        One sentence.
    weights
        Tensors by name.
    files
        Names of the files beside the card.
    """
    model = config["model"]
    groups = ", ".join(model["descriptors"]) or "none (topology only)"
    num_parameters = sum(w.numel() for w in weights.values())
    types = " and ".join(sorted({str(w.dtype).removeprefix("torch.") for w in weights.values()}))
    if scaler is None:
        title = "Pre-trained polymer encoder"
        sections = _pretrained(model, config.get("training"))
    else:
        unit = f" in {scaler['unit']}" if scaler["unit"] not in ("", "1") else ""
        title = f"Predicts {scaler['property']}{unit} of polymers"
        sections = _property("calibration.safetensors.gz" in files)
    lines = [f"- {name}: {value}" for name, value in sorted(metrics.items())]
    text = [
        f"# {title}",
        "",
        f"A MIPS model of mips_dist: {model['num_layers']} layers of {model['hidden_dim']}, "
        f"{num_parameters:,} parameters ({types}), attention within {model['max_hops']} bonds of "
        f"the infinite chain, descriptors: {groups}." + (_PARTNER if "ensemble" in config else ""),
        "",
        "## Trained on",
        trained_on,
    ]
    for name, body in {"Metrics": "\n".join(lines) or "none recorded", **sections}.items():
        text += ["", f"## {name}", body]
    beside = ", ".join(f"`{name}`{_FILES.get(name, '')}" for name in files)
    return "\n".join([*text, "", "## Files", f"{beside}.", ""])


_FILES = {
    "chain_model.safetensors.gz": " (the ensemble's second member)",
    "calibration.safetensors.gz": " (for intervals and the distance to the training set)",
    "config.json": " (model, feature schema, sha256 of the weights)",
    "scaler.json": " (z * std + mean = physical value)",
    "NOTES.md": " (written by hand: data, machine, commands, what it is worth)",
}

_PARTNER = (
    " Its predictions are averaged with those of a Gaussian process and a forest on features of "
    "the infinite chain (`gp-trees`)."
)


def _property(is_calibrated: bool) -> dict[str, str]:
    """Return the sections of a property model, by their headings."""
    trust = (
        "Each prediction comes with the interval that held 90 % of the polymers of "
        "cross-validation, the distance to the nearest training polymer and whether 95 % of the "
        "held-out polymers were as near. Polymers out of that domain get a number and an interval "
        "too, and there the interval promises nothing."
        if is_calibrated
        else "Polymers unlike those it was trained on get a number too, and nothing here says how "
        "far off it is."
    )
    return {
        "How to use": "    mips predict polymers.csv -m THIS_DIRECTORY -o predictions.csv",
        "Limits": "Chains of one repeat unit with two attachment points; no tacticity, molar mass, "
        f"morphology or temperature. {trust}",
    }


def _pretrained(model: Mapping[str, Any], training: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the sections of a pre-trained model, by their headings."""
    sections = {}
    preset = "NAME"
    if training is not None:
        shards, preset = training["shards"], training["preset"] or preset
        sections["Corpus"] = "\n".join(
            [
                f"- input: {shards['input']} (sha256 {shards['input_sha256']}), "
                f"{shards['num_rows']:,} rows = {shards['num_samples']:,} polymers + "
                f"{shards['num_merged']:,} second spellings + {shards['num_rejected']:,} rejected; "
                f"stereo marks dropped in {shards['stereo_dropped']:,} rows",
                f"- shards: content={shards['content']}, sha256 of their sha256s "
                f"{shards['sha256']}; {_join(shards['software'])}",
                f"- {training['num_training']:,} polymers trained on, {training['num_held_out']:,} "
                f"held out, {training['num_validated']:,} of them for the metrics",
            ]
        )
        sections["Settings"] = _join(training["settings"])
    groups = ",".join(model["descriptors"])
    sections["How to use"] = (
        "Fine-tune it on your own property: a csv with a `psmiles` column and a column of values; "
        "the model must be configured as it was here.\n\n"
        "    python mips_dist/finetune.py pretrained=THIS_DIRECTORY "
        f"model={preset} 'model.descriptors=[{groups}]' run_dir=RUN input=my.csv 'targets=[COLUMN]'"
    )
    sections["Limits"] = (
        "It names the elements of masked atoms and predicts no property by itself. The loss is the "
        "cross-entropy of those elements, in nats per masked atom, over 101 classes; every atom "
        "is masked with the same probability, and several atoms of a polymer at once. Most atoms "
        "are carbon, so compare it with the class entropy, the loss of knowing the frequencies "
        "alone. Descriptors are made of the whole polymer and tell of its masked atoms; "
        "`loss_topology` is the loss without them. Stereo marks are not seen."
    )
    return sections


def _join(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
