"""What two processes and one are asked for alike, to be compared; run as a program, one of several. Not a test.

    python -m tests.crew_cases RANK SIZE FOLDER

Models are read from FOLDER, where what was made goes too. Processes find one another through a file there and speak
over the loopback interface alone.
"""

from __future__ import annotations

import copy
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

SMALL: Mapping[str, Any] = {"height": 16, "width": 24, "num_inference_steps": 2, "output_type": "pt"}
TEXT: Mapping[str, Any] = {**SMALL, "prompt": "a red circle", "guidance_scale": 5.0, "generator": 3}
TIMEOUT = 120.0  # seconds that processes wait for one another
LOST = 300.0  # and after which one that hangs ends by itself

Change = Callable[[Any], None]


def nothing(pipe: Any) -> None: ...


def cut(pipe: Any) -> None:
    pipe.enable_windows(3, 1)


def spare(pipe: Any) -> None:
    pipe.enable_guidance_reuse(every=2, start=0.0)
    pipe.enable_guidance_interval(0.0, 0.7)


def keep(pipe: Any) -> None:
    pipe.enable_deep_reuse(every=2)
    pipe.enable_token_merging()


def overflow(pipe: Any) -> None:
    """Latents too large for the autoencoder's number format."""
    pipe.vae = copy.deepcopy(pipe.vae).half()
    pipe.vae.config = pipe.vae.config.but(scaling_factor=1e-6)


def ancestral(pipe: Any) -> None:
    import kinema

    pipe.scheduler = kinema.EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)


# What is made of: a model's folder, how its pipeline is changed, a call's arguments.
CASES: dict[str, tuple[str, Change, Mapping[str, Any]]] = {
    "guided": ("text", nothing, {**TEXT, "num_frames": 3}),
    "several clips": ("text", nothing, {**TEXT, "num_frames": 3, "num_videos_per_prompt": 2, "decode_chunk_size": 4}),
    "unguided": ("text", nothing, {**TEXT, "num_frames": 3, "guidance_scale": 1.0}),
    "noise at every step": ("text", ancestral, {**TEXT, "num_frames": 2}),
    "windows": ("text", cut, {**TEXT, "num_frames": 5}),
    "guidance left out": ("text", spare, {**TEXT, "num_frames": 3, "num_inference_steps": 5}),
    "deep features kept": ("text", keep, {**TEXT, "num_frames": 2}),
    "a clip as one": ("picture", nothing, {**SMALL, "num_frames": 5, "generator": 5}),
    "a clip in pieces": ("picture", nothing, {**SMALL, "num_frames": 5, "generator": 5, "decode_chunk_size": 2}),
    "one frame": ("picture", nothing, {**SMALL, "num_frames": 1, "generator": 5}),
    "a clip that overflows as one": ("picture", overflow, {**SMALL, "num_frames": 3, "generator": 5}),
    "frames that overflow": ("text", overflow, {**TEXT, "num_frames": 3}),
    "steered": ("steered", nothing, {**TEXT, "num_frames": 2}),
    "steered without the text": ("steered", nothing, {**TEXT, "num_frames": 2, "guess_mode": True}),
    "perturbed": ("perturbed", nothing, {**TEXT, "num_frames": 3, "pag_scale": 2.0}),
    "perturbed in windows": ("perturbed", cut, {**TEXT, "num_frames": 5, "pag_scale": 2.0}),
}


def pipeline(folder: Path, name: str) -> Any:
    """The pipeline of a model that waits in a folder."""
    import kinema

    if name == "steered":
        net = kinema.ControlNetModel.from_pretrained(folder / "net")
        made: Any = kinema.AnimateDiffControlNetPipeline.from_pretrained(folder / "animate", controlnet=net)
    elif name == "perturbed":
        made = kinema.AnimateDiffPAGPipeline.from_pretrained(folder / "animate")
    else:
        made = kinema.DiffusionPipeline.from_pretrained(folder / name)
    made.set_progress_bar_config(disable=True)
    return made


def arguments(name: str, call: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments, with the pictures it needs."""
    import torch

    drawn = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(7))
    if name == "picture":
        return {"image": drawn, **call}
    return {**call, "conditioning_frames": [drawn] * call["num_frames"]} if name == "steered" else dict(call)


def made(pipe: Any, case: str) -> tuple[Any, Any]:
    """A case's clip, and what of it was made again."""
    name, change, call = CASES[case]
    change(pipe)
    output = pipe(**arguments(name, call))
    return output.frames, output.receipt.get("redone_in_float32")


def all_cases(folder: Path, parallel: bool = False) -> dict[str, Any]:
    """Every case's clip, and what of it was made again."""
    pipes = {name: pipeline(folder, name) for name in {name for name, _, _ in CASES.values()}}
    found = {}
    for case, (name, _, _) in CASES.items():
        pipe = type(pipes[name]).from_pipe(pipes[name])
        if parallel:
            pipe.enable_parallel()
        found[case] = made(pipe, case)
    return found


def trouble(folder: Path, rank: int) -> dict[str, Any]:
    """What errors in one process are in each, and what becomes of calls after them."""
    pipe, call = pipeline(folder, "text"), {**TEXT, "num_frames": 2}
    pipe.enable_parallel()

    def fail(*_: Any) -> None:
        if rank == 1:
            raise ValueError("this one does not like it")

    def leave(*_: Any) -> None:
        if rank == 1:
            os._exit(0)

    told = {
        "another request": _error(pipe, {**call, "prompt": f"a red circle {rank}"}),
        "a wrong request": _error(pipe, {**call, "num_frames": rank}),
        "a callback that fails": _error(pipe, {**call, "callback_on_step_end": fail}),
        "stopped": _stopped(pipe, call, rank),
        "unseeded": pipe(**{**call, "generator": None}).frames,
    }
    began = time.perf_counter()
    told["a process that is gone"] = _error(pipe, {**call, "callback_on_step_end": leave})
    told["after that"] = _error(pipe, call)
    told["seconds"] = time.perf_counter() - began
    return told


def _error(pipe: Any, call: Mapping[str, Any]) -> str:
    try:
        pipe(**call)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def _stopped(pipe: Any, call: Mapping[str, Any], rank: int) -> str:
    """Process 0 stops asking at the second step."""
    try:
        for event in pipe.stream(**call):
            if event.stage == "denoise" and event.step == 2 and rank == 0:
                break
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def main(rank: int, size: int, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    watch = threading.Timer(LOST, os._exit, [3])
    watch.daemon = True
    watch.start()
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    said: list[str] = []
    logging.getLogger("kinema").addFilter(lambda record: not said.append(record.getMessage()))
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT))
    torch.manual_seed(rank)  # unlike generators make one clip all the same
    torch.save(all_cases(folder, parallel=True) | {"said": said}, folder / f"made-{rank}.pt")
    torch.save(trouble(folder, rank), folder / f"trouble-{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
