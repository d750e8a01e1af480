"""AdapterDualLoss: losses and gradients of a language model with LoRA are those of its stored logits."""

from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import prograd_fast as pf
from examples import finetune_language_model as example
from prograd_fast.integrations.peft import AdapterDualLoss
from tests.tolerances import assert_close

WORDS = 61  # a multiple of nothing
KINDS = {
    "llama": transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    ),
    # tied embeddings, and dropout in the base model, which its teacher must not have
    "gpt2": transformers.GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=32),
}


def lora(kind: str = "llama", **settings: Any) -> Any:
    """A model with LoRA that does not start at zero."""
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(KINDS[kind])
    targets = {"llama": ["q_proj", "v_proj", "up_proj"], "gpt2": ["c_attn"]}[kind]
    layout = {"fan_in_fan_out": kind == "gpt2"}  # its weights are transposed
    config = peft.LoraConfig(**{**layout, "target_modules": targets, "init_lora_weights": False, "r": 4, **settings})
    return peft.get_peft_model(base.double(), config).double()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, the mask of what is no padding, and labels: the answers of two of three questions."""
    ids = torch.randint(WORDS, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:2, :4], labels[2] = -100, -100
    return ids, mask, labels


def by_logits(model: Any, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same by PyTorch's losses; transformers' own is in float32."""
    logits = model(ids, attention_mask=mask).logits
    with torch.no_grad(), model.disable_adapter():
        teacher = model(ids, attention_mask=mask).logits
    kept = labels[:, 1:] != -100
    log_p, log_q = (z[:, :-1][kept].log_softmax(-1) for z in (logits, teacher))
    task = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return task, F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimizer_gets_the_gradients_of_stored_logits(kind: str) -> None:
    """Both losses, what `ProGradAdamW.backward` makes of them, and the weights after two steps."""
    found = []
    ids, mask, labels = batch()
    for ours in (True, False):
        model = lora(kind).eval()
        criterion = AdapterDualLoss(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = pf.ProGradAdamW(trained, lr=0.01, scope="global")
        numbers = []
        for _ in range(2):
            losses = (
                criterion(labels, input_ids=ids, attention_mask=mask) if ours else by_logits(model, ids, mask, labels)
            )
            optimizer.zero_grad()
            optimizer.backward(*losses)
            numbers += [*(loss.detach().reshape(1) for loss in losses), *(p.grad.flatten() for p in trained)]
            optimizer.step()
        found.append(torch.cat([*numbers, *(p.detach().flatten() for p in trained)]))
    assert_close(found[0], found[1], "trajectory", torch.float64)


def test_the_teacher_is_the_model_before_it_had_adapters() -> None:
    """Adapters that change nothing yet have no distance to it, also where the base model drops out in training."""
    model = lora("gpt2", init_lora_weights=True).train()
    criterion = AdapterDualLoss(model)
    frozen = next(p for name, p in model.named_parameters() if "lora_A" in name).requires_grad_(False)
    model.base_model.model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    ids, mask, labels = batch()
    model.eval()
    _, general = criterion(labels, input_ids=ids, attention_mask=mask)
    assert abs(general.item()) < 1e-12
    for module, training in zip(model.modules(), modes, strict=True):
        module.training = training
    _, general = criterion(labels, input_ids=ids, attention_mask=mask)
    assert general.item() > 1e-6  # the student drops out
    assert [module.training for module in model.modules()] == modes
    assert not frozen.requires_grad  # PEFT makes all of an adapter trainable when it is enabled again


class Capped(transformers.LlamaForCausalLM):
    """Logits as Gemma 2 has them."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = super().forward(*args, **kwargs)
        result.logits = 3 * torch.tanh(result.logits / 3)
        return result


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Linear(2, 2), TypeError, "model: expected a peft.PeftModel, got Linear"),
        (lambda: lora(modules_to_save=["lm_head"]), ValueError, "model: expected a frozen torch.nn.Linear"),
        (lambda: lora(target_modules=["lm_head"]), ValueError, "model: expected a frozen torch.nn.Linear"),
        (
            lambda: peft.get_peft_model(
                transformers.LlamaForCausalLM(KINDS["llama"]),
                peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
            ),
            ValueError,
            "model: expected adapters in its layers, got PromptTuningConfig",
        ),
        (
            lambda: peft.get_peft_model(Capped(KINDS["llama"]), peft.LoraConfig(target_modules=["q_proj"])),
            ValueError,
            "those of Capped differ",
        ),
    ],
)
def test_models_that_it_is_not_right_for(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AdapterDualLoss(make())


def test_the_example(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With tiny settings: the table has both models, they differ, and the sentence says what the numbers say."""
    monkeypatch.setattr("sys.argv", ["finetune_language_model.py", "--pretraining", "3", "--steps", "3"])
    monkeypatch.setattr(example, "BATCH", 4)
    example.main()
    *table, sentence = capsys.readouterr().out.splitlines()
    assert [line[:24].strip() for line in table] == [
        *("perplexity", "before fine-tuning", "fine-tuned", "fine-tuned, projected")
    ]
    assert sentence.startswith("With the projection the perplexity on the old text is ")
    numbers = {"fine-tuned": (4.0, 2.0), "fine-tuned, projected": (3.0, 2.5)}
    assert "old text is 25.0% lower than without, and on the new text it is 25.0% higher." in example.sentence(numbers)
