"""The README's pieces do in a user's loop what they say."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text("utf-8"), re.DOTALL)


def block(name: str) -> str:
    (found,) = [text for text in BLOCKS if name in text and "import" in text and f" {name}" in text]
    return found


def test_lora_in_a_users_own_loop() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=2
    )
    model = BertForSequenceClassification(config).eval()
    ids, labels = torch.randint(0, 50, (16, 8)), torch.arange(16) % 2
    names = set(dict(model.named_modules()))
    adapt, fold = block("LoRA").split("merge(model)")
    space: dict = {"model": model}
    exec(adapt, space)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) < 0.3 * sum(p.numel() for p in model.parameters())
    optimizer, losses = torch.optim.AdamW(trained, lr=0.05), []
    for _ in range(30):
        loss = model(input_ids=ids, labels=labels).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    before = model(input_ids=ids).logits.detach()
    exec("merge(model)" + fold, space)
    torch.testing.assert_close(model(input_ids=ids).logits.detach(), before, atol=1e-4, rtol=1e-4)
    assert set(dict(model.named_modules())) == names


def test_simple_cil_on_a_users_feature_function() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(6, 10, generator=generator)
    stream = []
    for task in range(3):
        labels = torch.tensor([2 * task, 2 * task + 1] * 10)
        stream.append((centres[labels] + torch.randn(20, 10, generator=generator), labels))
    space: dict = {"encoder": lambda images: images, "stream": stream}
    exec(block("SimpleCIL"), space)
    everything, labels = torch.cat([x for x, _ in stream]), torch.cat([y for _, y in stream])
    assert space["learner"].predict(everything) == labels.tolist()


def test_a_greedy_soup_of_a_users_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model, best = nn.Linear(4, 2), torch.randn(2, 4)
    for at in range(4):
        state = {"weight": best + 0.3 * torch.randn(2, 4), "bias": torch.zeros(2)}
        save_file(state, tmp_path / f"run{at}.safetensors")

    def validation_accuracy(state: dict[str, torch.Tensor]) -> float:
        model.load_state_dict(state)
        return -float((model.weight - best).norm())

    checkpoints = sorted(tmp_path.glob("run*.safetensors"))
    space: dict = {"checkpoints": checkpoints, "validation_accuracy": validation_accuracy}
    exec(block("greedy_soup"), space)
    alone = max(validation_accuracy(load_file(path)) for path in checkpoints)
    assert validation_accuracy(load_file(tmp_path / "soup.safetensors")) >= alone
    assert len(space["soup"].accepted) > 1
