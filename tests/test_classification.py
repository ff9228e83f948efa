"""The ordinary classifier's objective."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods.classification import Classification


class Fixed(nn.Module):
    """A network that answers with given logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, image):
        return self.logits[:, :, None, None], self.logits


@pytest.fixture
def batch():
    label = (torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) > 0.6).float()
    return {"image": torch.zeros(5, 3, 8, 8), "label": label}


@pytest.fixture
def net():
    return Fixed(5 * torch.randn(5, 7, generator=torch.Generator().manual_seed(1)))


def test_the_loss_is_the_multilabel_soft_margin(net, batch):
    terms = Classification(net)(batch, epoch=0)
    torch.testing.assert_close(terms["loss"], F.multilabel_soft_margin_loss(net.logits, batch["label"]))
    terms["loss"].backward()
    expected = (torch.sigmoid(net.logits.detach()) - batch["label"]) / batch["label"].numel()
    torch.testing.assert_close(net.logits.grad, expected)


def test_the_logged_probabilities(net, batch):
    terms = Classification(net)(batch, epoch=0)
    probability = torch.sigmoid(net.logits.detach())
    torch.testing.assert_close(terms["p_present"], probability[batch["label"] == 1].mean())
    torch.testing.assert_close(terms["p_absent"], probability[batch["label"] == 0].mean())
    assert not terms["p_present"].requires_grad


def test_a_batch_without_any_class(net, batch):
    terms = Classification(net)(batch | {"label": torch.zeros(5, 7)}, epoch=0)
    assert terms["loss"].isfinite() and terms["p_present"].isnan() and terms["p_absent"].isfinite()
