"""Peak memory and time of a uniform soup of eight checkpoints against mergekit's linear merge of the same files.

Every merge is a process of its own, start and imports included; runs alternate. Memory is the largest resident size of
the process, as the system reports it. The checkpoints are Llama-shaped float32 folders, made in a temporary folder.
mergekit runs in an interpreter that has it (`--mergekit PYTHON`), once as it is and once in shards of a quarter of the
model; without it the peer is a script that loads each file with safetensors, adds it up and saves the average.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

# No import of torch here: on Linux a child's peak includes the size its parent had when starting it.

VOCAB = 8000
MEMORY_TARGET = 0.5

OURS = """
import sys
from leaven.merge import uniform_soup
uniform_soup(sys.argv[2:], sys.argv[1])
"""

LOAD_ALL = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
states = [load_file(f"{folder}/model.safetensors") for folder in sys.argv[2:]]
mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
Path(sys.argv[1]).mkdir()
save_file(mean, f"{sys.argv[1]}/model.safetensors", metadata={"format": "pt"})
"""

DIFFERENCE = """
import sys
from leaven.merge import open_weights
ours, theirs = (open_weights(folder) for folder in sys.argv[1:])
assert ours.specs == {name: theirs.specs[name] for name in ours.specs}, "other tensors"
print(max(float((ours.tensor(name) - theirs.tensor(name)).abs().max()) for name in ours.specs))
"""

MAKE = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
shapes, config, models = json.loads(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
generator = torch.Generator().manual_seed(0)
base = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
for place in range(models):
    folder = Path(sys.argv[1]) / f"run{place}"
    folder.mkdir()
    state = {n: t + 0.002 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
"""


def llama(megabytes: float) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Shapes of a Llama of about this size in float32, and its configuration."""
    dim, hidden = (768, 2048) if megabytes >= 200 else (256, 688)
    per_layer = 4 * dim * dim + 3 * dim * hidden + 2 * dim
    layers = max(1, round((megabytes * 1e6 / 4 - 2 * VOCAB * dim) / per_layer))
    shapes = {"model.embed_tokens.weight": [VOCAB, dim], "lm_head.weight": [VOCAB, dim], "model.norm.weight": [dim]}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": [dim, dim] for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": [hidden, dim] for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": [dim, hidden]}
        shapes |= {f"{at}.{name}_layernorm.weight": [dim] for name in ("input", "post_attention")}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": dim // 64,
        "num_key_value_heads": dim // 64,
        "vocab_size": VOCAB,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    return shapes, config


def run(command: list[str]) -> tuple[float, float]:
    """Seconds and peak resident megabytes of a process."""
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)[:200]} failed:\n{output.read().decode(errors='replace')[-3000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * unit / 1e6


def mergekit_command(python: str, folder: Path, sources: list[str], options: list[str]) -> list[str]:
    """mergekit's linear merge with equal weights, without model card and tokenizer."""
    recipe = {
        "merge_method": "linear",
        "dtype": "float32",
        "models": [{"model": source, "parameters": {"weight": 1.0}} for source in sources],
    }
    # JSON is YAML.
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    plain = ["--quiet", "--no-write-model-card", "--no-copy-tokenizer", *options]
    return [python, "-m", "mergekit.scripts.run_yaml", str(folder / "recipe.yaml"), str(folder / "out"), *plain]


def measure(models: int, megabytes: float, runs: int, mergekit: str | None) -> dict[str, Any]:
    """Medians over the runs, and ratios of ours to each peer's."""
    python = sys.executable
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shapes, config = llama(megabytes)
        run([python, "-c", MAKE, name, json.dumps(shapes), json.dumps(config), str(models)])
        sources = [str(folder / f"run{place}") for place in range(models)]
        size = (folder / "run0" / "model.safetensors").stat().st_size
        commands = {"leaven": [python, "-c", OURS, str(folder / "out"), *sources]}
        imports = {"leaven": [python, "-c", "import leaven.merge"]}
        if mergekit:
            quarter = str(size // 4 // 4)
            commands["mergekit"] = mergekit_command(mergekit, folder, sources, [])
            commands["mergekit, four shards"] = [*commands["mergekit"], "--out-shard-size", quarter]
            imports["mergekit"] = [mergekit, "-c", "import mergekit.scripts.run_yaml"]
        else:
            commands["load all"] = [python, "-c", LOAD_ALL, str(folder / "out"), *sources]
        found: dict[str, list[tuple[float, float]]] = {who: [] for who in commands}
        differences: dict[str, float] = {}
        for _ in range(runs):
            for who, command in commands.items():
                found[who].append(run(command))
                if who == "leaven":
                    shutil.rmtree(folder / "ours", ignore_errors=True)
                    (folder / "out").rename(folder / "ours")
                    continue
                if who not in differences:
                    answer = subprocess.check_output(
                        [python, "-c", DIFFERENCE, str(folder / "ours"), str(folder / "out")]
                    )
                    differences[who] = float(answer)
                shutil.rmtree(folder / "out")
        starting = {who: run(command) for who, command in imports.items()}
    figures = {
        who: {"seconds": median(s for s, _ in all_runs), "peak_megabytes": median(m for _, m in all_runs)}
        for who, all_runs in found.items()
    }
    ours = figures["leaven"]
    peers = [who for who in figures if who != "leaven"]
    return {
        "models": models,
        "megabytes_each": size / 1e6,
        "runs": runs,
        "figures": figures,
        "imports_alone": {who: {"seconds": s, "peak_megabytes": m} for who, (s, m) in starting.items()},
        "memory_ratio": {who: ours["peak_megabytes"] / figures[who]["peak_megabytes"] for who in peers},
        "time_ratio": {who: ours["seconds"] / figures[who]["seconds"] for who in peers},
        "largest_difference": differences,
        "memory_target": MEMORY_TARGET,
    }


def main(argv: list[str] | None = None) -> int:
    """Print the figures; exit code 1 when ours needs more than half the memory, or more time, of a peer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--megabytes", type=float, default=400, help="size of each checkpoint")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mergekit", metavar="PYTHON", help="interpreter that has mergekit installed")
    parser.add_argument("--json", action="store_true", help="print the figures as json")
    options = parser.parse_args(argv)
    result = measure(options.models, options.megabytes, options.runs, options.mergekit)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print(f"{result['models']} checkpoints of {result['megabytes_each']:.0f} MB, median of {result['runs']}")
        rows = {**result["figures"], **{f"{who}, imports": f for who, f in result["imports_alone"].items()}}
        for who, figure in rows.items():
            print(f"{who:24} {figure['seconds']:8.2f} s {figure['peak_megabytes']:8.0f} MB")
        for who, ratio in result["memory_ratio"].items():
            print(
                f"leaven to {who}: memory {ratio:.2f}, time {result['time_ratio'][who]:.2f}, "
                f"largest difference {result['largest_difference'][who]:.1e}"
            )
    frugal = max(result["memory_ratio"].values()) <= MEMORY_TARGET
    fast = max(result["time_ratio"].values()) <= 1
    return 0 if frugal and fast else 1


if __name__ == "__main__":
    sys.exit(main())
