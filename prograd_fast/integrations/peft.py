"""PEFT: a language model learns with adapters, and its teacher is the same model without them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import peft
import torch
from torch import Tensor, nn

from prograd_fast.functional import head_dual_loss
from prograd_fast.ops.dual_loss import General, check_loss_options


class AdapterDualLoss:
    """Task loss and general loss of a causal language model with adapters, such as LoRA.

    The task loss is the cross-entropy of the next token, as `model(..., labels=labels).loss`. The general loss is the
    distance to what the model said before it had adapters: the teacher is the same model with `disable_adapter()`, in
    evaluation mode and without graph, so there is no second copy of the weights. The hidden states of both go through
    the frozen output head chunk by chunk (`prograd_fast.functional.head_dual_loss`): the logits of all tokens are never
    stored, and `ProGradAdamW.backward` gets both gradients. In front of the head there are two forwards, and two
    backwards of the adapters.

    Args:
        model: a `peft.PeftModel` of one of transformers' causal language models, in the state in which it starts.
        temperature: of the general loss (default: 1.0).
        general: "kl" (default) or "soft_ce", see `prograd_fast.functional.dual_loss`.

    Raises:
        TypeError: the model is not a `peft.PeftModel`.
        ValueError: its adapters are tokens in the prompt, its head is trained, or its logits are more than the head.

    Example:
        >>> import peft, transformers, torch, prograd_fast as pf
        >>> from prograd_fast.integrations.peft import AdapterDualLoss
        >>> config = transformers.LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        ...     num_attention_heads=2)
        >>> lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"])
        >>> model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_config(config), lora)
        >>> criterion = AdapterDualLoss(model)
        >>> opt = pf.ProGradAdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        >>> ids = torch.randint(50, (2, 6))
        >>> opt.backward(*criterion(ids, input_ids=ids))
        >>> opt.step()
    """

    def __init__(self, model: Any, temperature: float = 1.0, general: General = "kl") -> None:
        check_loss_options(temperature, general, "mean")
        if not isinstance(model, peft.PeftModel):
            raise TypeError(f"model: expected a peft.PeftModel, got {type(model).__name__}. Call peft.get_peft_model.")
        config = model.active_peft_config
        if config.is_prompt_learning:
            raise ValueError(
                f"model: expected adapters in its layers, got {type(config).__name__}, whose tokens stand in the "
                "prompt. Use peft.LoraConfig."
            )
        self.model, self.temperature, self.general = model, temperature, general
        self._causal = cast(Any, model.get_base_model())
        self._head: Any = self._causal.get_output_embeddings()
        trained = [name for name, p in self._head.named_parameters() if p.requires_grad] if self._head else []
        if type(self._head) is not nn.Linear or trained:
            raise ValueError(
                f"model: expected a frozen torch.nn.Linear as output head, got {type(self._head).__name__}"
                f"{' that is trained' if trained else ''}. Leave lm_head out of target_modules and modules_to_save."
            )
        self._check_logits()

    def __call__(self, labels: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Both losses of a batch.

        Args:
            labels: (B, L) token ids, as for transformers' models: not shifted, -100 for tokens that do not count, such
                as those of the question and of padding.
            **inputs: of the model: `input_ids` (B, L), `attention_mask` and others.

        Returns:
            (task, general), two 0-d tensors, means over the tokens that count, differentiable in the adapters.

        Raises:
            TypeError, ValueError: as `prograd_fast.functional.head_dual_loss`.
        """
        with torch.no_grad(), _as_it_was(self.model):
            self.model.eval()
            with self.model.disable_adapter():
                teacher = self._features(inputs)
        student = self._features(inputs)
        rows, others = (features[:, :-1].flatten(0, 1) for features in (student, teacher))
        following, head = labels[:, 1:].flatten(), self._head
        return head_dual_loss(rows, others, head.weight, following, self.temperature, self.general, bias=head.bias)

    def _features(self, inputs: dict[str, Any]) -> Tensor:
        """(B, L, D), what goes into the head."""
        features: Tensor = self._causal.base_model(**inputs, use_cache=False, return_dict=True).last_hidden_state
        return features

    @torch.no_grad()
    def _check_logits(self) -> None:
        """ValueError where something else than the head makes the logits: a factor, a soft cap, a layer before it."""
        with _as_it_was(self.model):
            self.model.eval()
            inputs = {"input_ids": torch.zeros(1, 2, dtype=torch.int64, device=self._head.weight.device)}
            expected = self._causal(**inputs, use_cache=False).logits.float()
            error = (self._head(self._features(inputs)).float() - expected).abs().max()
        if error > 8 * torch.finfo(self._head.weight.dtype).eps * expected.abs().max():
            raise ValueError(
                f"model: expected logits that are its head's product with the last hidden states, but those of "
                f"{type(self._causal).__name__} differ by {error:.2g}; it may cap or scale them. Use "
                "prograd_fast.DualLoss on its logits."
            )


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Bring back which modules train and which parameters are trained; PEFT makes all of an adapter trainable."""
    modes = [(module, module.training) for module in model.modules()]
    trained = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for p, requires_grad in trained:
            p.requires_grad_(requires_grad)
