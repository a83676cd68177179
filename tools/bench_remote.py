"""Seconds to score 64 images of 512 x 512 by a server on this machine: the client before 0.2, and every way of now.

    python tools/bench_remote.py

The images are parts of the two photographs that scikit-learn brings, enlarged. The server is ``t2ialign serve`` with
the reward ``random-control``, which costs next to nothing: what is measured is the way there and back. Before 0.2, the
client sent one request after the other, on a connection of its own, with PNG at the usual compression.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen

import httpx2 as httpx
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import Tensor

from t2ialign.storage.images import to_pil
from t2ialign_rewards.config import RemoteConfig
from t2ialign_rewards.remote import Remote

IMAGES, SIDE, BATCH, PORT = 64, 512, 16, 8765


def photographs() -> Tensor:
    """(64, 3, 512, 512) in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for number in range(IMAGES):
        picture = torch.from_numpy(load_sample_image(("china.jpg", "flower.jpg")[number % 2]).copy())
        picture = picture.permute(2, 0, 1).float() / 255
        side = 300
        top, left = (int(torch.randint(n - side, (), generator=generator)) for n in picture.shape[1:])
        parts.append(picture[:, top : top + side, left : left + side])
    return F.interpolate(torch.stack(parts), size=(SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)


def before(url: str, images: Tensor, prompts: list[str]) -> list[float]:
    """What the client did before 0.2."""
    scores: list[float] = []
    for first in range(0, len(images), BATCH):
        pictures = []
        for image in images[first : first + BATCH]:
            buffer = io.BytesIO()
            to_pil(image).save(buffer, format="PNG")
            pictures.append(base64.b64encode(buffer.getvalue()).decode())
        request = {"images": pictures, "prompts": prompts[first : first + BATCH]}
        with urlopen(Request(url, json.dumps(request).encode(), {"Content-Type": "application/json"})) as response:
            scores += json.loads(response.read())["scores"]
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    images, prompts = photographs(), ["a photograph"] * IMAGES
    url = f"http://127.0.0.1:{PORT}/rewards"
    ways: dict[str, Callable[[], list[float]]] = {"before 0.2": lambda: before(url, images, prompts)}
    for send in ("auto", "png", "uint8", "float32"):
        client = Remote(RemoteConfig(url=url, send=send, batch=BATCH))
        ways[f'send = "{send}"'] = lambda client=client: client.score(images, prompts).tolist()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rewards.toml"
        file.write_text('[[reward]]\nkind = "random-control"\n')
        command = [sys.executable, "-m", "t2ialign", "serve", str(file), "--port", str(PORT), "--device", "cpu"]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ)
        try:
            while True:
                try:
                    httpx.get(f"http://127.0.0.1:{PORT}/health")
                    break
                except httpx.TransportError:
                    time.sleep(0.2)
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds + 1):  # in turn, so that a busy moment meets them all; the first is not counted
                for name, way in ways.items():
                    started = time.perf_counter()
                    assert len(way()) == IMAGES
                    seconds[name].append(time.perf_counter() - started)
        finally:
            server.terminate()
            server.wait()
    middle = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    for name, value in middle.items():
        print(f"{name:18s} {value:6.2f} s  {IMAGES / value:6.1f} images/s  {middle['before 0.2'] / value:.1f} x")


if __name__ == "__main__":
    main()
