"""A GGUF file to a folder that every loader takes: `python -m omnibus.workers.engines.gguf_conversion FILE FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from omnibus.lineage import die_with_parent
from omnibus.workers.engines.single_file import check_space


def main() -> None:
    """Convert, showing progress on stderr; the last line of stdout is the reason when that fails."""
    die_with_parent()
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:  # noqa: BLE001 the many parts of a conversion raise whatever they like
        print(f"{type(error).__name__}: {error}")
        sys.exit(1)


def convert(file: Path, folder: Path) -> None:
    """Write weights in bfloat16, config, tokenizer and chat template; raises what transformers raises.

    Raises CheckpointMissing first where there is no room for them.
    """
    check_space(_weights(file), folder.parent)
    import torch  # noqa: PLC0415 an absent package is the reason of a failure, too
    import transformers  # noqa: PLC0415

    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    plain = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16, quantization_config=plain)
    vars(model.config).pop("quantization_config", None)  # the weights are quantized no more
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _weights(file: Path) -> int:
    """Bytes of the weights in bfloat16."""
    from gguf import GGUFReader  # noqa: PLC0415

    return sum(2 * int(tensor.n_elements) for tensor in GGUFReader(file).tensors)


if __name__ == "__main__":
    main()
