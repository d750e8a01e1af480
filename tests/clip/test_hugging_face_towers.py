"""Text towers of Hugging Face: prompts take the plain way through them, and methods without a context always work."""

import json
from pathlib import Path

import pytest
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIPVisionCfg, CustomTextCLIP
from safetensors.torch import save_file
from torch.nn import functional as F

import prograd_fast as pf
from prograd_fast.cli.models import check_text_tower
from prograd_fast.clip import LoadedClip, load_model
from prograd_fast.methods import CoCoOp, CoOp, LinearProbe, ProGradCoOp, PromptSRC, Task, ZeroShot
from tests.cli.support import run_here
from tests.tiny_clip import TOKENIZER, tiny_clip

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
WORDS = "cat dog red panda a photo of picture x . circle blue square green bar black dot".split()  # noqa: SIM905
NAMES = ["cat", "red_panda", "dog"]


def bert(folder: Path):
    """BiomedCLIP's kind: BERT, pooled at the first token, and a projection of two layers."""
    from transformers import BertConfig, BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **SIZES)
    return config, {"hf_pooler_type": "cls_last_hidden_state_pooler", "hf_proj_type": "mlp"}


def roberta(folder: Path):
    """Its tokens begin with the blank before a word, and its positions are counted from the padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig

    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: i for i, sign in enumerate(["<s>", "<pad>", "</s>", "<unk>", *signs])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = RobertaConfig(vocab_size=len(vocabulary), max_position_embeddings=80, pad_token_id=1, **SIZES)
    return config, {"hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}


@pytest.fixture(scope="module", params=[bert, roberta], ids=["BERT", "RoBERTa"])
def folder(request, tmp_path_factory) -> Path:
    """A model of open_clip's form with random weights, as local-dir:FOLDER."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    config, text = request.param(folder)
    config.save_pretrained(folder)
    text |= {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "context_length": 48}
    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
    model_cfg = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CustomTextCLIP(24, CLIPVisionCfg(**vision), {**text, "hf_model_pretrained": False})
        for p in model.parameters():
            p.data.add_(0.1 * torch.randn_like(p))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def clip(folder) -> LoadedClip:
    return load_model(f"local-dir:{folder}", None, "cpu")


def features(clip, template):
    ids = clip.tokenizer([template.replace("{}", name.replace("_", " ")) for name in NAMES])
    return F.normalize(clip.model.encode_text(ids), dim=-1)


def test_prompts_and_teacher_are_encode_text(clip):
    assert isinstance(clip.model.text, HFTextEncoder)
    net = pf.clip.PromptedCLIP(clip.model, clip.tokenizer, NAMES, None, "a_photo_of_a")
    teacher = pf.clip.ZeroShotTeacher(clip.model, clip.tokenizer, NAMES, "a photo of a {}.")
    expected = features(clip, "a photo of a {}.")
    torch.testing.assert_close(teacher.class_features, expected)
    torch.testing.assert_close(net.class_features(), expected)
    assert (
        net.encoder.token_ids.tolist()
        == clip.tokenizer(["a photo of a " + n.replace("_", " ") + "." for n in NAMES]).tolist()
    )


def test_gradient(clip):
    """Against a difference quotient: the context is what is differentiated."""
    net = pf.clip.PromptedCLIP(clip.model, clip.tokenizer, NAMES, None, "a photo of a")
    direction = torch.randn(net.prompt.ctx.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(net.class_features().square().sum(0)[:12].sum(), net.prompt.ctx)
    with torch.no_grad():
        values = [
            net.class_features(net.prompt.ctx + step * direction).square().sum(0)[:12].sum() for step in (0.01, -0.01)
        ]
    torch.testing.assert_close((gradient * direction).sum(), (values[0] - values[1]) / 0.02, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("method", [ZeroShot(), LinearProbe(), CoOp(), ProGradCoOp(), CoCoOp()], ids=lambda m: m.name)
def test_methods(clip, method):
    check_text_tower(clip, [method])
    x = F.normalize(torch.randn(6, 24, generator=torch.Generator().manual_seed(0)), dim=-1)
    labels = torch.arange(6) % 3
    learner = method.start(Task(clip.model, clip.tokenizer, NAMES, x, labels))
    if hasattr(learner, "losses"):
        losses = learner.losses(x, labels)
        learner.optimizer.backward_and_update(losses.task, losses.general)
    assert learner.scores(NAMES)(x).isfinite().all()


def test_deep_prompts_have_no_place(clip):
    learner = PromptSRC(sentences=("a photo of a {}.",)).start(Task.without_pictures(clip.model, clip.tokenizer, NAMES))
    with pytest.raises(ValueError, match="deep: expected a causal tower") as caught:
        learner.scores(NAMES)
    assert "\n" not in str(caught.value)


class Closed(torch.nn.Module):
    """A text tower that nobody can look into."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_clip(dtype=torch.float32)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.inner.encode_text(ids)


class Deaf(Closed):
    """It has an embedding to show, and computes with another one."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = torch.nn.Module()
        shown = torch.nn.Embedding(49408, 32)
        self.transformer.get_input_embeddings = lambda: shown


@pytest.mark.parametrize("tower", [Closed, Deaf])
def test_towers_that_are_closed(tower, clip):
    model = CustomTextCLIP.__new__(CustomTextCLIP)
    torch.nn.Module.__init__(model)
    inner = tiny_clip(dtype=torch.float32)
    model.text, model.visual, model.logit_scale, model.logit_bias = tower(), inner.visual, inner.logit_scale, None
    teacher = pf.clip.ZeroShotTeacher(model, TOKENIZER, NAMES, "a photo of a {}.")
    expected = pf.clip.ZeroShotTeacher(model.text.inner, TOKENIZER, NAMES, "a photo of a {}.")
    torch.testing.assert_close(teacher.class_features, expected.class_features)
    loaded = LoadedClip("closed", None, model, TOKENIZER, clip.preprocess, clip.device)
    check_text_tower(loaded, [ZeroShot(), LinearProbe()])
    with pytest.raises(ValueError, match="closed: context tokens cannot be put between the words") as caught:
        check_text_tower(loaded, [ZeroShot(), CoOp()])
    assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="context tokens cannot be put"):
        pf.clip.PromptedCLIP(model, TOKENIZER, NAMES)


@pytest.mark.parametrize("method", ["prograd", "linear-probe", "zero-shot"])
def test_the_command(folder, shapes_dir, tmp_path, capfd, monkeypatch, method):
    epochs = ["--epochs", 2] if method == "prograd" else []
    arguments = ["--data", shapes_dir, "--method", method, "--shots", 1, "--model", f"local-dir:{folder}", *epochs]
    assert run_here(monkeypatch, "train", *arguments, "--out", tmp_path / "run") == 0, capfd.readouterr().err
    assert "Wrote" in capfd.readouterr().out
