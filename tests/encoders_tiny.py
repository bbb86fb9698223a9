"""A CLIP text encoder and tokenizer small enough to make for every test, and the reference's way of using them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import torch
from diffusers import DDIMScheduler, TextToVideoSDPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

BEGIN, END = 188, 189


def tokenizer_folder(folder: pathlib.Path, pad: str = "<|endoftext|>") -> pathlib.Path:
    """A published tokenizer whose tokens are single characters, those that end a word apart."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(i) for i in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, "pad_token": pad}))
    return folder


def tokenizer(folder: pathlib.Path, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(str(tokenizer_folder(folder, pad)), local_files_only=True)


def text_encoder(**changes: Any) -> CLIPTextModel:
    """Random weights, the same each time; large enough that every layer and its norm matter."""
    torch.manual_seed(0)
    fields = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_attention_heads": 4,
        "num_hidden_layers": 5,
        "vocab_size": 190,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "pad_token_id": END,
        "projection_dim": 32,
    }
    model = CLIPTextModel(CLIPTextConfig(**{**fields, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0 if name.endswith("weight") else 0.1, 0.2)
            else:
                parameter.mul_(5)
    return model.eval()


def reference(tokenizer: CLIPTokenizer, model: CLIPTextModel) -> TextToVideoSDPipeline:
    """The reference's pipeline with nothing in it but text."""
    pipe = TextToVideoSDPipeline.__new__(TextToVideoSDPipeline)
    super(TextToVideoSDPipeline, pipe).__init__()
    pipe.register_modules(tokenizer=tokenizer, text_encoder=model, unet=None, vae=None, scheduler=DDIMScheduler())
    return pipe
