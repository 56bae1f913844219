"""Classes as likely as another network finds them, and as they are labelled."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from slimseek.losses._loss import Loss


class SoftLabel(Loss, frozen=True):
    """alpha * cross-entropy + (1 - alpha) * T^2 * KL(teacher || student), both softened by the temperature T.

    The divergence is a sum over classes: a mean would be smaller the more of them there are. T^2 keeps the size of its
    gradient, T * (softmax(z / T) - softmax(t / T)), which is that of cross-entropy with the teacher's soft labels
    (Hinton et al., 2015). Temperature and alpha go in a line from their first value to their last over the training.

    Attributes:
        temperature: at the start and at the end, above 0.
        alpha: share of the labels at the start and at the end, 0 to 1.
    """

    temperature: tuple[float, float] = (4.0, 4.0)
    alpha: tuple[float, float] = (0.0, 0.0)

    def __call__(self, output: Tensor, target: Mapping[str, Tensor], progress: float = 1.0) -> Tensor:
        """The loss of each item, [n].

        Args:
            output: logits, float [n, classes].
            target: ``teacher``: its logits, float [n, classes]; ``label``: int64 [n], -1 for an item that has none,
                of which alpha is 0.
            progress: share of the training that is done, 0 to 1.
        """
        temperature, alpha = (first + (last - first) * progress for first, last in (self.temperature, self.alpha))
        log, functional = nn.functional.log_softmax, nn.functional
        taught, own = (log(logits / temperature, dim=1) for logits in (target["teacher"], output))
        soft = temperature**2 * (taught.exp() * (taught - own)).sum(1)
        hard = functional.cross_entropy(output, target["label"].clamp(min=0), reduction="none")
        share = alpha * (target["label"] >= 0).to(output.dtype)
        return share * hard + (1 - share) * soft
