"""A chat API on this machine that looks at the pictures: what judges are tested against."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx2 as httpx
import numpy as np
from PIL import Image


def brightness(part):
    data = part["image_url"]["url"].removeprefix("data:image/png;base64,")
    return float(np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).mean() / 255)


def answer(request):
    """An honest judge: the brighter, the better."""
    *pictures, text = request["messages"][0]["content"]
    values = [brightness(picture) for picture in pictures]
    asked = re.findall(r"likes (\w+)", text["text"])
    if asked == ["dark"]:
        values = [1 - value for value in values]
    if request.get("logprobs"):
        yes = min(max(values[0], 1e-6), 1 - 1e-6) * 0.8  # a fifth of the probability is on other words
        shares = {"Yes": yes * 0.75, " yes": yes * 0.25, "No": 0.8 - yes, "The": 0.2}
        top = [{"token": token, "logprob": math.log(share), "bytes": None} for token, share in shares.items()]
        return completion("Yes", {"content": [{"token": "Yes", "logprob": -1, "top_logprobs": top}]})
    if len(values) == 1:
        return completion(json.dumps({"explanation": f"brightness {values[0]:.2f}", "score": 10 * values[0]}))
    winner = "tie" if abs(values[0] - values[1]) < 0.01 else "1" if values[0] > values[1] else "2"
    return completion(json.dumps({"explanation": f"{winner} is brighter", "winner": winner}))


def completion(text, logprobs=None):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"choices": [{**choice, "logprobs": logprobs}], "usage": {"total_tokens": 7}}


def started(port, delay=0.0):
    """The API as a process of its own, which can be killed; it answers when this returns."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from services import Server
from judges.chat import answer
server = Server(answer, {port}); server.delay = {delay}; server.serve_forever()
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    while process.poll() is None:
        try:  # an answer, not just a connection: a port that is free may connect to itself
            httpx.get(f"http://127.0.0.1:{port}/")
            break
        except httpx.TransportError:
            time.sleep(0.05)
    return process
