import pytest
import torch
from sklearn.metrics import log_loss

from leaven.errors import ConfigError
from leaven.objectives.classification import Classification


class Table(torch.nn.Module):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values


def test_loss_equals_scikit_learns_and_counts_examples() -> None:
    logits, labels = (
        torch.randn(9, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0]),
    )
    loss = Classification()(Table(), {"pixel_values": logits, "label": labels})
    expected = log_loss(labels.numpy(), logits.double().softmax(1).numpy(), labels=range(4))
    assert float(loss.total) == pytest.approx(expected, rel=1e-5)
    assert int(loss.count) == 9
    assert float(loss.parts["accuracy"]) == pytest.approx(float((logits.argmax(1) == labels).float().mean()))


def test_smoothing_is_a_mixture_with_the_uniform_distribution() -> None:
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1])
    batch = {"pixel_values": logits, "label": labels}
    uniform = -logits.log_softmax(1).mean()
    expected = 0.8 * Classification()(Table(), batch).total + 0.2 * uniform
    torch.testing.assert_close(Classification(smoothing=0.2)(Table(), batch).total, expected)
    with pytest.raises(ConfigError, match=r"smoothing=1"):
        Classification(smoothing=1)
